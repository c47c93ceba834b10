"""Learning from each correction while cases come (AuxOL, Huang et al. 2024, *Improving Segment Anything on the Fly*).

Step of the paper (Listing 1, §3.3) -> code:

* crop by the box, or by the box of SAM's mask     -> :mod:`~monai_ext.prompts.crops`
* u = aux(crop), fusion with alpha, Eq. 1 and 3    -> :mod:`~monai_ext.engines.online.fusion`
* the online batch: insert, or replace the easiest -> :mod:`~monai_ext.engines.online.batch`
* one optimiser step on the whole batch            -> :mod:`~monai_ext.engines.online.auxiliary`
* what the paper compares with, and more           -> :mod:`~monai_ext.engines.online.rivals`

Around it, for use beyond one process: :class:`OnlineLearner` answers while it learns
(:mod:`~monai_ext.engines.online.learner`), its journal keeps every correction
(:mod:`~monai_ext.engines.online.journal`) and its states survive a kill (:mod:`~monai_ext.engines.online.states`).
"""

from monai_ext.engines.online.auxiliary import AuxiliaryFusion
from monai_ext.engines.online.learner import OnlineLearner, Pending
from monai_ext.engines.online.view import Correction
from monai_ext.inferers.view import View

__all__ = ["AuxiliaryFusion", "Correction", "OnlineLearner", "Pending", "View"]
