"""What a run writes to disk: small handlers for MONAI's engines."""
