"""People's own folders: images/ and labels/, nnU-Net's, NAME_image beside NAME_label, or patient/visit/."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monai_ext.data.dicom.reading import has_preamble
from monai_ext.data.folders import files_below
from monai_ext.data.images import is_frame
from monai_ext.data.indexing.arrangement import IMAGE_FOLDERS, LABEL_FOLDERS, SCRIBBLE_FOLDERS, SUFFIXES, Found, arrange
from monai_ext.data.indexing.index import CaseEntry, Index, Options, label_values, parse_visit_or_date, stem
from monai_ext.data.indexing.parts import PartJoiner, Parts, add_part, skip_misnamed, structure_called
from monai_ext.data.indexing.pictures import MaskCleaner
from monai_ext.data.indexing.visits import patients_and_visits
from monai_ext.data.text import read_json
from monai_ext.errors import UserError

TEST = "test/"  # in front of the names of nnU-Net's imagesTs and labelsTs
LABEL_ENDINGS = ("_label", "_labels", "_mask", "_seg", "_segmentation", "_gt", "_manual")
ENDINGS = ("", *LABEL_ENDINGS, "_scribble")
IMAGE_ENDINGS = ("_image", "_img")
UNREADABLE = (".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".hdr", ".mgz", ".gipl", ".npy", ".npz", ".webp", ".gif")
LOSSY = (".jpg", ".jpeg")
LOOKED_AT = 100  # files, to tell whether a folder holds DICOM
MOST_VALUES = 50  # more values than that are grey levels and not structures

_CHANNEL = re.compile(r"_([0-9]{4})$")


def index_folder(root: Path, files: Path, options: Options) -> Index:
    """Index a folder of the user's own.

    Images and labels are matched by their path below their folder, without suffix; a label's name may end in
    ``_mask``, ``_seg`` or the like, an image's in ``_image`` or in nnU-Net's channel ``_0000`` (of which the first
    counts). Without a folder of images, see :func:`monai_ext.data.indexing.arrangement.arrange`; folders with one image
    each are visits of the patients above (:mod:`monai_ext.data.indexing.visits`). Images without a label are kept.
    Where ``--labels`` names several structures, files called as they are masks of one structure each, which are joined
    (:mod:`monai_ext.data.indexing.parts`). Label values come from ``--labels``, from nnU-Net's ``dataset.json``, or
    from the label maps.

    Raises:
        UserError: there are no images, or the labels' values cannot be told.
    """
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; correct its name")
    found = find_files(root, files, options)
    images, labels, scribbles = found.images, found.labels, found.scribbles
    if not images:
        if _holds_dicom(root):
            raise UserError(f"{root}: these are DICOM files; index them with dicom in place of folder")
        raise UserError(
            f"{root}: there is neither a folder images/ nor files NAME_image (or NAME) and NAME_label, nor folders "
            "PATIENT/VISIT/ with an image and its mask; arrange it so"
            + (", or correct --image_pattern" if options.image_pattern is not None else "")
        )
    index = Index({"dataset": root.name, "modality": None, "labels": {}, "cases": []})
    index.skipped += found.skipped
    index.skipped += [
        (
            str(path),
            "DICOM is no kind of file for folder; index it with dicom"
            if path.suffix.lower() == ".dcm"
            else "this kind of file cannot be read; convert it to .nii.gz or .png",
        )
        for path in files_below(root, UNREADABLE)
    ]
    channels = _first_channels(images, index)
    visits, told = patients_and_visits(found.folders.values()) if options.patient_pattern is None else ({}, [])
    has_tests = any(name.startswith(TEST) for name in channels)
    for name in channels:
        case = name.removeprefix(TEST).replace("/", "_")
        entry: CaseEntry = {"case": case, "image": str(images[channels[name]])}
        entry |= patient_of(entry["case"], options.patient_pattern) | visits.get(
            found.folders.get(channels[name], ""), {}
        )
        for key, files_found in (("label", labels), ("scribble", scribbles)):
            match = _match(name, files_found)
            entry[key] = str(match) if match is not None else None
        if has_tests:
            entry["split"] = "test" if name.startswith(TEST) else "train"
        index.datalist["cases"].append(entry)
    maps = {name: path for name, path in labels.items() if str(path) not in found.parts}
    _report_lonely(maps, channels, index)
    described = _nnunet(root)
    if options.labels is not None and len(options.labels) > 1 and options.threshold is None:
        ignore = options.ignore if options.ignore is not None else described.get("ignore")
        if found.parts:
            PartJoiner(files, options.labels, index, ignore).join_all(found.parts)
        if not options.headers_only:
            skip_misnamed(index, options.labels, ignore)
    if maps and not any(entry["label"] for entry in index.datalist["cases"]):
        image, label = (stem(next(iter(files_found.values()))) for files_found in (images, maps))
        index.notes.append(
            f"no label map has the name of an image (such as {label!r} and {image!r}): cases are listed without; give "
            "both the same name, a label's with _label at its end if you like"
        )
    index.datalist |= {key: value for key, value in described.items() if value is not None}
    name_labels(index, files, options)
    index.notes += [*told, *_shared_visits(index.datalist["cases"])]
    if visits:
        index.notes.append("patients and visits are folders, PATIENT/VISIT; --patient_pattern finds them in the names")
    elif options.patient_pattern is None:
        index.notes.append("no patients and visits: --patient_pattern finds them in the names, for follow-ups")
    if index.datalist["modality"] is None and options.modality is None:
        index.notes.append("no modality: CT needs --modality CT for its intensity window")
    return index


def _shared_visits(cases: Sequence[CaseEntry]) -> Iterator[str]:
    """Say of annotated images that count as one visit of one patient: folders may hold different people of one name."""
    together: dict[tuple[Any, Any], list[str]] = {}
    for case in cases:
        if case["label"] and case.get("visit") is not None:
            together.setdefault((case["patient"], case["visit"]), []).append(case["case"])
    for (patient, visit), names in together.items():
        if len(names) > 1:
            yield (
                f"{patient} has {len(names)} annotated images of visit {visit} ({', '.join(names[:3])}"
                f"{', ...' if len(names) > 3 else ''}), which serve together; if they are of different people, let "
                "--patient_pattern find more of the name"
            )


def _holds_dicom(root: Path) -> bool:
    return any(has_preamble(path) for path in files_below(root, ("",))[:LOOKED_AT] if path.is_file())


def patient_of(case: str, pattern: re.Pattern[str] | None) -> CaseEntry:
    """Find patient and visit in a case's name; empty without a pattern.

    Raises:
        UserError: the pattern has no group ``patient``, does not match, or its visit is neither a number nor a date.
    """
    if pattern is None:
        return {}
    if "patient" not in pattern.groupindex:
        raise UserError(f"--patient_pattern: {pattern.pattern!r} has no group (?P<patient>...); add it")
    match = pattern.search(case)
    if match is None:
        raise UserError(f"--patient_pattern: {pattern.pattern!r} does not match the case {case!r}; correct it")
    found: CaseEntry = {"patient": match["patient"]}
    if "visit" in pattern.groupindex and match["visit"] is not None:
        found["visit"] = parse_visit_or_date(match["visit"])
        if found["visit"] is None:
            raise UserError(
                f"--patient_pattern: the visit {match['visit']!r} of case {case!r} is neither a number nor a date "
                "(2023-04-15 or 20230415); correct the pattern"
            )
    return found


# Files


def find_files(root: Path, written: Path, options: Options) -> Found:
    """Return the images, labels and scribbles below a folder by name; patterns choose among them.

    Args:
        root: the folder.
        written: the folder of label maps that indexing writes, which may lie below; what it holds is left out.
        options: of the command line.
    """
    folders = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}

    def there(*names: str) -> list[Path]:
        return [folders[name.lower()] for name in names if name.lower() in folders]

    if not there(*IMAGE_FOLDERS):
        paths = [path for path in files_below(root, SUFFIXES) if not path.is_relative_to(written)]
        return arrange(paths, root, options.labels or (), options.image_pattern, options.label_pattern)
    images, labels, scribbles = (_below(there(*names)) for names in (IMAGE_FOLDERS, LABEL_FOLDERS, SCRIBBLE_FOLDERS))
    for found, name in ((images, "imagesTs"), (labels, "labelsTs")):
        found |= {f"{TEST}{key}": path for key, path in _below(there(name)).items()}
    images, labels = _chosen(images, root, options.image_pattern), _chosen(labels, root, options.label_pattern)
    labels, parts = _gather_parts(labels, images, options)
    return Found(images, labels, scribbles, parts=parts)


def _gather_parts(
    labels: dict[str, Path], images: Iterable[str], options: Options
) -> tuple[dict[str, Path], dict[str, Parts]]:
    """Replace ``labels/p1_liver`` and ``labels/p1/liver`` by the label map of ``images/p1`` that they belong to."""
    structures = options.labels or {}
    if len(structures) < 2 or options.threshold is not None:
        return labels, {}
    bare = {_bare(_CHANNEL.sub("", name)) for name in images}
    parts: dict[str, Parts] = {}
    left = dict(labels)
    for name, path in labels.items():
        folder, _, own = name.rpartition("/")
        said = structure_called(own, structures, [ending[1:] for ending in LABEL_ENDINGS])
        image = "/".join(part for part in (folder, said[0] if said else own) if part)
        if said is not None and image in bare and name not in bare:
            add_part(parts.setdefault(image, {}), said[1], path)
            del left[name]
    for image, of_image in parts.items():
        if (given := next((left[name] for name in _names(image) if name in left), None)) is not None:
            listed = ", ".join(part.name for part in of_image.values())
            raise UserError(
                f"{given}: of the same image as masks of one structure each ({listed}); choose with --label_pattern"
            )
        left[image] = next(iter(of_image.values()))
    return left, {str(left[image]): of_image for image, of_image in parts.items()}


def _below(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the files of the first folder that has any, by their path below it without suffix."""
    for folder in folders:
        found: dict[str, Path] = {}
        for path in files_below(folder, SUFFIXES):
            name = (path.relative_to(folder).parent / stem(path)).as_posix()
            if name in found:
                raise UserError(f"{path}: the same name as {found[name]}; remove one of them")
            found[name] = path
        if found:
            return found
    return {}


def _chosen(found: dict[str, Path], root: Path, pattern: re.Pattern[str] | None) -> dict[str, Path]:
    if pattern is None:
        return found
    return {name: path for name, path in found.items() if pattern.search(path.relative_to(root).as_posix())}


def _first_channels(images: dict[str, Path], index: Index) -> dict[str, str]:
    """Return the key in ``images`` of each case; further channels of nnU-Net are skipped."""
    cases: dict[str, str] = {}
    for name in sorted(images):
        channel = _CHANNEL.search(name)
        case = name[: channel.start()] if channel else name
        if case in cases:
            index.skipped.append((str(images[name]), "a further channel: an image has one"))
        else:
            cases[case] = name
    return cases


def _names(case: str) -> list[str]:
    """Return the names that the label map of a case may have."""
    return [name + ending for name in dict.fromkeys((case, _bare(case))) for ending in ENDINGS]


def _bare(case: str) -> str:
    return next((case.removesuffix(ending) for ending in IMAGE_ENDINGS if case.endswith(ending)), case)


def _match(case: str, found: dict[str, Path]) -> Path | None:
    return next((found[name] for name in _names(case) if name in found), None)


def _report_lonely(labels: dict[str, Path], cases: Iterable[str], index: Index) -> None:
    names = {name for case in cases for name in _names(case)}
    index.skipped += [
        (str(path), "a label without an image of this name") for name, path in labels.items() if name not in names
    ]


# Labels


def _nnunet(root: Path) -> dict[str, Any]:
    """Read name, modality, labels and ignore value of nnU-Net's ``dataset.json`` (both versions), if there is one."""
    path = root / "dataset.json"
    if not path.is_file():
        return {}
    try:
        content = read_json(path)
        named = [(k, v) if str(k).isdecimal() else (v, k) for k, v in content["labels"].items()]
        labels = {name: int(value) for value, name in named if not isinstance(value, list)}
        channel = next(iter((content.get("channel_names") or content.get("modality") or {"0": None}).values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: this is no dataset.json of nnU-Net ({error}); correct or remove it") from error
    modality = None if channel is None else ("CT" if str(channel).upper() == "CT" else str(channel))
    structures = {name: value for name, value in labels.items() if value > 0 and name != "ignore"}
    return {"dataset": content.get("name"), "modality": modality, "labels": structures, "ignore": labels.get("ignore")}


def name_labels(index: Index, files: Path, options: Options) -> None:
    """Fill in ``labels``: from the command line, from ``dataset.json``, or from what the label maps hold."""
    if options.labels is not None:
        index.datalist["labels"] = dict(options.labels)
    if options.ignore is not None:
        index.datalist["ignore"] = options.ignore
    if options.threshold is not None:
        _binarise(index, files, options.threshold)
    if index.datalist["labels"]:
        return
    cases = index.datalist["cases"]
    labels, scribbles = ([entry[key] for entry in cases if entry.get(key)] for key in ("label", "scribble"))
    maps = [*labels, *scribbles]
    if options.headers_only or not maps:
        raise UserError("say which value each structure has in the label maps: --labels NAME=VALUE ...")
    if lossy := next((path for path in maps if path.lower().endswith(LOSSY)), None):
        raise UserError(
            f"{lossy}: a JPEG blurs the values of a label map; add --threshold 128 (one structure), or save label maps "
            "as PNG"
        )
    drawn, found = _values(scribbles), _values(labels)
    if index.datalist.get("ignore") is None and labels and (undrawn := drawn - found - {0}):
        value = max(undrawn)
        index.notes.append(
            f"the value {value} stands in scribbles only; if it is what nobody drew, add --ignore {value}"
        )
    values = sorted((found | drawn) - {0, index.datalist.get("ignore")})
    if not values or values[0] < 0 or len(values) > MOST_VALUES:
        raise UserError(
            f"the label maps hold {len(values)} different values besides 0: no structures can be told from them; name "
            "them with --labels NAME=VALUE, or, for grey masks, add --threshold 128"
        )
    index.datalist["labels"] = {f"label_{value}": value for value in values}
    index.notes.append("the structures are named after their values; name them with --labels NAME=VALUE ...")


def _values(maps: Sequence[str]) -> set[int]:
    """Return the values of all label maps that can be read; the others are named when cases are checked.

    Raises:
        UserError: none can be read.
    """
    found, mistakes = set[int](), []
    for path in tqdm(maps, desc="reading labels", unit="map", leave=False):
        try:
            found |= label_values(path)
        except UserError as error:
            mistakes.append(error)
    if mistakes and len(mistakes) == len(maps):
        raise mistakes[0]
    return found


def _binarise(index: Index, files: Path, threshold: int) -> None:
    """Replace grey masks by clean ones of the only structure."""
    index.datalist["labels"] = index.datalist["labels"] or {"foreground": 255}
    if len(index.datalist["labels"]) > 1:
        raise UserError("--threshold makes one structure; give one --labels NAME=VALUE with it")
    cleaner = MaskCleaner(files, next(iter(index.datalist["labels"].values())), threshold)
    for entry in tqdm(index.datalist["cases"], desc="reading masks", unit="mask"):
        if entry["label"] is None:
            continue
        if not is_frame(entry["label"]):
            raise UserError(f"{entry['label']}: --threshold is for pictures; save the volume as a label map")
        entry["label"] = str(cleaner.clean([Path(entry["label"])], entry["case"]))
    if cleaner.written:
        index.notes.append(f"{cleaner.written} masks were cut at grey value {threshold} and written to {files.name}/")
