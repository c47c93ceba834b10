"""The contract of inferers that say more of a case than its masks."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor

from monai_ext.data.case_details import CaseDetails


class CaseInferer(Inferer):
    """A MONAI inferer of whole cases: a call gives the logits, :meth:`segment_case` the details as well.

    MONAI Label and MONAI's own engines call it; :class:`monai_ext.engines.case_evaluator.CaseEvaluator` asks for both.
    """

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **entries: Any) -> MetaTensor:
        """Return the logits [1, L, H, W, D] of a case; arguments are those of :meth:`segment_case`."""
        return self.segment_case(inputs, network, *args, **entries)[0]

    @abstractmethod
    def segment_case(self, inputs: Tensor, network: Any, *args: Any, **entries: Any) -> tuple[MetaTensor, CaseDetails]:
        """Segment one case.

        Args:
            inputs: [1, C, H, W, D] in the input frame.
            network: what the inferer applies.
            args: of the inferer.
            entries: of the case, by name.

        Returns:
            Logits [1, L, H, W, D], one channel a structure, and what else is known of them.
        """
