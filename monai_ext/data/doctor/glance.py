"""Which files a run should look into before it begins: those whose values it may take for something else.

Reading every voxel of a data set takes minutes. A right file is known by its header, or by its first slices.
"""

from __future__ import annotations

from monai_ext.data.images import read_first_range
from monai_ext.data.picture_header import PictureHeader

AIR = (-3100.0, -900.0)
"""HU between which the lowest value of a CT lies: air has -1000, padding outside the field of view down to -3024."""

LEAST_SPAN = 50.0
"""HU between the lowest and the highest value of any CT; values of a smaller span have been normalised."""


def is_doubtful(path: str, key: str, modality: str, picture: PictureHeader | None) -> bool:
    """Tell whether a file has to be read as a whole to know what a run makes of it.

    That holds for scribbles (is anything left unlabelled?), pictures of more than 8 bits (what is white?) and volumes
    whose first slices look as if they were not of the modality.

    Args:
        path: the file.
        key: under which a case names it.
        modality: of the case, in lower case.
        picture: header of a picture, None of a volume.

    Raises:
        FileError: the file cannot be read.
    """
    if not key.endswith("image"):
        return key == "scribble"
    if picture is not None:
        return picture.is_deep
    low, high = read_first_range(path)
    return not looks_like_hu(low, high) if modality == "ct" else AIR[0] <= low <= AIR[1]


def looks_like_hu(low: float, high: float) -> bool:
    """Tell whether the range of a CT's values can be one of Hounsfield units."""
    return low < 0 and high - low >= LEAST_SPAN
