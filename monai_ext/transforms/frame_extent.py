"""One scale, in mm a pixel, for a patient's images: how many mm the input frame covers."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from monai_ext.transforms.request import REQUEST
from monai_ext.transforms.sam_input import FRAME_EXTENT, Extent, plane_extent


class Grid(Protocol):
    """Shape (X, Y, Z) and affine [4, 4] of an image file; no affine: a frame of a video, which has no mm."""

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def affine(self) -> np.ndarray | None: ...


class FrameExtentd(MapTransform):
    """Tell :class:`~monai_ext.transforms.sam_input.SamInputd` how many mm the input frame of this patient covers.

    The largest field of view among the image and its references, along H and along W, holds for all of them: nothing
    is cut off, and a structure is as large in the target's frame as in the reference's, also where one of them was
    cropped in plane. The smaller image lies in the upper left corner of the frame, the rest is black
    (:func:`monai_ext.inferers.encoding.encode_slice`); of a target that is larger than its reference, the reference
    does (:class:`monai_ext.inferers.reference.ReferenceLoader` hands the extent on). Where all cover the same, to 1 %
    along both (:data:`~monai_ext.transforms.sam_input.SAME_EXTENT`), each fills its frame. Frames of a video have no
    mm and are left as they are.

    Args:
        keys: the loaded image, a volume [C, X, Y, Z] with its affine, or a frame [C, W, H].
        read_grid: path -> grid of an image file, from its header, such as
            :func:`monai_ext.data.images.read_geometry`.
        slice_axis: as for ``SamInputd``.
        allow_missing_keys: do not raise for a key that is absent.

    References are the item ``reference_image``, or those of a viewer's request
    (:mod:`monai_ext.transforms.request`). The result is the item :data:`~monai_ext.transforms.sam_input.FRAME_EXTENT`.

    Raises:
        UserError: the header of a reference cannot be read.
    """

    def __init__(
        self,
        keys: KeysCollection,
        read_grid: Callable[[str], Grid],
        slice_axis: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.read_grid, self.slice_axis = read_grid, slice_axis

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = {name: value for name, value in data.items() if name != FRAME_EXTENT}
        for key in self.key_iterator(d):
            request = d[key].meta.get(REQUEST) or {} if isinstance(d[key], MetaTensor) else {}
            references = request.get("reference_image", d.get("reference_image")) or []
            extents = [self._extent(path) for path in ([references] if isinstance(references, str) else references)]
            if known := [extent for extent in extents if extent is not None]:
                d[FRAME_EXTENT] = (max(height for height, _ in known), max(width for _, width in known))
        return d

    def _extent(self, path: str | os.PathLike[str]) -> Extent | None:
        grid = self.read_grid(os.fspath(path))
        return None if grid.affine is None else plane_extent(grid.shape, grid.affine, self.slice_axis)
