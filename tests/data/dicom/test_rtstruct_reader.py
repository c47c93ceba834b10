"""RTSTRUCT files are read by number and name, sloppy ones too, and ambiguous numbers are marked."""

from __future__ import annotations

import copy

import numpy as np
import pydicom
import pytest

from monai_ext.data.dicom.rtstruct_reader import read_structures
from monai_ext.data.phantoms.dicom import write_ct_series, write_rtstruct
from monai_ext.errors import UserError

AFFINE = np.diag([-0.8, -1.3, 3.0, 1.0])
CIRCLE = 2 * np.pi * np.arange(720) / 720


def circle(k, radius=10.0):
    """Outline in LPS mm on slice k."""
    return np.stack([25 + radius * np.cos(CIRCLE), 30 + radius * np.sin(CIRCLE), np.full(720, 3.0 * k)], axis=1)


@pytest.fixture
def written(tmp_path):
    """A CT and an RTSTRUCT of three ROIs whose contours are stored in another order."""
    files = write_ct_series(tmp_path / "ct", np.zeros((64, 56, 7)), AFFINE)
    rois = {
        "Cord": [circle(2, 3.0)],
        "Tumor_c00": [circle(k) for k in (3, 4)],
        "empty": [],
    }
    return write_rtstruct(tmp_path / "rt.dcm", files, rois, shuffle=True)


def test_rois_are_matched_by_number(written):
    path = written
    dataset = pydicom.dcmread(path)
    numbers = [item.ROINumber for item in dataset.StructureSetROISequence]
    assert numbers != [item.ReferencedROINumber for item in dataset.ROIContourSequence]  # the orders differ
    structures = read_structures(path)
    (tumour,) = structures.find("tumou?r")
    for contour, k in zip(tumour.contours, (3, 4), strict=True):
        np.testing.assert_allclose(contour.points, circle(k), atol=1e-6)
    assert structures.find("empty") == ()


def test_structure_set_knows_what_it_refers_to(written):
    path = written
    structures, (first, *_) = read_structures(path), sorted((path.parent / "ct").iterdir())
    header = pydicom.dcmread(first)
    assert structures.referenced_series == (header.SeriesInstanceUID,)
    assert structures.frame_of_reference_uid == header.FrameOfReferenceUID
    (uid,) = structures.find("cord")[0].contours[0].image_uids
    assert uid.startswith("1.2.826")


def test_only_asked_contours_are_read(written):
    rois = {roi.name: roi.contours for roi in read_structures(written, "tumor").rois}
    assert rois["Cord"] is None
    assert len(rois["Tumor_c00"]) == 2


def test_sloppy_structure_sets(written):
    path = written
    dataset = pydicom.dcmread(path)
    del dataset.ReferencedFrameOfReferenceSequence
    for item in dataset.StructureSetROISequence:
        del item.ReferencedFrameOfReferenceUID
    for item in dataset.ROIContourSequence:
        for contour in item.ContourSequence:
            del contour.ContourImageSequence
    del dataset.ROIContourSequence[0]
    dataset.save_as(path)
    structures = read_structures(path)
    assert (structures.referenced_series, structures.frame_of_reference_uid) == ((), "")
    assert [roi.name for roi in structures.find("")] == ["Cord", "Tumor_c00"]


def test_an_image_is_no_structure_set(written):
    image = next((written.parent / "ct").iterdir())
    with pytest.raises(UserError, match="holds CT, not RTSTRUCT"):
        read_structures(image)


@pytest.mark.parametrize("values", [["1", "2", "3", "4"], ["1", "nan", "3"], ["1", "x", "3"]])
@pytest.mark.filterwarnings("ignore:.*DS")
def test_damaged_points(written, values):
    path = written
    dataset = pydicom.dcmread(path)
    contour = dataset.ROIContourSequence[1].ContourSequence[0]
    contour.ContourData = ["1"] * len(values)
    contour["ContourData"] = pydicom.dataelem.RawDataElement(
        contour["ContourData"].tag, "DS", 0, b"", 0, False, True
    )._replace(value="\\".join(values).encode() + b" " * (len("\\".join(values)) % 2))
    dataset.save_as(path)
    with pytest.raises(UserError, match="damaged DICOM file"):
        read_structures(path)


def edit(path, change):
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


def test_two_rois_of_one_number_are_marked(written):
    def renumber(dataset):
        for item in dataset.StructureSetROISequence[:2]:
            item.ROINumber = 3
        for item in dataset.ROIContourSequence[-2:]:
            item.ReferencedROINumber = 3

    edit(written, renumber)
    cord, tumour, empty = read_structures(written).rois
    assert cord.problem.startswith("shares the ROINumber 3 with 'Tumor_c00', so that it is open whose contours")
    assert tumour.problem.startswith("shares the ROINumber 3 with 'Cord'")
    assert (empty.name, empty.problem) == ("empty", "")


def test_a_roi_listed_twice_is_one(written):
    def twice(dataset):
        dataset.StructureSetROISequence.append(copy.deepcopy(dataset.StructureSetROISequence[1]))

    edit(written, twice)
    structures = read_structures(written)
    assert [(roi.name, roi.problem) for roi in structures.rois] == [("Cord", ""), ("Tumor_c00", ""), ("empty", "")]


def test_contours_in_two_items_of_one_number_belong_together(written):
    def split(dataset):
        (item,) = [item for item in dataset.ROIContourSequence if len(item.get("ContourSequence", ())) == 2]
        other = copy.deepcopy(item)
        item.ContourSequence, other.ContourSequence = item.ContourSequence[:1], other.ContourSequence[1:]
        dataset.ROIContourSequence.append(other)

    edit(written, split)
    (tumour,) = read_structures(written).find("tumor")
    assert len(tumour.contours) == 2


def test_contours_without_a_name_are_named_by_their_number(written):
    edit(written, lambda dataset: setattr(dataset.StructureSetROISequence[0], "ROINumber", 9))
    structures = read_structures(written)
    assert structures.find_empty("cord") == ("Cord",)
    (note,) = structures.notes
    assert note == "contours of the ROINumber 3, which StructureSetROISequence does not name, are passed over"
