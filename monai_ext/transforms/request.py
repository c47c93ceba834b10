"""What a viewer's request says beside the image, put where an inferer finds it: into the image's meta."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

from monai_ext.errors import UserError

REQUEST = "request"
"""Key of the meta; its value: ``reference_image``, ``reference_label``, ``reference_choice``, ``labels``, ``clicks``,
``modality``, ``reference_modality`` (of each reference), and ``answer``, what the server returns beside the mask, to
which an inferer may add."""


class Requestd(MapTransform):
    """Attach the reference and the clicks of a MONAI Label request to the loaded image.

    MONAI Label hands ``inferer(image, network)`` the image alone, while every parameter of a request is an item of the
    data here. An item that is no request (``python -m monai.bundle run``) passes as it is.

    Args:
        keys: the loaded image.
        find: item -> reference and labels, or None; see :class:`monai_ext.data.studies.Studies`.
        options: (path, labels) -> items that say how the mask is to be written.
        allow_missing_keys: do not raise for a key that is absent.

    A request's items: ``foreground`` and ``background``, lists of clicks as voxel indices of the image file;
    ``structure``, the name of the one they are meant for; ``reference``, see ``find``. The item ``result``, which the
    server returns, tells labels and reference.

    Raises:
        UserError: clicks that are none, an unknown structure, or what ``find`` raises.
    """

    def __init__(
        self,
        keys: KeysCollection,
        find: Callable[[Mapping[Any, Any]], dict[str, Any] | None],
        options: Callable[[str, Mapping[str, int]], dict[str, str]],
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.find, self.options = find, options

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        found = self.find(d)
        if found is None:
            return d
        labels = found["labels"]
        structure = d.get("structure") or None
        if structure is not None and structure not in labels:
            raise UserError(f"structure {structure!r} is not on the reference: it has {', '.join(labels)}.")
        clicks = [
            {"index": index, "positive": positive, "structure": structure}
            for key, positive in (("foreground", True), ("background", False))
            for index in _indices(d.get(key), key)
        ]
        asked = d.get("modality")  # a request's own goes before what the list says, for its references, too
        if found["modality"] and not asked:
            d["modality"] = found["modality"]
        for name, value in self.options(str(d["image_path"]), labels).items():
            d[name] = d.get(name) or value
        answer: dict[str, Any] = {"labels": labels, "reference": found["reference"]}
        d["result"] = answer
        for key in self.key_iterator(d):
            d[key].meta[REQUEST] = {
                "reference_image": found["reference_image"],
                "reference_label": found["reference_label"],
                "reference_choice": found["reference_choice"],
                "labels": labels,
                "clicks": clicks,
                "modality": d.get("modality"),
                "reference_modality": None if asked else found.get("reference_modality"),
                "answer": answer,
            }
        return d


def _indices(value: Any, name: str) -> list[list[float]]:
    """Read clicks: [[i, j, k], ...] (a frame: [[i, j], ...]), one click without the outer list, or JSON text of it."""
    if value is None or value == "":
        return []
    try:
        clicks = json.loads(value) if isinstance(value, str) else value
        if isinstance(clicks, Sequence) and len(clicks) and not isinstance(clicks[0], Sequence):
            clicks = [clicks]
        indices = [[float(number) for number in click] for click in clicks]
    except (TypeError, ValueError):
        indices = [[]]
    if any(len(index) not in (2, 3) for index in indices):
        raise UserError(f"{name} is {value!r}: give clicks as voxel indices of the image, such as [[120, 96, 14]].")
    return indices
