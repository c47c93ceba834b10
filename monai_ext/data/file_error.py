"""What is wrong with one file, in parts that the doctor can sort, and as the one sentence that stops a run."""

from __future__ import annotations

import os

from monai_ext.errors import UserError


class FileError(UserError):
    """A file that cannot be used; its text is "file: what; fix".

    Args:
        file: the file. On its own it is taken for the whole text: so does torch make an exception of a worker
            process again.
        code: such as "truncated": stays the same when the words change.
        what: what is wrong, without a full stop.
        fix: what to do.
    """

    def __init__(self, file: str | os.PathLike[str], code: str = "", what: str = "", fix: str = "") -> None:
        super().__init__(f"{os.fspath(file)}: {what}; {fix}" if what else os.fspath(file))
        self.file, self.code, self.what, self.fix = os.fspath(file), code, what, fix
