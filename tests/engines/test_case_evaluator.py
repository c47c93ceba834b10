"""What an inferer says of a case reaches the handlers in the engine's output."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events
from monai.data import Dataset, MetaTensor
from monai.inferers import SimpleInferer

from monai_ext.data.case_details import CaseDetails
from monai_ext.engines.case_evaluator import CaseEvaluator
from monai_ext.inferers.case_inferer import CaseInferer


class Counter(CaseInferer):
    """Says how many pixels are above a threshold, an entry of the case."""

    def segment_case(self, inputs, network, *args, threshold, **entries):
        assert not entries
        above = network(inputs) > threshold[0]
        details = CaseDetails([{"slice": 0, "above": int(above.sum())}], {"share": above[0].float()}, [above[0]])
        return MetaTensor(above.float()), details


class Outputs:
    """Keeps what handlers find after each case."""

    def __init__(self) -> None:
        self.found = []

    def attach(self, engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: self.found.append(e.state.output[0]))


def evaluate(inferer, entries=()):
    cases = [{"case": str(n), "threshold": n, "image": MetaTensor(torch.arange(6.0).view(1, 2, 3))} for n in (1, 3)]
    outputs = Outputs()
    CaseEvaluator(
        torch.device("cpu"),
        Dataset(cases),
        torch.nn.Identity(),
        inferer,
        entries=entries,
        postprocessing=lambda item: {**item, "pred": item["pred"] * 7},
        handlers=[outputs],
    ).run()
    return outputs.found


def test_handlers_find_the_details_of_each_case_beside_its_mask():
    found = evaluate(Counter(), ["threshold"])
    assert [output["details"].rows for output in found] == [[{"slice": 0, "above": n}] for n in (4, 2)]
    for output in found:
        assert torch.equal(output["pred"].as_tensor(), 7 * output["details"].maps["share"])
        assert torch.equal(output["details"].steps[0], output["details"].maps["share"] > 0)


def test_an_inferer_of_monai_says_nothing():
    found = evaluate(SimpleInferer())
    assert [output["details"] for output in found] == [CaseDetails()] * 2
    assert torch.equal(found[0]["pred"].as_tensor(), 7 * torch.arange(6.0).view(1, 2, 3))


def test_an_entry_that_a_case_lacks_is_an_error():
    with pytest.raises(KeyError, match="box"):
        evaluate(Counter(), ["threshold", "box"])


def test_a_call_gives_the_mask_alone():
    image = MetaTensor(torch.arange(6.0).view(1, 1, 2, 3))
    assert Counter()(image, torch.nn.Identity(), threshold=[2]).sum() == 3
