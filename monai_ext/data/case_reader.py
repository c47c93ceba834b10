"""The way from files to MONAI's ``LoadImaged``.

A module of its own, because MONAI takes seconds to import and :mod:`monai_ext.data.images` serves commands that need
none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from monai_ext.data.images import FRAME_SUFFIXES, VOLUME_SUFFIXES, read_geometry, read_image, read_label
from monai_ext.errors import UserError
from monai_ext.files import PathLike


class CaseReader(ImageReader):
    """Reads NIfTI and frames for MONAI's ``LoadImaged`` as :mod:`monai_ext.data.images` does.

    So the transforms see exactly what the checks saw. ``LoadImaged`` swallows what :meth:`read` raises and
    tries its other readers instead, hence :meth:`read` only passes the path on and :meth:`get_data` opens the
    file: a :class:`~monai_ext.errors.UserError` from there stays in the chain of causes.

    Args:
        label: read label values (nothing is scaled or converted to RGB) instead of intensities.
    """

    def __init__(self, label: bool = False) -> None:
        super().__init__()
        self.label = label

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Tell whether all files have a suffix of a volume or a frame."""
        names = [str(name).lower() for name in ensure_tuple(filename)]
        return all(name.endswith(VOLUME_SUFFIXES + FRAME_SUFFIXES) for name in names)

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Sequence[PathLike] | PathLike:
        """Return the path as it is: see the class's docstring."""
        return data

    def get_data(self, img: Sequence[PathLike] | PathLike) -> tuple[np.ndarray, dict[str, Any]]:
        """Read one file.

        Returns:
            The array ([X, Y, Z], [W, H] or [W, H, 3]) and its meta data: ``affine`` and ``original_affine``
            [4, 4] (identity for frames), ``space`` RAS, ``spatial_shape``, ``original_channel_dim`` (-1 or
            "no_channel"), ``is_frame``, ``stored_type`` (of an image: the type of the array, which MONAI converts).

        Raises:
            UserError: what :func:`read_image` and :func:`read_label` say, or an empty path.
            ValueError: several files are asked for as one image.
        """
        paths = ensure_tuple(img)
        if len(paths) != 1:
            raise ValueError(f"CaseReader reads one file at a time, not {len(paths)}")
        if str(paths[0]) in ("", "."):  # what MONAI Label makes of a study that it does not hold
            raise UserError("no image is named: is the study's name right, and its file in the studies' folder?")
        array = read_label(paths[0]) if self.label else read_image(paths[0])
        geometry = read_geometry(paths[0])
        affine = np.eye(4) if geometry.affine is None else geometry.affine
        meta = {
            MetaKeys.AFFINE: affine,
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.asarray(geometry.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: "no_channel" if array.ndim == len(geometry.shape) else -1,
            "is_frame": geometry.is_frame,
        }
        if not self.label:
            meta["stored_type"] = array.dtype.name
        return array, meta
