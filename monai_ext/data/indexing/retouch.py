"""RETOUCH: OCT volumes of three vendors in MetaImage, converted to NIfTI."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from monai_ext.data.cards import Card
from monai_ext.data.folders import files_below
from monai_ext.data.images import MAX_VOXELS
from monai_ext.data.indexing.index import Index, Options, nothing_found, start_list
from monai_ext.errors import UserError
from monai_ext.files import atomic_path

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


def index_retouch(root: Path, files: Path, card: Card, options: Options) -> Index:
    """Index ``RETOUCH-TrainingSet-<vendor>/TRAIN001/oct.mhd`` with ``reference.mhd``, anywhere below the root.

    Grey values, spacing (B-scans are far apart) and labels stay as they are. Test volumes have no label and are kept.

    Raises:
        UserError: there is no ``oct.mhd``.
    """
    scans = [path for path in files_below(root, (".mhd",)) if path.name.lower() == "oct.mhd"]
    if not scans:
        raise nothing_found(root, card)
    index = Index(start_list(card))
    for scan in tqdm(scans, desc="converting", unit="volume"):
        name, folder = scan.parent.name, scan.parent.parent.name
        entry = {"case": name, "patient": name, "vendor": folder.rpartition("-")[2]}
        entry["split"] = "test" if "testset" in folder.lower() else "train"
        reference = scan.with_name("reference.mhd")
        try:
            entry["image"] = str(convert(scan, files / f"{name}_oct.nii"))
            if reference.is_file():
                entry["label"] = str(convert(reference, files / f"{name}_reference.nii.gz"))
        except UserError as error:
            index.skipped.append((name, str(error)))
            continue
        index.datalist["cases"].append(entry)
    index.notes.append(f"MetaImage was converted to NIfTI in {files.name}/, with its spacing and position")
    return index


def convert(source: Path, target: Path) -> Path:
    """Write a MetaImage volume as NIfTI.

    Raises:
        UserError: the source cannot be read.
    """
    array, affine = read_metaimage(source)
    with atomic_path(target) as temporary:
        nib.save(nib.Nifti1Image(array, affine), temporary)
    return target


def read_metaimage(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a 3-D MetaImage header with its raw or zlib-compressed data file.

    The format is described at https://itk.org/Wiki/MetaIO/Documentation.

    Returns:
        Values [X, Y, Z] and the affine [4, 4] from voxel indices to RAS+ mm.

    Raises:
        UserError: the header or its data are not usable.
    """
    try:
        lines = (line.partition("=") for line in path.read_text(encoding="latin-1").splitlines())
        header = {key.strip(): value.strip() for key, separator, value in lines if separator}
        shape = tuple(int(length) for length in header["DimSize"].split())
        kind = np.dtype(_TYPES[header["ElementType"]])
        affine = _LPS_TO_RAS @ _affine(header)
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: the MetaImage header cannot be read ({error}); download it again") from error
    if len(shape) != 3 or min(shape) < 1 or math.prod(shape) > MAX_VOXELS:
        raise UserError(f"{path}: the header claims the shape {shape}; one 3-D volume is expected")
    if int(header.get("ElementNumberOfChannels", "1")) != 1:
        raise UserError(f"{path}: the voxels have several channels; one is expected")
    msb = header.get("BinaryDataByteOrderMSB", header.get("ElementByteOrderMSB", "False"))
    data = _read_data(path, header, math.prod(shape) * kind.itemsize)
    array = np.frombuffer(data, kind.newbyteorder(">" if msb.lower() == "true" else "<"))
    return array.reshape(shape, order="F").astype(kind, copy=False), affine


def _affine(header: dict[str, str]) -> np.ndarray:
    """Return the affine from voxel indices to LPS mm; a row of TransformMatrix is the direction of one array axis."""
    spacing = _numbers(header, ("ElementSpacing", "ElementSize"), None)
    origin = _numbers(header, ("Offset", "Position", "Origin"), (0.0, 0.0, 0.0))
    directions = _numbers(header, ("TransformMatrix", "Rotation", "Orientation"), tuple(np.eye(3).ravel()))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(directions, (3, 3)).T * spacing
    affine[:3, 3] = origin
    return affine


def _numbers(header: dict[str, str], keys: tuple[str, ...], default: tuple[float, ...] | None) -> tuple[float, ...]:
    text = next((header[key] for key in keys if key in header), None)
    if text is None:
        if default is None:
            raise KeyError(keys[0])
        return default
    return tuple(float(number) for number in text.split())


def _read_data(path: Path, header: dict[str, str], size: int) -> bytes:
    name = header.get("ElementDataFile", "")
    if not name or name in ("LOCAL", "LIST") or Path(name).name != name:
        raise UserError(f"{path}: the data file {name!r} must be a file beside the header; save it as .mhd and .raw")
    try:
        data = path.with_name(name).read_bytes()
        if header.get("CompressedData", "False").lower() == "true":
            data = zlib.decompressobj().decompress(data, size + 1)
    except (OSError, zlib.error) as error:
        raise UserError(f"{path}: the data file {name} cannot be read ({error}); download it again") from error
    if len(data) != size:
        raise UserError(f"{path}: {name} holds {len(data)} bytes, the header needs {size}; download it again")
    return data
