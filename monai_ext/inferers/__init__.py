"""How a network is prompted and applied."""
