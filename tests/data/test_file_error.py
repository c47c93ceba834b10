from __future__ import annotations

import pickle

from monai_ext.data.file_error import FileError
from monai_ext.errors import UserError


def test_text_is_file_what_and_fix() -> None:
    error = FileError("a.nii", "truncated", "the file is truncated", "copy it again")
    assert str(error) == "a.nii: the file is truncated; copy it again"
    assert isinstance(error, UserError)


def test_it_passes_from_one_process_to_another() -> None:
    error = pickle.loads(pickle.dumps(FileError("a.nii", "truncated", "the file is truncated", "copy it again")))
    assert str(error) == "a.nii: the file is truncated; copy it again"
    assert (error.file, error.code, error.fix) == ("a.nii", "truncated", "copy it again")


def test_it_can_be_made_of_its_text_alone() -> None:
    assert (
        str(FileError("a.nii: the file is truncated; copy it again")) == "a.nii: the file is truncated; copy it again"
    )
