"""Masks of one structure each, such as ``liver.nii.gz`` and ``spleen.nii.gz`` of one image, joined into a label map.

Segmentation tools and viewers write a file a structure; a data list has one label map a case. A file counts as the mask
of a structure if it is called so: ``liver``, ``liver_mask``, or ``ct_liver`` beside the image ``ct``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np

from monai_ext.data.checks import grid_difference
from monai_ext.data.images import is_frame, read_geometry, read_label, write_mask
from monai_ext.data.indexing.index import Index, label_values
from monai_ext.errors import UserError

Parts = dict[str, Path]
"""The mask of each structure of one image."""


def structure_called(name: str, structures: Collection[str], endings: Collection[str]) -> tuple[str, str] | None:
    """Return what a name says of an image and of a structure, or None if it names no structure.

    Args:
        name: of a file, without suffix.
        structures: their names; capitals do not count, nor whether blanks, ``_``, ``-`` or ``.`` part their words.
        endings: words that may stand in front or at the end, such as "mask".

    Example:
        >>> structure_called("ct_Left-Kidney_mask", ["left kidney"], ["mask"])
        ('ct', 'left kidney')
    """
    said = "|".join(sorted(map(re.escape, endings), key=len, reverse=True))
    bare = re.sub(rf"[ ._-](?:{said})$", "", name, flags=re.IGNORECASE)
    for structure in sorted(structures, key=len, reverse=True):
        called = "[ ._-]?".join(map(re.escape, re.split(r"[\s._-]+", structure.strip())))
        match = re.fullmatch(rf"(?:(.*)[ ._-])?{called}", bare, re.IGNORECASE)
        if match is not None:
            image = re.sub(rf"^(?:{said})$", "", match[1] or "", flags=re.IGNORECASE)
            return image, structure
    return None


class PartJoiner:
    """Makes one label map of the masks of an image, beside the data list.

    Voxels that are not 0 get the structure's value. Of structures that overlap the later one in ``labels`` is drawn
    over the earlier ones, and a note says so.

    Args:
        folder: for what is written.
        labels: value of each structure.
        index: takes the notes.
    """

    def __init__(self, folder: Path, labels: Mapping[str, int], index: Index) -> None:
        self.folder, self.labels, self.index = folder, labels, index
        self.written = 0

    def join(self, parts: Parts, case: str) -> Path:
        """Return the label map of a case.

        Raises:
            UserError: a mask cannot be read or holds several values, or their grids differ.
        """
        first = next(iter(parts.values()))
        joined: np.ndarray | None = None
        for structure in (name for name in self.labels if name in parts):
            mask = self._mask(parts[structure], first)
            if joined is None:
                joined = np.zeros(mask.shape, np.int32)
            if shared := int(np.count_nonzero(joined[mask])):
                self.index.notes.append(
                    f"{case}: {shared} voxels of {structure} are in the mask of another structure, too; they count as "
                    f"{structure}, which --labels names later"
                )
            joined[mask] = self.labels[structure]
        assert joined is not None
        target = self.folder / f"{case}_label{'.png' if is_frame(first) else '.nii.gz'}"
        write_mask(target, joined, first)
        self.written += 1
        return target

    def join_all(self, parts: Mapping[str, Parts]) -> None:
        """Give the index's cases their label maps; a case whose masks do not fit is skipped.

        A file that alone is called as a structure is listed as it is if it holds that structure's value and no other,
        and so are all such files if one of them holds several values: then they are label maps.

        Args:
            parts: by what stands as a case's label so far.
        """
        cases, used = (
            [],
            {
                entry["label"]: parts[entry["label"]]
                for entry in self.index.datalist["cases"]
                if entry["label"] in parts
            },
        )
        alone = [of_case for of_case in used.values() if len(of_case) == 1]
        are_maps = hold_several_values(alone)
        for entry in self.index.datalist["cases"]:
            of_case = used.get(entry["label"], {})
            try:
                if len(of_case) == 1 and (are_maps or self._is_label_map(of_case)):
                    entry["label"] = str(next(iter(of_case.values())))
                elif of_case:
                    entry["label"] = str(self.join(of_case, entry["case"]))
            except UserError as error:
                self.index.skipped.append((entry["case"], str(error)))
                continue
            cases.append(entry)
        self.index.datalist["cases"] = cases
        if self.written:
            self.index.notes.append(
                f"{self.written} label maps were joined from masks of one structure each ({', '.join(self.labels)}), "
                f"into {self.folder.name}/"
            )

    def _is_label_map(self, parts: Parts) -> bool:
        ((structure, path),) = parts.items()
        return label_values(path) <= {0, self.labels[structure]}

    @staticmethod
    def _mask(path: Path, first: Path) -> np.ndarray:
        values = label_values(path) - {0}
        if len(values) > 1:
            raise UserError(
                f"{path}: is called as one structure, but holds the values {_listed(values)}; save a mask of 0 and one "
                "value, or a label map of another name"
            )
        difference = grid_difference(read_geometry(first), read_geometry(path))
        if difference is not None:
            raise UserError(
                f"{path}: lies on another grid than {first}: {difference.name} {difference.of_label}, not "
                f"{difference.of_image}; masks of one image need one grid"
            )
        return read_label(path) != 0


def hold_several_values(parts: Iterable[Parts]) -> bool:
    """Whether files that are called as a structure are label maps after all: one of them holds several structures."""
    return any(len(label_values(path) - {0}) > 1 for of_case in parts for path in of_case.values())


def add_part(parts: Parts, structure: str, path: Path) -> None:
    """Add the mask of a structure.

    Raises:
        UserError: there is one already.
    """
    if parts.setdefault(structure, path) is not path:
        raise UserError(
            f"{path}: of the same structure as {parts[structure]}; choose with --label_pattern, or remove one"
        )


def _listed(values: Collection[int], most: int = 5) -> str:
    return ", ".join(map(str, sorted(values)[:most])) + (", ..." if len(values) > most else "")
