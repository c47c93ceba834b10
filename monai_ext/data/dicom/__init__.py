"""DICOM in and out (extra ``dicom``): series to volumes, RTSTRUCT and SEG to masks, and masks back to both.

Everything here speaks of volumes as nibabel does: arrays [X, Y, Z] with columns along X, rows along Y and slices
along Z, affines [4, 4] to RAS+ millimetres. DICOM's own patient coordinates are LPS+, and stay in names that end
in ``_lps`` or in docstrings that say so.
"""
