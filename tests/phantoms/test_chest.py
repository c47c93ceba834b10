from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import ndimage

from monai_ext.data.images import read_geometry, read_image, read_label
from phantoms.chest import cord_outline, phantom_chest, scan_chest, write_phantom_chest


@pytest.fixture(scope="module")
def chests():
    return phantom_chest(0, visits=3)


def test_values_are_hounsfield_units(chests):
    for visit in chests:
        assert visit.image.min() < -950
        assert visit.image.max() > 200  # bone
        share_of_lung = ((visit.image > -900) & (visit.image < -700)).mean()
        assert 0.05 < share_of_lung < 0.4
        assert 0 < np.median(visit.image[visit.label == 1]) < 80  # soft tissue


def test_tumour_grows_in_one_piece_inside_the_lung(chests):
    volumes = [int(visit.label.sum()) for visit in chests]
    assert 1.2 * volumes[0] < volumes[1]
    assert 1.1 * volumes[1] < volumes[2]
    for visit in chests:
        assert ndimage.label(visit.label)[1] == 1
        shell = ndimage.binary_dilation(visit.label, iterations=3) & ~ndimage.binary_dilation(visit.label)
        assert np.median(visit.image[shell]) < -400


def test_tumour_lies_on_the_patients_right_and_the_cord_behind(chests):
    for visit in chests:
        centre = visit.affine[:3, :3] @ ndimage.center_of_mass(visit.label) + visit.affine[:3, 3]
        assert centre[0] > 30  # RAS+: x grows towards the patient's right
    assert cord_outline(0.0)[:, 1].mean() > 50  # LPS: y grows towards the back


def test_breath_moves_the_tumour_down():
    still, deep = (scan_chest(0, 0, gate, np.random.default_rng(0)) for gate in (0, 50))
    assert deep.tumour.centre[2] == still.tumour.centre[2] - 9


def test_outline_and_label_agree():
    scan = scan_chest(0, 1, 0, np.random.default_rng(0))
    height = scan.affine[2, 3] + scan.affine[2, 2] * 8
    outline = scan.tumour.contour(float(height))
    inside = scan.label[:, :, 8].sum() * abs(scan.affine[0, 0] * scan.affine[1, 1])
    x, y = outline[:, 0], outline[:, 1]
    area = abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2
    assert inside == pytest.approx(area, rel=0.05)


@pytest.mark.slow
def test_files_hold_the_arrays(tmp_path, chests):
    path = write_phantom_chest(tmp_path)
    content = json.loads(path.read_text())
    assert (content["modality"], content["labels"]) == ("CT", {"tumour": 1})
    for case, visit in zip(content["cases"], chests, strict=True):
        np.testing.assert_array_equal(read_image(tmp_path / case["image"]), np.rint(visit.image))
        np.testing.assert_array_equal(read_label(tmp_path / case["label"]), visit.label)
        np.testing.assert_allclose(read_geometry(tmp_path / case["image"]).affine, visit.affine, atol=1e-4)


@pytest.mark.slow
def test_same_seed_same_bytes(tmp_path):
    first, second = (write_phantom_chest(tmp_path / name, seed=2, visits=1).parent for name in "ab")
    for one in first.iterdir():
        assert one.read_bytes() == (second / one.name).read_bytes()
    assert not np.array_equal(phantom_chest(2, 1)[0].image, phantom_chest(3, 1)[0].image)
