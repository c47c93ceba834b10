"""Masks of one structure each, such as ``liver.nii.gz`` and ``spleen.nii.gz`` of one image, joined into a label map.

Segmentation tools and viewers write a file a structure; a data list has one label map a case. A file counts as the mask
of a structure if it is called so: ``liver``, ``liver_mask``, or ``ct_liver`` beside the image ``ct``.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np

from monai_ext.data.checks import grid_difference
from monai_ext.data.images import is_frame, read_geometry, read_label, write_mask
from monai_ext.data.indexing.index import CaseEntry, Index, label_values, stem
from monai_ext.errors import UserError

MOST_CASES = 3  # in a note

Parts = dict[str, Path]
"""The mask of each structure of one image."""


def structure_called(name: str, structures: Collection[str], endings: Collection[str]) -> tuple[str, str] | None:
    """Return what a name says of an image and of a structure, or None if it names no structure.

    Args:
        name: of a file, without suffix.
        structures: their names; capitals do not count, nor whether blanks, ``_``, ``-`` or ``.`` part their words.
        endings: words that may stand in front (with a number, as "Segmentation_1" of a viewer) or at the end, such as
            "mask".

    Raises:
        UserError: the name is that of two structures.

    Example:
        >>> structure_called("ct_Left-Kidney_mask", ["left kidney"], ["mask"])
        ('ct', 'left kidney')
    """
    said = "|".join(sorted(map(re.escape, endings), key=len, reverse=True))
    bare = re.sub(rf"[ ._-](?:{said})$", "", unicodedata.normalize("NFC", name), flags=re.IGNORECASE)
    for structure in sorted(structures, key=len, reverse=True):
        match = re.fullmatch(rf"(?:(.*)[ ._-])?{_expression(structure)}", bare, re.IGNORECASE)
        if match is not None and _letters(structure):
            same = [other for other in structures if _letters(other) == _letters(structure)]
            if len(same) > 1:
                raise UserError(
                    f"{name}: may be the mask of {same[0]!r} or of {same[1]!r}; give structures names that differ in "
                    "more than capitals, blanks and _ - ."
                )
            image = re.sub(rf"^(?:{said})(?:[ ._-]?[0-9]+)?(?:[ ._-]|$)", "", match[1] or "", flags=re.IGNORECASE)
            return image, structure
    return None


def structures_in(name: str, structures: Collection[str]) -> set[str]:
    """Return the structures that a name names, wherever in it; "left_kidney" names no "kidney" if "left kidney" is one.

    Example:
        >>> structures_in("spleen_p1_mask", ["liver", "spleen"])
        {'spleen'}
    """
    found: set[str] = set()
    rest = unicodedata.normalize("NFC", name)
    for structure in sorted(filter(_letters, structures), key=len, reverse=True):
        rest, number = re.subn(rf"(?<![^\W_]){_expression(structure)}(?![^\W_])", "/", rest, flags=re.IGNORECASE)
        found |= {structure} if number else set()
    return found


def _expression(structure: str) -> str:
    """Return what finds a structure in a name, whatever parts its words."""
    words = re.split(r"[\s._-]+", unicodedata.normalize("NFC", structure).strip())
    return "[ ._-]?".join(map(re.escape, words))


def _letters(structure: str) -> str:
    """Return what tells structures apart in names of files: "" of a number, which is rather one of visits."""
    bare = re.sub(r"[\s._-]+", "", unicodedata.normalize("NFC", structure)).casefold()
    return bare if any(letter.isalpha() for letter in bare) else ""


class PartJoiner:
    """Makes one label map of the masks of an image, beside the data list.

    Voxels that are not 0 get the structure's value. Of structures that overlap the later one in ``labels`` is drawn
    over the earlier ones, and a note says so.

    Args:
        folder: for what is written.
        labels: value of each structure.
        index: takes the notes.
        ignore: the value that is neither structure nor background.
    """

    def __init__(self, folder: Path, labels: Mapping[str, int], index: Index, ignore: int | None = None) -> None:
        self.folder, self.labels, self.index, self.ignore = folder, labels, index, ignore
        self.written = 0
        self._overlaps: defaultdict[str, dict[str, int]] = defaultdict(dict)
        self._without: defaultdict[str, list[str]] = defaultdict(list)

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
                self._overlaps[structure][case] = shared
            joined[mask] = self.labels[structure]
        assert joined is not None
        target = self.folder / f"{case}_label{'.png' if is_frame(first) else '.nii.gz'}"
        write_mask(target, joined, first)
        self.written += 1
        return target

    def join_all(self, parts: Mapping[str, Parts]) -> None:
        """Give the index's cases their label maps; a case whose masks do not fit is skipped.

        A file that alone is called as a structure is listed as it is if it holds that structure's value and no other.
        So are all such files if one of them holds several structures and no case has several masks: then they are label
        maps. Masks of no case are skipped.

        Args:
            parts: by what stands as a case's label so far.
        """
        cases: list[CaseEntry] = []
        entries = self.index.datalist["cases"]
        used = {entry["label"]: parts[entry["label"]] for entry in entries if entry["label"] in parts}
        are_maps = all(len(of_case) == 1 for of_case in used.values()) and self._hold_several(used.values())
        for entry in entries:
            of_case = used.get(entry["label"], {})
            try:
                if len(of_case) == 1 and (are_maps or self._is_label_map(of_case)):
                    entry["label"] = str(next(iter(of_case.values())))
                elif of_case:
                    entry["label"] = str(self.join(of_case, entry["case"]))
            except UserError as error:
                self.index.skipped.append((entry["case"], str(error)))
                continue
            for structure in self.labels if of_case and not are_maps else ():
                if structure not in of_case:
                    self._without[structure].append(entry["case"])
            cases.append(entry)
        self.index.datalist["cases"] = cases
        lonely = [path for name, of_image in parts.items() if name not in used for path in of_image.values()]
        self.index.skipped += [(str(path), "a mask without an image that it belongs to") for path in lonely]
        self._note(are_maps)

    def _note(self, are_maps: bool) -> None:
        notes = self.index.notes
        if self.written:
            notes.append(
                f"{self.written} label maps were joined from masks of one structure each ({', '.join(self.labels)}), "
                f"into {self.folder.name}/"
            )
        if are_maps:
            notes.append(
                "files that are called as one structure hold several: they count as label maps, by their values"
            )
        for structure, voxels in self._overlaps.items():
            notes.append(
                f"{sum(voxels.values())} voxels of {structure} are in the mask of another structure, too "
                f"({_listed(voxels, MOST_CASES)}); they count as {structure}, which --labels names later"
            )
        for structure, names in self._without.items():
            notes.append(
                f"{len(names)} cases have masks of others and none of {structure} ({_listed(names, MOST_CASES)}): it "
                "counts as not there"
            )

    def _hold_several(self, parts: Iterable[Parts]) -> bool:
        """Whether files called as a structure are label maps after all: one of them holds several structures."""
        known = {*self.labels.values()}
        for path in (path for of_case in parts for path in of_case.values()):
            try:
                values = label_values(path) - {0, self.ignore}
            except UserError:  # its case is skipped
                continue
            if len(values) > 1 and values <= known:
                return True
        return False

    def _is_label_map(self, parts: Parts) -> bool:
        ((structure, path),) = parts.items()
        values = label_values(path) - {0}
        return values <= {self.labels[structure], self.ignore} and values != {self.ignore}

    def _mask(self, path: Path, first: Path) -> np.ndarray:
        values = label_values(path) - {0}
        if self.ignore in values:
            raise UserError(
                f"{path}: is called as one structure, but holds the value {self.ignore} of --ignore; save a mask of 0 "
                "and another value, or leave --ignore out"
            )
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


def skip_misnamed(index: Index, labels: Mapping[str, int], ignore: int | None) -> None:
    """Skip cases whose label map is called as one structure and holds another one's value alone.

    It is rather a mask of ones than a label map. Where a label map of such a name holds several structures, names say
    nothing, and no case is skipped.

    Args:
        index: its cases, before they are checked.
        labels: value of each structure.
        ignore: the value that is neither structure nor background.
    """
    called = {value: name for name, value in labels.items()}
    doubtful: defaultdict[str, dict[str, str]] = defaultdict(dict)
    are_maps: set[str] = set()
    for entry in index.datalist["cases"]:
        for path in filter(None, (entry.get("label"), entry.get("scribble"))):
            named = structures_in(stem(Path(path)), labels) - structures_in(stem(Path(entry["image"])), labels)
            if len(named) != 1:
                continue
            (structure,) = named
            try:
                values = label_values(path) - {0, ignore}
            except UserError:  # it is named when cases are checked
                continue
            if len(values) > 1:
                are_maps.add(structure)
            elif values and values != {labels[structure]} and values <= called.keys():
                (value,) = values
                doubtful[structure][entry["case"]] = (
                    f"{path}: is called {structure}, but holds the value {value} alone, which is {called[value]}; call "
                    f"it as its image with _{structure} at the end, or save {structure} as {labels[structure]}"
                )
    wrong = {case: why for name, cases in doubtful.items() if name not in are_maps for case, why in cases.items()}
    index.datalist["cases"] = [entry for entry in index.datalist["cases"] if entry["case"] not in wrong]
    index.skipped += wrong.items()


def add_part(parts: Parts, structure: str, path: Path) -> None:
    """Add the mask of a structure.

    Raises:
        UserError: there is one already.
    """
    if parts.setdefault(structure, path) is not path:
        raise UserError(
            f"{path}: of the same structure as {parts[structure]}; choose with --label_pattern, or remove one"
        )


def _listed(values: Collection[int] | Collection[str], most: int = 5) -> str:
    return ", ".join(map(str, sorted(values)[:most])) + (", ..." if len(values) > most else "")
