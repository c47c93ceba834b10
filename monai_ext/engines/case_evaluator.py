"""MONAI's evaluator with one more item in its output: what the inferer says of the case besides its masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.data import DataLoader, Dataset
from monai.engines import PrepareBatchExtraInput, SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer
from monai.transforms import Transform
from monai.utils.enums import CommonKeys as Keys

from monai_ext.data.case_details import DETAILS, CaseDetails
from monai_ext.data.pairs import collate_case
from monai_ext.inferers.case_inferer import CaseInferer


class CaseEvaluator(SupervisedEvaluator):
    """Segments one case an iteration; handlers read ``engine.state.output[0]["details"]`` beside ``pred``.

    Args:
        device: where the case's tensors go.
        dataset: the cases, each with ``image``, in the input frame.
        network: what the inferer applies.
        inferer: segments a case. One that is no :class:`~monai_ext.inferers.case_inferer.CaseInferer` is called as
            MONAI calls it, and its details are empty.
        entries: names of those entries of a case, besides the image, that the inferer is given by name.
        postprocessing: of the case with its logits, ``pred``.
        handlers: attached in this order.

    Example:
        >>> evaluator = CaseEvaluator(
        ...     torch.device("cpu"), Dataset(pairs, preprocessing), sam, P2SamInferer(labels, references),
        ...     entries=["reference_image", "reference_label"], handlers=[PromptTable("out")],
        ... )
        >>> evaluator.run()
    """

    def __init__(
        self,
        device: torch.device,
        dataset: Dataset,
        network: torch.nn.Module,
        inferer: Inferer,
        entries: Sequence[str] = (),
        postprocessing: Transform | None = None,
        handlers: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(
            device=device,
            val_data_loader=DataLoader(dataset, batch_size=1, collate_fn=collate_case),
            network=network,
            prepare_batch=PrepareBatchExtraInput({name: name for name in entries}),
            inferer=inferer,
            postprocessing=postprocessing,
            val_handlers=handlers,
        )

    def _iteration(self, engine: SupervisedEvaluator, batchdata: dict[str, Any]) -> list[dict[str, Any]]:  # type: ignore[override]
        inputs, label, args, entries = engine.prepare_batch(
            batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs
        )
        engine.state.output = {Keys.IMAGE: inputs, Keys.LABEL: label}
        with engine.mode(engine.network):
            if isinstance(engine.inferer, CaseInferer):
                logits, details = engine.inferer.segment_case(inputs, engine.network, *args, **entries)
            else:
                logits, details = engine.inferer(inputs, engine.network, *args, **entries), CaseDetails()
        engine.state.output[Keys.PRED] = logits
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)  # takes the batch apart: one dictionary for its one case
        engine.state.output[0][DETAILS] = details
        return engine.state.output
