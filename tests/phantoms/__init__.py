"""Phantoms that only tests use: a chest CT, a 4D-Lung, DICOM SEG, a video. Imported as ``phantoms``."""
