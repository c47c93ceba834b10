"""Alternating rounds of SAM-SP: pseudo-labels -> segmentor -> SAM's decoder -> pseudo-labels ...

The state of a run lies in its folders alone: a stage reads files and leaves a file, the last thing it does. A run that
was killed, started again, skips what is there and goes on inside the stage that was not finished.

    round_0/pseudo_labels/*.nii.gz, agreement.json    made by SAM as it came
    round_0/segmentor.pt                              trained on them
    round_0/sam.pt                                    SAM, its decoder tuned on the segmentor's masks
    round_1/pseudo_labels/...                         made by round_0/sam.pt
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from monai_ext.data.provenance import WeightRecord, record_training
from monai_ext.data.pseudo_labels import PseudoLabels
from monai_ext.data.scribble_slices import ScribbleDataset, read_classes, write_classes
from monai_ext.data.slice_store import StoredCase
from monai_ext.data.text import read_json
from monai_ext.engines.held_out import read_score
from monai_ext.engines.segmentor import PromptedSlices, SamTuning, SegmentorTraining, segment_slices
from monai_ext.errors import UserError
from monai_ext.files import atomic_path, sha256_of
from monai_ext.inferers.embedding_cache import EmbeddingCache
from monai_ext.inferers.prompted_sam import PromptedSamInferer
from monai_ext.networks.sam import PromptableSam, load_weights
from monai_ext.networks.state_dict import refuse_diverged

Callback = Callable[[Path, StoredCase, PseudoLabels], None]
"""Called with a round's folder after each case's pseudo-labels: pictures, Dice. Nothing it finds is used."""


class AlternatingRounds:
    """Puts the stages of a run in their order.

    Args:
        output_dir: of the folders ``round_k``, of ``model.pt`` and its record.
        dataset: all training slices.
        labels: name -> value of the structures.
        segmentor: trains the segmentor.
        record: what is said of the segmentor.
        network: the promptable model; None where the variant needs no pseudo-labels.
        inferer: makes pseudo-labels.
        tuning: tunes the promptable model.
        sam_record: what is said of the tuned model.
        rounds: tunings of the promptable model; 0 trains on the pseudo-labels of the model as it came.
        early_stop: end when a round is no better than the round before, and keep that one's segmentor. A round is
            judged by what its segmentor scores on the scribbles of patients that are not trained on, if there are such;
            otherwise, before it is trained, by how well the pseudo-labels agree with the scribbles that
            prompted them.
        callbacks: see :data:`Callback`.
        validation: slices of patients that are not trained on; None or no slices: there are none.
    """

    def __init__(
        self,
        output_dir: str | Path,
        dataset: ScribbleDataset,
        labels: dict[str, int],
        segmentor: SegmentorTraining,
        record: WeightRecord,
        network: PromptableSam | None = None,
        inferer: PromptedSamInferer | None = None,
        tuning: SamTuning | None = None,
        sam_record: WeightRecord | None = None,
        rounds: int = 2,
        early_stop: bool = True,
        callbacks: Sequence[Callback] = (),
        validation: ScribbleDataset | None = None,
    ) -> None:
        if rounds < 0:
            raise UserError(f"--rounds is {rounds}: give 0 or more.")
        self.output_dir, self.dataset, self.values = Path(output_dir), dataset, list(labels.values())
        self.segmentor, self.record = segmentor, record
        self.network, self.inferer, self.tuning, self.sam_record = network, inferer, tuning, sam_record
        self.max_epochs = rounds + 1
        self.early_stop, self.callbacks = early_stop, callbacks
        self.validation = validation if validation is not None and len(validation) else None
        self._cache: EmbeddingCache | None = None

    def run(self) -> None:
        """Run what is left; ``model.pt`` is written last."""
        last = self._folder(0)
        if self.segmentor.iteration.variant != "sam_sp":
            self._train(last, self._dense_labels() if self.segmentor.iteration.needs_targets else None)
        else:
            for number in range(self.max_epochs):
                folder = self._folder(number)
                targets = self._pseudo_labels(number)
                if self._ends(number, self._agreement, self.validation is None):
                    break
                self._train(folder, targets)
                if self._ends(number, self._held_out_score, self.validation is not None):
                    break
                last = folder
                if number + 1 < self.max_epochs and not self._tune(folder, targets):
                    print(
                        f"round {number}: the segmentor found no structure on any slice that is scribbled on, so SAM "
                        "is not tuned on its masks and the rounds end here; --iterations sets how long it learns"
                    )
                    break
        model = self.output_dir / "model.pt"
        if not model.is_file() or sha256_of(model) != sha256_of(last / "segmentor.pt"):
            with atomic_path(model) as temporary:
                shutil.copyfile(last / "segmentor.pt", temporary)
        record_training(model, self.record, self.output_dir)

    def _folder(self, number: int) -> Path:
        return self.output_dir / f"round_{number}"

    def _ends(self, number: int, score: Callable[[int], float], counts: bool) -> bool:
        """Whether the rounds end at this one because its score, if it counts, has not risen."""
        if not (number and self.early_stop and counts) or score(number) > score(number - 1):
            return False
        print(f"round {number}: agreement with the scribbles has not risen, round {number - 1} is kept")
        return True

    def _held_out_score(self, number: int) -> float:
        return read_score(self._folder(number) / "segmentor")

    def _agreement(self, number: int) -> float:
        return float(read_json(self._folder(number) / "agreement.json")["agreement"])

    def _dense_labels(self) -> dict[str, np.ndarray]:
        for case in self.dataset.data:
            if not case.has("label"):
                raise UserError(f"case {case.case} has no 'label': --variant full trains on dense masks.")
        return {case.case: np.asarray(case.load("label")) for case in self.dataset.data}

    @property
    def cache(self) -> EmbeddingCache:
        """Embeddings of all rounds: the encoder does not change."""
        if self._cache is None:
            self._cache = EmbeddingCache(self.output_dir / "embeddings", self._sam())
        return self._cache

    def _sam(self) -> PromptableSam:
        if self.network is None or self.inferer is None:
            raise ValueError("the rounds of SAM-SP need a promptable network and its inferer")
        return self.network

    def _pseudo_labels(self, number: int) -> dict[str, np.ndarray]:
        """Make the pseudo-labels of a round, case by case; return those of all cases."""
        folder, network = self._folder(number), self._sam()
        done = folder / "agreement.json"
        paths = {case.case: folder / "pseudo_labels" / f"{case.case}.nii.gz" for case in self.dataset.data}
        if done.is_file():
            return {name: read_classes(path, self.values) for name, path in paths.items()}
        if number:
            load_weights(network, self._folder(number - 1) / "sam.pt", "sam")
        network.eval()
        made: dict[str, np.ndarray] = {}
        agreed = scribbled = 0
        for n, case in enumerate(self.dataset.data):
            images, scribbles = (np.asarray(x[n]) for x in (self.dataset.images, self.dataset.scribbles))
            found = self.inferer(images, network, scribbles, case.case, self.cache)  # type: ignore[misc]
            write_classes(paths[case.case], found.labels, np.asarray(case.load("affine")), self.values)
            made[case.case] = found.labels
            for callback in self.callbacks:
                callback(folder, case, found)
            agreed, scribbled = agreed + found.agreed, scribbled + found.scribbled
        with atomic_path(done) as temporary:
            share = agreed / max(1, scribbled)
            temporary.write_text(json.dumps({"agreement": share, "scribbled_pixels": scribbled}) + "\n")
        return made

    def _train(self, folder: Path, targets: dict[str, np.ndarray] | None) -> None:
        path = folder / "segmentor.pt"
        if not path.is_file():
            network = self.segmentor.run(self.dataset.with_targets(targets), folder / "segmentor", self.validation)
            _save(path, network)
            (folder / "segmentor" / "checkpoint.pt").unlink(missing_ok=True)
        record_training(path, self.record, self.output_dir)

    def _tune(self, folder: Path, targets: dict[str, np.ndarray]) -> bool:
        """Tune the promptable model on the masks of a round's segmentor; False where it found nothing to tune on."""
        network, tuning, inferer = self._sam(), self.tuning, self.inferer
        if tuning is None or inferer is None or self.sam_record is None:
            raise ValueError("rounds above 0 need a tuning and its record")
        path = folder / "sam.pt"
        if path.is_file():
            record_training(path, self.sam_record, self.output_dir)
            return True
        earlier = folder.with_name(f"round_{int(folder.name.rpartition('_')[2]) - 1}") / "sam.pt"
        if earlier.is_file():  # a run that goes on must not tune the model as it came
            load_weights(network, earlier, "sam")
        segmentor = deepcopy(self.segmentor.network)  # every training starts from the same weights
        load_weights(segmentor, folder / "segmentor.pt", "segmentor")
        segmentor = segmentor.to(self.segmentor.device).eval()
        masks: dict[str, Any] = {
            case.case: segment_slices(segmentor, self.dataset.images[n], self.dataset, self.segmentor.device)
            for n, case in enumerate(self.dataset.data)
        }
        slices = PromptedSlices(self.dataset, masks, targets, inferer, self.cache, tuning.keep)
        if not len(slices):
            return False
        tuning.run(network, slices, folder / "sam")
        _save(path, network)
        record_training(path, self.sam_record, self.output_dir)
        (folder / "sam" / "checkpoint.pt").unlink(missing_ok=True)
        return True


def _save(path: Path, network: nn.Module) -> None:
    """Write a plain state dict in full precision: steps of 5e-6 would be lost in half.

    Raises:
        UserError: the weights are not finite.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    for name, value in state.items():
        refuse_diverged(name, value)
    buffer = io.BytesIO()  # torch writes a file's name into it, and that of a temporary file differs each time
    torch.save(state, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
