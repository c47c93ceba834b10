"""The parts of a config that every bundle has, as functions that configs name by ``_target_``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from monai.transforms import Compose, Invertd, LoadImaged
from monai.utils import ensure_tuple

from monai_ext.data.case_reader import CaseReader
from monai_ext.data.images import read_geometry
from monai_ext.data.manifest import DataList
from monai_ext.data.studies import Studies, result_options
from monai_ext.errors import UserError
from monai_ext.handlers.case_table import CaseTable
from monai_ext.handlers.finished_cases import FinishedCases
from monai_ext.handlers.kept_masks import KeptMasks
from monai_ext.handlers.mask_writer import MaskWriter
from monai_ext.handlers.overlay import OverlayWriter
from monai_ext.handlers.progress import CaseProgress
from monai_ext.handlers.prompt_table import PromptTable
from monai_ext.handlers.review_table import ReviewTable
from monai_ext.handlers.run_record import RunRecord
from monai_ext.handlers.volume_table import VolumeTable
from monai_ext.transforms.frame_extent import FrameExtentd
from monai_ext.transforms.intensity import Intensityd
from monai_ext.transforms.labels import MergeLabelsd
from monai_ext.transforms.request import Requestd
from monai_ext.transforms.sam_input import SamInputd


class CasePreprocessing(Compose):
    """Transforms of a case to the input frame, and those of its references.

    Args:
        transforms: of a case.
        of_references: makes the transforms of a reference, which bring its ``label`` along.
    """

    def __init__(self, transforms: Sequence[Callable[..., Any]], of_references: Callable[[], Compose]) -> None:
        super().__init__(transforms)
        self.of_references = of_references


def case_preprocessing(
    image_size: int,
    intensity: Any = None,
    slice_axis: str | None = None,
    masks: Sequence[str] | str = (),
    served: Studies | None = None,
    with_label: bool = False,
    further: Sequence[Callable[..., Any]] = (),
    unlabelled: int | None = None,
) -> CasePreprocessing:
    """Return the transforms that bring the files of a case to the input frame: [C, H, W, D], image values in [0, 255].

    A target gets one scale in mm a pixel with its references. A reference is loaded with ``masks`` and gets that scale
    from :class:`~monai_ext.inferers.reference.ReferenceLoader`.

    Args:
        image_size: pixels of the longer side of a slice.
        intensity: grey values; see :class:`~monai_ext.transforms.intensity.Intensityd`.
        slice_axis: see :class:`~monai_ext.transforms.sam_input.SamInputd`.
        masks: entries of the case, besides ``image``, that name masks of the same grid and are brought along.
        served: finds the reference of a MONAI Label request; see :class:`~monai_ext.transforms.request.Requestd`.
        with_label: load ``label`` as it is stored, for metrics.
        further: transforms that come last.
        unlabelled: the masks are scribbles, with this value where nothing is drawn. None: they are dense.

    Example:
        >>> preprocessing = case_preprocessing(512, intensity={"window": [-910, 590]})
        >>> preprocessing({"image": "visit_1.nii.gz", "modality": "CT"})["image"].shape
        torch.Size([1, 512, 512, 40])
        >>> references = ReferenceLoader(preprocessing.of_references(), {"tumour": 1})
    """
    names = list(ensure_tuple(masks))
    steps: list[Any] = [_load("image")]
    steps += [_load(names, mask=True)] if names else []
    steps += [Requestd("image", served, result_options)] if served is not None else []
    steps += [Intensityd("image", intensity=intensity)]
    steps += [] if names else [FrameExtentd("image", read_geometry, slice_axis)]
    modes = ["bilinear", *["nearest" if unlabelled is None else "scribble"] * len(names)]
    steps += [SamInputd(["image", *names], image_size, mode=modes, slice_axis=slice_axis, unlabelled=unlabelled)]
    steps += [_load("label", mask=True)] if with_label else []
    of_references = partial(case_preprocessing, image_size, intensity, slice_axis, masks="label")
    return CasePreprocessing([*steps, *further], of_references)


def _load(keys: Sequence[str] | str, mask: bool = False) -> LoadImaged:
    reader: Any = CaseReader(label=mask)  # MONAI takes an object, whatever its annotation says
    return LoadImaged(keys, reader=reader, ensure_channel_first=True)


def mask_preprocessing(image_size: int, slice_axis: str | None = None, key: str = "label") -> Compose:
    """Return the transforms of a mask alone to the input frame, [1, H, W, D]; see :func:`case_preprocessing`."""
    return Compose(
        [
            _load(key, mask=True),
            SamInputd(key, image_size, mode="nearest", slice_axis=slice_axis),
        ]
    )


def mask_postprocessing(
    preprocessing: Compose,
    labels: Mapping[str, int],
    overlap: bool = False,
    with_request: bool = False,
    largest_piece: bool = False,
) -> Compose:
    """Return the transforms of logits [L, H, W, D] in the input frame to an integer mask on the grid of the image file.

    Args:
        preprocessing: of the image, which is inverted.
        labels: name -> value in the mask, in the order of the channels.
        overlap: keep one channel a label; see :class:`~monai_ext.transforms.labels.MergeLabelsd`.
        with_request: heed the labels that a MONAI Label request names.
        largest_piece: keep only the largest connected piece of each label; not with ``overlap``.
    """
    back = Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False, to_tensor=True)
    image_key = "image" if with_request else None
    return Compose(
        [
            back,
            MergeLabelsd(
                "pred", list(labels.values()), overlap=overlap, image_key=image_key, largest_piece=largest_piece
            ),
        ]
    )


def case_table(
    cases: DataList, labels: Mapping[str, int], finished: FinishedCases, algorithm: str, **options: Any
) -> CaseTable:
    """Return the handler that measures cases and writes ``metrics.csv`` and ``summary.json``.

    Args:
        cases: the data list: its name and the value that it ignores.
        labels: name -> value in the masks.
        finished: keeps the rows of finished cases; its folder and seed are taken.
        algorithm: name of the method in the table.
        options: of :class:`~monai_ext.handlers.case_table.CaseTable`: ``fold``, ``nsd_tolerance_mm``, ``slice_axis``,
            ``mean_of``, ``pooled_iou``.
    """
    return CaseTable(
        finished.output_dir,
        labels,
        cases.dataset,
        algorithm,
        ignore=cases.ignore,
        seed=finished.seed,
        finished=finished,
        **options,
    )


def case_outputs(
    labels: Mapping[str, int],
    finished: FinishedCases,
    checkpoint: str | Path | None,
    datalist: str | Path,
    data_root: str | Path | None = None,
    prompts: bool = False,
    review: str | Path | None = None,
    abstain: bool = False,
    slice_axis: str | None = None,
    note: str = "",
    further: Sequence[Any] = (),
) -> list[Any]:
    """Return the handlers of a run, in their order: masks, overlays, volumes, tables, ``run.json``, and progress.

    Args:
        labels: name -> value in the masks.
        finished: keeps what was written of each case; its folder, seed and shard are taken. Its cases are the inputs in
            ``run.json``, and the files of those that were finished before are among the outputs.
        checkpoint: file of the weights; None: there are none.
        datalist: the data list.
        data_root: folder that inputs are named relative to in ``run.json``; None: the folder of the data list.
        prompts: the inferer says what it chose: write ``prompts.csv``, ``review.csv`` and what a calibration needs.
        review: file of a calibration (:mod:`monai_ext.evaluation.review`); None: ``review.csv`` has a score that is
            not calibrated, and no flags.
        abstain: leave masks out that the review flags.
        slice_axis: "R", "A" or "S" where slices are cut orthogonal to it.
        note: what a reader of the results has to know, on each overlay and in ``run.json``.
        further: handlers that a method or an overlay of the config adds, such as :func:`case_table`.

    Raises:
        UserError: for ``abstain`` without ``review``, or a file that is no calibration.
    """
    if abstain and review is None:
        raise UserError("--abstain leaves out what the review flags: give its calibration with --review, too.")
    output_dir = finished.output_dir
    review_table = [ReviewTable(output_dir, labels, review, abstain, slice_axis, finished)] if prompts else []
    record = RunRecord(
        output_dir,
        inputs=finished.cases,
        checkpoint=checkpoint,
        seed=finished.seed,
        datalist=datalist,
        data_root=data_root,
        shard=None if finished.shard is None else str(finished.shard),
        note=note,
    )
    record.keep(finished.kept())
    return [
        *review_table,  # first: it may leave masks out
        KeptMasks(labels),
        *([PromptTable(output_dir, finished)] if prompts else []),
        MaskWriter(output_dir, labels, finished),
        OverlayWriter(output_dir, labels, finished=finished, note=note),
        VolumeTable(output_dir, labels, slice_axis, finished),
        CaseProgress(),
        *further,
        finished,  # what the handlers before it have written
        record,
    ]
