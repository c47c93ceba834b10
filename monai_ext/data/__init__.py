"""What comes from disk and goes back to it: data lists, pairs, images, masks, provenance of weights."""
