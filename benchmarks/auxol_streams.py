"""AuxOL and what it is compared with on one stream: every method sees the same prompts of the same slices.

``python benchmarks/auxol_streams.py LIST.json --checkpoint compact_chaos --slices 5 --orders 0 --output_dir OUT``

The protocol is that of ``bundles/auxol/configs/stream.yaml`` with ``--order``: patients shuffled, all volumes of a
patient together, prompts and corrections from the true masks, each slice answered before anything of it is learned.
SAM encodes a slice once for all methods. Written is ``OUT/<data set>_<order>.csv``: a row for each kind of prompt,
slice and structure, with the Dice of each method on the slice, in the input frame. ``benchmarks/auxol_tables.py``
reads these.

Of a volume at most ``--slices`` slices are taken, spread evenly over those that get a prompt.

Columns: ``sam`` (whole mask), ``ellipse`` (inscribed in the box; after a point in the box of SAM's mask),
``mean_crop``, ``memory``, ``auxol_0``, ``_25``, ``_50``, ``_100`` (per cent of the slices corrected; 0 is SAM within
the crop), and of the run with 100 %: ``own`` (the network alone), ``half`` (fixed alpha 0.5), ``alpha``. Learners of
their own, named with ``--more``, are ``single`` (batch of one), ``fifo``, ``direct`` (DirectOL: SAM's decoder learns;
``--direct_rate``, ``--direct_steps``), ``below_85`` (corrected where its own Dice is below 0.85), ``pseudo_25`` (as
``auxol_25``, and it learns from its own mask where nobody corrects) and ``pseudo_0`` (its own masks alone; alpha is
0.5, as none can be learned without a correction). ``--only`` leaves out all that ``--more`` does not name, for a
second table of the same order: ``OUT/<data set>_<order>_more.csv``.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_ext.data.manifest import DataList, load_datalist
from monai_ext.data.pairs import single_images
from monai_ext.data.phantoms import write_phantom_stream
from monai_ext.data.streams import order_stream
from monai_ext.engines.online.auxiliary import AuxiliaryFusion, AuxiliarySettings
from monai_ext.engines.online.fusion import fuse
from monai_ext.engines.online.learner import OnlineLearner, Pending
from monai_ext.engines.online.rivals import DirectOnline, InscribedEllipse, MeanCrop, Remembering
from monai_ext.engines.online.view import OnlineMethod
from monai_ext.inferers.encoding import encode_slice
from monai_ext.inferers.online import OnlineInferer, dice
from monai_ext.inferers.reference import plain
from monai_ext.inferers.reference_inferer import BACKGROUND
from monai_ext.inferers.simulated_user import PROMPTS, Expert, TruthPrompts
from monai_ext.inferers.view import View
from monai_ext.networks.backbone import PromptableNetwork
from monai_ext.networks.sam import build_sam
from monai_ext.prompts.crops import paste
from monai_ext.prompts.prompt import Prompt
from monai_ext.session.blocks import case_preprocessing
from monai_ext.session.weights import find_variant, find_weights, refuse_dense, refuse_overlap
from monai_ext.transforms.sam_input import SamInputd, frame_size

Asked = tuple[int, Prompt]
"""Channel of a structure, and what SAM is asked."""

HEAD = ("task", "order", "prompt", "case", "patient", "modality", "slice", "label", "step")
COLUMNS = (
    "sam", "ellipse", "mean_crop", "memory", "auxol_0", "auxol_25", "auxol_50", "auxol_100", "own", "half", "single",
    "fifo", "alpha", "direct", "below_85", "pseudo_25", "pseudo_0",
)  # fmt: skip

MORE = ("memory", "auxol_25", "auxol_50", "single", "fifo")
FURTHER = ("direct", "below_85", "pseudo_25", "pseudo_0")
THRESHOLD = 0.85


class Kept:
    """In place of a learner: hands the view on, so that any number of learners can be asked with it."""

    def infer(self, view: View) -> View:
        """Return the view."""
        return view


@dataclass(frozen=True)
class Slice:
    """One slice with all that it is asked: prompts by kind."""

    case: str
    patient: str
    modality: str
    number: int
    image: Tensor
    frame: tuple[int, int]
    truths: Mapping[str, Tensor]
    prompts: Mapping[str, Sequence[Asked]]


class Track:
    """Learners of one kind, one a structure, and who corrects them.

    Args:
        labels: names of the structures.
        make: builds what learns.
        expert: corrects.
        pseudo: learn from the answer itself where the expert does not correct.
    """

    def __init__(
        self,
        labels: Sequence[str],
        make: Callable[[], OnlineMethod],
        expert: Expert | None = None,
        pseudo: bool = False,
    ) -> None:
        self.learners = {name: OnlineLearner(make()) for name in labels}
        self.expert, self.pseudo = expert or Expert(), pseudo

    def ask(self, views: Sequence[View]) -> list[Pending]:
        """Answer the views of one structure."""
        return [self._of(view).infer(view) for view in views]

    def teach(self, image: int, views: Sequence[View], answers: Sequence[Pending], truth: Tensor) -> None:
        """Correct the answers where this slice is looked at; ``truth`` [H, W] bool."""
        fused = united([answer.logits for answer in answers], views)
        found = dice(fused, truth)
        corrected = self.expert.looks_at(image) and self.expert.corrects(found, found)
        if not corrected and not self.pseudo:
            return
        mask, source = (truth, "expert") if corrected else (fused, "pseudo")
        for view, answer in zip(views, answers, strict=True):
            if bool(view.crop.of(mask).any()):
                self._of(view).correct(answer, mask, source)

    def _of(self, view: View) -> OnlineLearner:
        return self.learners[view.case["label"]]


def united(logits: Sequence[Tensor], views: Sequence[View]) -> Tensor:
    """Unite the answers of one structure on a slice: [H, W] bool."""
    canvas = torch.full(views[0].size, BACKGROUND)
    for view, one in zip(views, logits, strict=True):
        paste(canvas, one, view.crop)
    return canvas > 0


class Tracks:
    """All methods on one stream of one kind of prompt.

    Args:
        labels: names of the structures.
        settings: of AuxOL.
        network: SAM.
        chosen: learners of their own, from :data:`MORE` and :data:`FURTHER`.
        only: these alone, beside SAM.
        direct: settings of :class:`~monai_ext.engines.online.rivals.DirectOnline`.
    """

    def __init__(
        self,
        labels: Sequence[str],
        settings: AuxiliarySettings,
        network: PromptableNetwork,
        chosen: Sequence[str],
        only: bool,
        direct: Mapping[str, Any],
    ) -> None:
        def auxiliary(**changed: Any) -> Callable[[], OnlineMethod]:
            return lambda: AuxiliaryFusion(replace(settings, **changed), network.device)

        self.auxol = None if only else Track(labels, auxiliary())
        kinds: dict[str, Callable[[], Track]] = {
            "memory": lambda: Track(labels, lambda: Remembering(network.image_size, network.grid)),
            "auxol_25": lambda: Track(labels, auxiliary(), Expert(0.25)),
            "auxol_50": lambda: Track(labels, auxiliary(), Expert(0.5)),
            "single": lambda: Track(labels, auxiliary(batch=1)),
            "fifo": lambda: Track(labels, auxiliary(policy="fifo")),
            "direct": lambda: Track(labels, lambda: DirectOnline(network, **direct)),
            "below_85": lambda: Track(labels, auxiliary(), Expert(threshold=THRESHOLD)),
            "pseudo_25": lambda: Track(labels, auxiliary(), Expert(0.25), pseudo=True),
            "pseudo_0": lambda: Track(labels, auxiliary(alpha=0.5), Expert(0.0), pseudo=True),
        }
        self.others = {name: kinds[name]() for name in chosen}
        if not only:
            self.others |= {"ellipse": Track(labels, InscribedEllipse), "mean_crop": Track(labels, MeanCrop)}

    def run(self, image: int, views: Sequence[View], truth: Tensor) -> dict[str, float]:
        """Answer and learn one structure of a slice; returns the Dice of each method, and alpha."""

        def score(logits: Sequence[Tensor]) -> float:
            return dice(united(logits, views), truth)

        found = {"sam": dice(torch.stack([view.sam for view in views]).amax(0) > 0, truth)}
        if self.auxol is not None:
            answers = self.auxol.ask(views)
            sams, own = [answer.view.sam for answer in answers], [answer.said["own"] for answer in answers]
            found |= {
                "auxol_0": score(sams),
                "auxol_100": score([answer.logits for answer in answers]),
                "own": score(own),
                "half": score([fuse(sam, one, 0.5) for sam, one in zip(sams, own, strict=True)]),
                "alpha": float(answers[0].said["alpha"]),
            }
            self.auxol.teach(image, views, answers, truth)
        for name, track in self.others.items():
            others = track.ask(views)
            found[name] = score([answer.logits for answer in others])
            track.teach(image, views, others, truth)
        return found


class Stream:
    """Reads the cases of a list and asks SAM.

    Args:
        cases: the data list, with labels.
        network: the frozen SAM.
        slices: most slices of a volume.
        point_window: see :class:`~monai_ext.inferers.online.OnlineInferer`.
        kinds: of prompts.
    """

    def __init__(
        self, cases: DataList, network: PromptableNetwork, slices: int, point_window: float, kinds: Sequence[str]
    ) -> None:
        self.cases, self.network, self.slices, self.kinds = cases, network, slices, kinds
        self.labels = dict(cases.labels)
        further = [SamInputd("label", network.image_size, mode="nearest")]
        intensity = "none" if cases.modality.upper() in ("US", "ENDOSCOPY") else None  # as the overlays of these sets
        self.read = case_preprocessing(network.image_size, intensity, with_label=True, further=further)
        self.prompters = {kind: TruthPrompts(kind) for kind in kinds}
        kept = {name: Kept() for name in self.labels}
        self.asker = OnlineInferer(self.labels, cast(Any, kept), point_window=point_window)

    def of_case(self, case: Mapping[str, Any]) -> Iterator[Slice]:
        """Read the slices of a case that are asked for."""
        label = next(one.label for one in self.cases.cases if one.case == case["case"])
        data = cast(dict[str, MetaTensor], self.read({**case, "label": label}))
        image, truth = plain(data["image"]), plain(data["label"])[0]
        there = []
        for k in range(truth.shape[-1]):
            truths = {name: truth[..., k] == value for name, value in self.labels.items()}
            prompts = {kind: self._prompts(kind, truths) for kind in self.kinds}
            if any(prompts.values()):
                there.append((k, truths, prompts))
        for place in spread(len(there), self.slices):
            k, truths, prompts = there[place]
            plane = image[..., k].clone()
            names = (case["case"], case["patient"], case.get("modality") or self.cases.modality)
            yield Slice(*names, k, plane, frame_size(data["image"]), truths, prompts)

    def _prompts(self, kind: str, truths: Mapping[str, Tensor]) -> list[Asked]:
        found = ((channel, self.prompters[kind](mask, 0)) for channel, mask in enumerate(truths.values()))
        return [(channel, prompt) for channel, prompts in found for prompt in prompts]

    @torch.no_grad()
    def ask(self, one: Slice) -> dict[str, list[View]]:
        """Ask SAM: views by kind of prompt."""
        known = Encoded(self.network, one)
        found = {}
        for kind, prompts in one.prompts.items():
            asked = self.asker.ask(cast(Any, known), one.image, one.frame, one.case, one.number, prompts)
            found[kind] = [cast(View, each.answer) for each in asked]
        return found


class Encoded:
    """SAM with one slice encoded already."""

    def __init__(self, network: PromptableNetwork, one: Slice) -> None:
        self._network, self._embeddings = network, encode_slice(network, one.image, one.frame)

    def encode(self, images: Tensor) -> Any:
        """Return the embeddings of the slice."""
        return self._embeddings

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


def spread(count: int, most: int) -> list[int]:
    """Return at most ``most`` places among ``count``, each in the middle of its share."""
    if count <= most:
        return list(range(count))
    return [int((number + 0.5) * count / most) for number in range(most)]


def run_order(stream: Stream, order: int, tracks: Mapping[str, Tracks]) -> Iterator[list[Any]]:
    """Run one order of the patients, with the methods by kind of prompt; yields rows."""
    names = list(stream.labels)
    image = 0
    for case in order_stream(single_images(stream.cases), order):
        for one in stream.of_case(case):
            for kind, views in stream.ask(one).items():
                for name in names:
                    own = [view for view in views if view.case["label"] == name]
                    if own:
                        found = tracks[kind].run(image, own, one.truths[name])
                        scores = [f"{found[c]:.5f}" if c in found else "" for c in COLUMNS]
                        head = (stream.cases.dataset, order, kind, one.case, one.patient, one.modality)
                        yield [*head, one.number, name, image, *scores]
            image += 1


def select_patients(cases: DataList, keep: Sequence[str] | None, leave_out: Sequence[str]) -> DataList:
    """Return the list with the named patients alone, or without those."""
    chosen = [
        case
        for case in cases.cases
        if case.label and (keep is None or case.patient in keep) and case.patient not in leave_out
    ]
    return cases.model_copy(update={"cases": chosen})


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("datalist", nargs="?", help="phantoms without it")
    parser.add_argument("--checkpoint", default="compact_chaos")
    parser.add_argument("--sam_root", default="bundles/p2sam")
    parser.add_argument("--slices", type=int, default=5)
    parser.add_argument("--orders", type=int, nargs="+", default=[0])
    parser.add_argument("--prompts", nargs="+", default=list(PROMPTS), choices=PROMPTS)
    parser.add_argument("--point_window", type=float, default=0.5)
    parser.add_argument("--keep", nargs="+", help="only these patients")
    parser.add_argument("--leave_out", nargs="+", default=[], help="not these patients")
    parser.add_argument("--more", nargs="*", default=list(MORE), choices=(*MORE, *FURTHER), help="the dearer methods")
    parser.add_argument("--only", action="store_true", help="no other methods than those of --more, and SAM")
    parser.add_argument("--direct_rate", type=float, default=5e-4, help="learning rate of direct")
    parser.add_argument("--direct_steps", type=int, default=1, help="steps of direct after each correction")
    parser.add_argument("--allow_dense_sam", action="store_true", help="SAM was adapted to other patients of this set")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of AuxOL")
    parser.add_argument("--output_dir", default="outputs/auxol_streams")
    options = parser.parse_args()
    torch.set_num_threads(1)
    datalist = options.datalist or write_phantom_stream(Path(options.output_dir) / "phantom")
    cases = select_patients(load_datalist(datalist), options.keep, options.leave_out)
    weights = find_weights(options.checkpoint, options.sam_root, cases=cases)
    refuse_dense(weights, cases.dataset, options.allow_dense_sam)
    refuse_overlap(weights, cases.dataset, single_images(cases))
    network = build_sam(find_variant(weights, None), weights)
    given = {name: number(value) for name, value in (one.split("=") for one in options.set)}
    settings = AuxiliarySettings(**given)
    direct = {"learning_rate": options.direct_rate, "steps": options.direct_steps}
    print(asdict(settings), "point_window", options.point_window, "direct", direct, flush=True)
    stream = Stream(cases, network, options.slices, options.point_window, options.prompts)
    folder, start = Path(options.output_dir), time.process_time()
    folder.mkdir(parents=True, exist_ok=True)
    for order in options.orders:
        name = f"{cases.dataset}_{order}{'_more' if options.only else ''}.csv"
        choice = (settings, network, options.more, options.only, direct)
        tracks = {kind: Tracks(list(stream.labels), *choice) for kind in options.prompts}
        with open(folder / name, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow([*HEAD, *COLUMNS])
            rows = []
            for row in run_order(stream, order, tracks):
                table.writerow(row)
                rows.append(row)
        print(f"order {order}: {len(rows)} rows, {time.process_time() - start:.0f} s of processor time", flush=True)
        report(rows)


def report(rows: Sequence[Sequence[Any]]) -> None:
    """Print the mean over the last half of the stream, by kind of prompt and structure."""
    at = {column: place for place, column in enumerate(HEAD)}
    middle = (max(row[at["step"]] for row in rows) + 1) / 2
    for kind, name in dict.fromkeys((row[at["prompt"]], row[at["label"]]) for row in rows):
        of_kind = [row for row in rows if (row[at["prompt"]], row[at["label"]]) == (kind, name)]
        late = [row[len(HEAD) :] for row in of_kind if row[at["step"]] >= middle]
        means = {c: np.mean([float(r[n]) for r in late]) for n, c in enumerate(COLUMNS) if late and late[0][n]}
        print(kind, name, len(late), " ".join(f"{c} {value:.3f}" for c, value in means.items()), flush=True)


def number(text: str) -> int | float | str:
    """Read a setting's value."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


if __name__ == "__main__":
    main()
