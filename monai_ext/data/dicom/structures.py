"""What both writers are given: the structures, the series they were found in, and who found them.

A structure's code says to software what its name says to people. Names that medical data sets commonly use have a
SNOMED CT code here; others are coded as "Tissue", as 3D Slicer does, unless the user gives a code.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monai_ext.data.dicom.headers import SeriesHeaders
from monai_ext.errors import UserError

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

PRODUCT = "monai_ext"
PURPOSE = "research use only"
MAX_NAME = 64  # characters of a ROI name or segment label (value representation LO)

COLOURS = ("#56B4E9", "#F0E442", "#FF7FC4", "#00D18F", "#FFA040", "#B79CFF", "#C8C8C8", "#C08552")
"""One a structure, repeated beyond eight: those of the overlays."""


class Code(NamedTuple):
    """A coded concept: value, designator of the coding scheme (``SCT`` is SNOMED CT), meaning."""

    value: str
    scheme: str
    meaning: str


TISSUE = Code("85756007", "SCT", "Tissue")
ANATOMY = Code("91723000", "SCT", "Anatomical Structure")
ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
SIDES = {"left": Code("7771000", "SCT", "Left"), "right": Code("24028007", "SCT", "Right")}

_TUMOUR = Code("108369006", "SCT", "Neoplasm")
_LEFT_VENTRICLE = Code("87878005", "SCT", "Left ventricle")
_RIGHT_VENTRICLE = Code("53085002", "SCT", "Right ventricle")
_MYOCARDIUM = Code("49848007", "SCT", "Left Ventricle Myocardium")
_KNOWN: dict[str, tuple[Code, Code]] = {
    **dict.fromkeys(("tumour", "tumor", "neoplasm", "gtv"), (ABNORMAL, _TUMOUR)),
    "lesion": (ABNORMAL, Code("52988006", "SCT", "Lesion")),
    **dict.fromkeys(("lv", "left ventricle"), (ANATOMY, _LEFT_VENTRICLE)),
    **dict.fromkeys(("rv", "right ventricle"), (ANATOMY, _RIGHT_VENTRICLE)),
    **dict.fromkeys(("myo", "myocardium"), (ANATOMY, _MYOCARDIUM)),
    "aorta": (ANATOMY, Code("15825003", "SCT", "Aorta")),
    "bladder": (ANATOMY, Code("89837001", "SCT", "Bladder")),
    "esophagus": (ANATOMY, Code("32849002", "SCT", "Esophagus")),
    "gallbladder": (ANATOMY, Code("28231008", "SCT", "Gallbladder")),
    "heart": (ANATOMY, Code("80891009", "SCT", "Heart")),
    "kidney": (ANATOMY, Code("64033007", "SCT", "Kidney")),
    "liver": (ANATOMY, Code("10200004", "SCT", "Liver")),
    "lung": (ANATOMY, Code("39607008", "SCT", "Lung")),
    "pancreas": (ANATOMY, Code("15776009", "SCT", "Pancreas")),
    "prostate": (ANATOMY, Code("41216001", "SCT", "Prostate")),
    "spinal cord": (ANATOMY, Code("2748008", "SCT", "Spinal cord")),
    "spleen": (ANATOMY, Code("78961009", "SCT", "Spleen")),
    "stomach": (ANATOMY, Code("69695003", "SCT", "Stomach")),
}


@dataclass(frozen=True)
class Structure:
    """One structure to be written.

    Args:
        name: of the ROI or segment.
        mask: [X, Y, Z] on the grid of the series, True inside.
        colour: red, green, blue from 0 to 255.
        category: coded category of what it is.
        type: coded kind of what it is.
        side: code of "left" or "right", which modifies the type.
    """

    name: str
    mask: NDArray[np.bool_]
    colour: tuple[int, int, int]
    category: Code = TISSUE
    type: Code = TISSUE
    side: Code | None = None


@dataclass(frozen=True)
class Source:
    """The image series that the structures were found in.

    Args:
        headers: data sets of its slices without pixels, slice 0 first; from :func:`clean_headers`.
        shape: (X, Y, Z): columns, rows, slices.
        affine: [4, 4], voxel indices to RAS+ mm.
        series: where the headers come from.
    """

    headers: tuple[Dataset, ...]
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    series: SeriesHeaders


def package_version() -> str:
    """Return the version of this package, "unknown" where it runs without being installed."""
    try:
        return version("monai-ext")
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True)
class Maker:
    """Who found the structures, and when.

    Args:
        algorithm: name of the method.
        made: when the masks were made, local time.
        version: of this package.
    """

    algorithm: str
    made: datetime
    version: str = field(default_factory=package_version)

    @property
    def description(self) -> str:
        """What a reader of the file should know, at most 64 characters."""
        sentence = f"{PRODUCT} {self.version}, {PURPOSE}"
        return sentence if self.algorithm == PRODUCT else f"{self.algorithm}, {sentence}"


def find_codes(name: str) -> tuple[Code, Code, Code | None]:
    """Return category, type and side of a structure by its name; tissue if the name is not known."""
    words = re.split(r"[\s_-]+", name.strip().lower())
    if (known := _KNOWN.get(" ".join(words))) is not None:
        return (*known, None)
    sides = [word for word in words if word in SIDES]
    known = _KNOWN.get(" ".join(word for word in words if word not in SIDES), (TISSUE, TISSUE))
    return (*known, SIDES[sides[0]] if len(sides) == 1 else None)


def colour_of(number: int) -> tuple[int, int, int]:
    """Return red, green and blue of the structure with this number, counted from 0."""
    red, green, blue = bytes.fromhex(COLOURS[number % len(COLOURS)][1:])
    return red, green, blue


def check_name(name: str) -> None:
    """Check that a name can stand in a DICOM file.

    Raises:
        UserError: it is empty, too long, holds a backslash or a control character, or starts or ends in a space.
    """
    if not name or name != name.strip() or len(name) > MAX_NAME or "\\" in name or not name.isprintable():
        raise UserError(
            f"{name!r} cannot be the name of a structure in DICOM (1 to {MAX_NAME} characters, no backslash, no space "
            "at the ends); give it another with --labels NAME=VALUE"
        )


def check_maker(maker: Maker) -> None:
    """Check that the name of the algorithm can stand in a DICOM file.

    Raises:
        UserError: it is empty, too long or holds a backslash or a control character.
    """
    name = maker.algorithm
    if not name.strip() or len(maker.description) > MAX_NAME or "\\" in name or not name.isprintable():
        room = MAX_NAME - len(replace(maker, algorithm="").description)
        raise UserError(f"--algorithm {name!r} cannot stand in DICOM; choose a name of 1 to {room} plain characters")


def clean_headers(headers: Sequence[Dataset]) -> tuple[Dataset, ...]:
    """Make headers fit to be copied from: text decoded, and what must be there but may be empty, there.

    Args:
        headers: of the slices of one series; changed in place.
    """
    for header in headers:
        header.decode()
        for keyword, form in _MAY_BE_EMPTY.items():
            value = header.get(keyword)
            if value is None or (form and not re.fullmatch(form, str(value))):
                setattr(header, keyword, "")
        for keyword in ("PatientName", "ReferringPhysicianName"):
            setattr(header, keyword, str(header[keyword].value))  # no longer bound to the source's character set
    return tuple(headers)


_DATE, _TIME = r"[0-9]{8}", r"[0-9]{2,6}(\.[0-9]{1,6})?"
_MAY_BE_EMPTY = {  # keyword -> the form that highdicom insists on; what anonymisation put there instead is left out
    **dict.fromkeys(("PatientID", "PatientName", "StudyID", "AccessionNumber", "ReferringPhysicianName"), ""),
    **{"PatientBirthDate": _DATE, "PatientSex": "[MFO]", "StudyDate": _DATE, "StudyTime": _TIME},
}


def common_attributes(source: Source, maker: Maker, content: Sequence[object]) -> dict[str, Any]:
    """Return what both kinds of file say of themselves, as highdicom's constructors take it.

    The UIDs are made from the contents: the same mask gives the same UIDs, another mask others.

    Args:
        source: the series.
        maker: who and when.
        content: all else that the file tells, as text or numbers.
    """
    first = source.headers[0]
    entropy = [str(item) for item in (first.SeriesInstanceUID, maker, *content)]
    number = first.get("SeriesNumber")
    return {
        "series_instance_uid": make_uid("series", *entropy),
        "sop_instance_uid": make_uid("instance", *entropy),
        "series_number": 1000 + max(int(number or 0), 0),
        "instance_number": 1,
        "series_description": maker.description,
        "content_qualification": "RESEARCH",
        "manufacturer": PRODUCT,
        "manufacturer_model_name": PRODUCT,
        "software_versions": maker.version,
        "specific_character_set": "ISO_IR 192",
    }


@contextmanager
def quiet_names() -> Iterator[None]:
    """Keep highdicom from printing the patient's name where it has one component only, which is no fault."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*intended person name", category=UserWarning)
        yield


def make_uid(*entropy: str) -> UID:
    """Return a UID that depends on the given texts only."""
    from pydicom.uid import generate_uid

    return generate_uid(entropy_srcs=list(entropy))


def contents_of(structures: Sequence[Structure]) -> list[object]:
    """Return all that is to be told of structures, their masks as checksums."""
    described: list[object] = []
    for structure in structures:
        described += [structure.name, structure.colour, structure.category, structure.type, structure.side]
        described.append(hashlib.sha256(np.packbits(structure.mask).tobytes()).hexdigest())
    return described
