"""An app of MONAI Label whose masks get better with each submitted label.

The server's process takes the folder's lock, answers and learns. MONAI Label runs ``train`` and ``scoring`` in
processes of their own: these find the lock taken, put what they want done into the inbox, or read what is on disk.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask

from monai_ext.data.images import is_frame, write_mask
from monai_ext.data.manifest import load_datalist
from monai_ext.data.studies import FINAL, Studies, structure_values
from monai_ext.data.text import read_json
from monai_ext.errors import UserError, answer_user_errors
from monai_ext.label.answers import Answers
from monai_ext.label.inbox import Inbox
from monai_ext.label.layout import ONLINE_OPTIONS
from monai_ext.label.online import OnlineService, check_label, take_lock
from monai_ext.label.parts import AUTOMATIC, load_parts

STRATEGY = "lowest_trust"
SECONDS_TO_REPLAY = 24 * 3600.0

logger = logging.getLogger(__name__)


class OnlineInferTask(InferTask):
    """MONAI Label's inference task: prompts -> the fused mask; the answers are kept until they are corrected.

    Args:
        service: None: another process learns in the folder.
        labels: name -> value.
        dimension: 2 or 3.
        folder: of the learners, for the sentence of an error.
        automatic: structures are found without prompts, and viewers need not ask for any.
    """

    def __init__(
        self,
        service: OnlineService | None,
        labels: Mapping[str, int],
        dimension: int,
        folder: Path,
        automatic: bool = False,
    ) -> None:
        about = "SAM with a network that learns from each submitted label"
        kind = InferType.SEGMENTATION if automatic else InferType.DEEPGROW
        super().__init__(kind, dict(labels), dimension, about)
        self.service, self.folder = service, folder

    def is_valid(self) -> bool:
        """Whether the task can be shown: always."""
        return True

    def info(self) -> dict[str, Any]:
        """Return what viewers show, and under ``online`` what has been learned."""
        status = {} if self.service is None else {"online": self.service.status()}
        return {**super().info(), **status}

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Answer a request; returns the mask's file and what is to be said of it."""
        if self.service is None:
            raise UserError(f"another server learns in {self.folder}: end it, or give a folder of its own.")
        path = Path(str(request["image"]))
        if not str(request["image"]) or path.is_dir():
            raise UserError(
                f"study {request.get('study')!r} is no image: name one of the studies; DICOM series have to be "
                "converted, MONAI_LABEL_DICOMWEB_CONVERT_TO_NIFTI=true."
            )
        mask, said = self.service.ask(str(request.get("study") or path.name), path, request)
        suffix = ".png" if is_frame(path) else ".nii.gz"
        with tempfile.NamedTemporaryFile(suffix=suffix, delete=False) as file:
            write_mask(file.name, mask, like=path)
        return file.name, said


class ReplayTask(TrainTask):
    """MONAI Label's training task: learn labels that were never learned, then all anew from each answer's last label.

    Args:
        inbox: of the app.
        labels: name -> value.
        service: None in the process that MONAI Label starts.
    """

    def __init__(self, inbox: Inbox, labels: Mapping[str, int], service: OnlineService | None) -> None:
        super().__init__("learn all final labels anew")
        self.inbox, self.labels, self.service = inbox, labels, service

    def __call__(self, request: Any, datastore: Datastore) -> dict[str, Any]:
        """Put the replay into the inbox and wait until the server has done it."""
        finals = [
            {
                "study": study,
                "image": datastore.get_image_uri(study),
                "label": _label_file(datastore, study, FINAL),
                "values": structure_values(datastore.get_label_info(study, FINAL), self.labels),
            }
            for study in sorted(datastore.get_labeled_images())
        ]
        number = self.inbox.put({"kind": "replay", "finals": finals})
        if self.service is not None:
            self.service.wake()
        end = time.monotonic() + SECONDS_TO_REPLAY
        while time.monotonic() < end:
            outcome = self.inbox.outcome(number)
            if outcome is not None:
                return outcome
            time.sleep(0.2)
        raise UserError("no server has done the replay: start the server; it waits there.")


class LowestTrust(Strategy):
    """The study to look at next: where SAM and what was learned agree least, then those never asked for."""

    def __init__(self, answers: Answers) -> None:
        super().__init__("where SAM and what was learned agree least")
        self.answers = answers

    def __call__(self, request: Any, datastore: Datastore) -> dict[str, Any] | None:
        """Return the study's name as ``id`` and its trust; None: every study has a final label."""
        trusts = {study: self.answers.trust(study) for study in sorted(datastore.get_unlabeled_images())}
        if not trusts:
            return None
        known = {study: trust for study, trust in trusts.items() if trust is not None}
        study = min(known, key=known.__getitem__) if known else next(iter(trusts))
        return {"id": study, "trust": trusts[study]}


class TrustScores(ScoringMethod):
    """Stores with each study how far SAM and what was learned agree on it."""

    def __init__(self, answers: Answers) -> None:
        super().__init__("agreement of SAM and what was learned (Dice)")
        self.answers = answers

    def __call__(self, request: Any, datastore: Datastore) -> dict[str, float]:
        """Return study -> trust, of those that were asked for."""
        found = {study: self.answers.trust(study) for study in datastore.list_images()}
        scores = {study: trust for study, trust in found.items() if trust is not None}
        for study, trust in scores.items():
            datastore.update_image_info(study, {"trust": trust})
        return scores


class OnlineApp(MONAILabelApp):
    """The app; ``online.json`` beside its main.py says which bundle, studies and folder.

    Args:
        app_dir: its folder.
        studies: a folder, or the address of a DICOMweb store.
        conf: of the server; ``models`` is the name of the model.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        answer_user_errors()
        self.options = read_json(Path(app_dir) / ONLINE_OPTIONS)
        self.values: dict[str, int] = self.options["labels"]
        self.model = conf.get("models") or Path(self.options["bundle"]).name
        folder = Path(self.options["folder"])
        self.inbox, self.kept = Inbox(folder), Answers(folder)
        self._lock = take_lock(folder)
        self.service = None if self._lock is None else self._start(folder, studies)
        super().__init__(app_dir, studies, conf, "online", "Learns from each submitted label", labels=self.values)

    def _start(self, folder: Path, studies: str) -> OnlineService:
        datalist = Path(self.options["datalist"])
        parts = load_parts(Path(self.options["bundle"]), datalist, folder, self.options["options"])
        find = Studies(studies) if Path(studies).is_dir() else lambda item: None  # not of a DICOMweb store
        service = OnlineService(parts, folder, _modalities(datalist), find)
        service.start()
        return service

    def init_infers(self) -> dict[str, InferTask]:
        """Return the one model."""
        folder = Path(self.options["folder"])
        automatic = self.options["options"].get("prompt") == AUTOMATIC
        return {self.model: OnlineInferTask(self.service, self.values, self.options["dimension"], folder, automatic)}

    def init_trainers(self) -> dict[str, TrainTask]:
        """Return the replay."""
        return {self.model: ReplayTask(self.inbox, self.values, self.service)}

    def init_strategies(self) -> dict[str, Strategy]:
        """Return what chooses the next study."""
        return {STRATEGY: LowestTrust(self.kept)}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """Return what rates studies."""
        return {"trust": TrustScores(self.kept)}

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Answer a request, whose task needs the study's name beside its file."""
        return dict(super().infer({**request, "study": request.get("image")}, datastore))

    def on_save_label(self, image_id: str, label_id: str) -> dict[str, Any]:
        """Keep a submitted label to be learned; ``online`` of the answer says whether it is, or why not."""
        super().on_save_label(image_id, label_id)
        try:
            number = self._submit(image_id, label_id)
        except UserError as error:
            logger.warning("the label of %s is not learned: %s", image_id, error)
            return {"online": {"status": "ignored", "reason": str(error)}}
        return {"online": {"status": "queued", "submission": number}}

    def _submit(self, study: str, label_id: str) -> str:
        datastore = self.datastore()
        tags = list(datastore.get_labels_by_image_id(study))
        files = {tag: Path(_label_file(datastore, label_id, tag)) for tag in tags}
        there = {tag: path.stat().st_mtime_ns for tag, path in files.items() if path.is_file()}
        tag = max(there, key=lambda one: there[one], default=FINAL)  # the hook is not told which was saved
        if tag != FINAL:
            raise UserError(f"the label is tagged {tag!r}: only those tagged {FINAL!r} are learned.")
        values = structure_values(datastore.get_label_info(label_id, tag), self.values)
        image = Path(datastore.get_image_uri(study))
        check_label(image, files[tag], values)
        what = {"kind": "label", "study": study, "image": str(image), "values": values}
        number = self.inbox.put(what, files[tag], self.kept.of(study))
        if self.service is not None:
            self.service.wake()
        return number


def _label_file(datastore: Datastore, label_id: str, tag: str) -> str:
    """Return the file of a label; a DICOMweb store, asked in its own way, would take the image's series for it."""
    if isinstance(datastore, LocalDatastore):
        return str(LocalDatastore.get_label_uri(datastore, label_id, tag))
    return str(datastore.get_label_uri(label_id, DefaultLabelTag(tag)))


def _modalities(datalist: Path) -> Callable[[Path], str]:
    """Return what finds the modality of a study's file; a file that is not in the list has the list's."""
    cases = load_datalist(datalist)
    known = {Path(case.image).resolve(): case.modality or cases.modality or "" for case in cases.cases}
    return lambda path: known.get(path.resolve(), cases.modality or "")
