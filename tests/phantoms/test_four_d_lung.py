"""Phantom DICOM looks official to pydicom, is the same each time, and shows what it says."""

from __future__ import annotations

import datetime

import numpy as np
import pydicom
import pytest

from monai_ext.data.dicom.contours import contour_mask
from monai_ext.data.dicom.rtstruct_reader import read_structures
from monai_ext.data.dicom.series import group_headers, read_volume
from phantoms.four_d_lung import write_phantom_4d_lung


@pytest.fixture(scope="module")
def download(tmp_path_factory):
    return write_phantom_4d_lung(tmp_path_factory.mktemp("phantom") / "4D-Lung", gates=(0, 50))


@pytest.fixture(scope="module")
def gates(download):
    """Volume, tumour and header by (date, gate)."""
    found = group_headers(download)
    structures = {s.referenced_series[0]: s for s in map(read, found) if s is not None}
    gates = {}
    for series in found:
        if series.is_image:
            volume, rois = read_volume(series), structures[series.series_uid]
            (tumour,) = rois.find("tumor")
            mask, notes = contour_mask(tumour.contours, volume.array.shape, volume.affine)
            assert notes == []
            gates[series.slices[0].study_date, int(tumour.name[-2:])] = (volume, mask)
    return gates


def read(series):
    return read_structures(series.slices[0].path) if series.modality == "RTSTRUCT" else None


def centre(volume, mask):
    return volume.affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + volume.affine[:3, 3]


def test_two_visits_of_two_gates_across_a_year(gates):
    first, second = datetime.date(2000, 11, 27), datetime.date(2001, 1, 2)
    assert sorted(gates) == [(first, 0), (first, 50), (second, 0), (second, 50)]


def test_tumour_is_soft_tissue_in_the_right_lung(gates):
    for volume, mask in gates.values():
        assert 0 < np.median(volume.array[mask]) < 60
        around = np.roll(mask, 12, axis=1) & ~mask
        assert np.median(volume.array[around]) < -600
        assert centre(volume, mask)[0] > 40  # the patient's right


def test_heart_on_the_left_and_spine_behind(gates):
    volume, _ = next(iter(gates.values()))

    def at(*place):
        voxel = np.rint(np.linalg.inv(volume.affine) @ (*place, 1))[:3].astype(int)
        return volume.array[tuple(voxel)]

    assert -20 < at(-22, 24, -22) < 100
    assert at(60, 24, -22) < -600
    assert at(12, -60, 0) > 150
    assert at(0, 140, 0) < -900


def test_tumour_grows_and_moves_with_the_breath(gates):
    (first, _), *_, (second, _) = sorted(gates)
    size = {key: mask.sum() for key, (_, mask) in gates.items()}
    assert 1.25 < size[second, 0] / size[first, 0] < 2
    drop = centre(*gates[first, 50])[2] - centre(*gates[first, 0])[2]
    assert -12 < drop < -4


@pytest.mark.slow
def test_same_seed_same_bytes(download, tmp_path):
    again = write_phantom_4d_lung(tmp_path, gates=(0, 50))
    files = sorted(path.relative_to(download) for path in download.rglob("*.dcm"))
    assert len(files) == 4 * 17
    assert all((download / name).read_bytes() == (again / name).read_bytes() for name in files)


@pytest.mark.slow
def test_seeds_are_patients_of_their_own(tmp_path):
    for seed in (0, 1, 18):
        write_phantom_4d_lung(tmp_path, seed, visits=1, gates=(0,))
    found = group_headers(tmp_path)
    assert sorted({series.patient_id for series in found}) == ["100_HM10395", "101_HM10396", "118_HM10413"]
    assert len(found) == len({series.series_uid for series in found}) == 6
    slices = [header.sop_instance_uid for series in found for header in series.slices]
    assert len(slices) == len(set(slices)) == 3 * 17


@pytest.mark.filterwarnings("error")
def test_files_keep_the_standard(download):
    for path in download.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        dataset.walk(lambda _, element: str(element))  # pydicom warns of values that break their type
