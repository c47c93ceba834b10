"""Tests of monai_ext.handlers.training under MONAI's own trainer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler
from monai.optimizers import WarmupCosineSchedule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from monai_ext import processes
from monai_ext.data.provenance import TrainingData, WeightRecord, read_record, sha256_of
from monai_ext.data.slices import MixedSampler, SliceDataset
from monai_ext.errors import UserError
from monai_ext.handlers import training as handlers
from monai_ext.handlers.training import EpochDraws, ExportWeights, ResumeTraining, TrainingProgress, losses
from monai_ext.networks.lora import LoraLinear
from monai_ext.networks.sam import build_compact, build_sam

EPOCHS, LENGTH, BATCH = 5, 3, 2


class Numbers(SliceDataset):
    """Items that are their own numbers."""

    def __init__(self) -> None:
        self.source = [0] * 40 + [1] * 40

    def __len__(self) -> int:
        return 80

    def __getitem__(self, number: int) -> Any:
        return number


def record() -> WeightRecord:
    data = TrainingData(dataset="Toy", patients=["a"], labels="dense", licence="CC0")
    return WeightRecord(
        name="weights", variant="compact", datasets=[data], command="python", licence="CC0", sha256="", notes="n"
    )


class KillError(Exception):
    pass


class Run:
    """A small training: which numbers it drew, the network and the learning rates; killed at an iteration or not."""

    def __init__(
        self,
        folder: Path,
        kill_at: int | None = None,
        epochs: int = EPOCHS,
        length: int = LENGTH,
        width: int = 3,
        more: Sequence[Any] = (),
        every: int = 1,
        export: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(1, width), nn.Linear(width, 1))
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.01)
        self.scheduler = WarmupCosineSchedule(self.optimizer, warmup_steps=4, t_total=epochs * length)
        self.drawn: list[list[int]] = []
        self.rates: list[float] = []
        self.kill_at = kill_at
        sampler = MixedSampler(Numbers(), [0.5, 0.5], BATCH * length, seed=7)
        states = {"network": self.network, "none": None, "optimizer": self.optimizer, "lr_scheduler": self.scheduler}
        self.trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=epochs,
            train_data_loader=DataLoader(Numbers(), batch_size=BATCH, sampler=sampler),
            network=self.network,
            optimizer=self.optimizer,
            loss_function=nn.MSELoss(),
            iteration_update=self.update,
            decollate=False,
            train_handlers=[
                EpochDraws(sampler),
                LrScheduleHandler(self.scheduler, print_lr=False, epoch_level=False),
                ResumeTraining(folder, states, every),
                *more,
                *([ExportWeights(folder, self.network, record())] if export else []),
            ],
        )

    def update(self, engine: Any, batch: Tensor) -> dict[str, float]:
        if engine.state.iteration == self.kill_at:
            raise KillError
        self.drawn.append(batch.tolist())
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        self.optimizer.zero_grad()
        x = batch.float()[:, None] / 80
        loss = (self.network(x) - x.square()).square().mean()
        loss.backward()
        self.optimizer.step()
        return {"loss": float(loss.detach())}

    def go(self) -> Run:
        self.trainer.run()
        return self


def killed(folder: Path, iteration: int, **settings: Any) -> Run:
    run = Run(folder, kill_at=iteration, **settings)
    with pytest.raises(KillError):
        run.go()
    return run


@pytest.mark.parametrize("iteration", [1, 2, 4, 6, 7, 8, 15])
def test_resumed_run_draws_and_learns_as_an_uninterrupted_one(tmp_path, iteration: int) -> None:
    whole = Run(tmp_path / "whole").go()
    first = killed(tmp_path / "killed", iteration)
    second = Run(tmp_path / "killed").go()
    done = (iteration - 1) // LENGTH * LENGTH  # of whole epochs
    assert len(whole.drawn) == EPOCHS * LENGTH
    assert len({str(whole.drawn[e * LENGTH : (e + 1) * LENGTH]) for e in range(EPOCHS)}) == EPOCHS
    assert first.drawn == whole.drawn[: iteration - 1]
    assert second.drawn == whole.drawn[done:]
    assert second.rates == whole.rates[done:]
    for a, b in zip(second.network.parameters(), whole.network.parameters(), strict=True):
        assert torch.equal(a, b)
    assert second.trainer.state.iteration == EPOCHS * LENGTH
    assert second.trainer.state.epoch == EPOCHS


def test_checkpoint_holds_tensors_and_counts_alone(tmp_path) -> None:
    Run(tmp_path, epochs=2).go()
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert set(saved) == {"network", "optimizer", "lr_scheduler", "epoch", "iteration", "epoch_length", "max_epochs"}
    assert (saved["epoch"], saved["iteration"], saved["epoch_length"]) == (2, 2 * LENGTH, LENGTH)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_checkpoint_is_written_at_its_interval(tmp_path) -> None:
    killed(tmp_path, 3 * LENGTH + 1, every=2)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["epoch"] == 2
    assert len(Run(tmp_path).go().drawn) == 3 * LENGTH


def test_kill_while_saving_leaves_the_checkpoint_before(tmp_path, monkeypatch) -> None:
    killed(tmp_path, 2 * LENGTH)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with monkeypatch.context() as patch:

        def save(state: Any, path: Path) -> None:
            Path(path).write_bytes(b"half")
            raise KillError

        patch.setattr(handlers.torch, "save", save)
        with pytest.raises(KillError):
            Run(tmp_path).go()
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_finished_training_ends_at_once(tmp_path) -> None:
    Run(tmp_path).go()
    again = Run(tmp_path, export=True).go()
    assert again.drawn == []
    assert again.trainer.state.iteration == EPOCHS * LENGTH
    assert (tmp_path / "weights.pt").exists()  # killed between the last epoch and the export


def test_checkpoint_of_another_training_is_refused(tmp_path) -> None:
    Run(tmp_path, epochs=1).go()
    with pytest.raises(
        UserError, match=r"checkpoint\.pt belongs to another training or is damaged .* give a new --output_dir, or"
    ):
        Run(tmp_path, width=4).go()
    with pytest.raises(UserError, match=r"was made with another epoch length \(3\): repeat it"):
        Run(tmp_path, epochs=1, length=4).go()
    with pytest.raises(UserError, match=r"was made with another number of epochs \(1\): repeat it"):
        Run(tmp_path, epochs=2).go()
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=r"checkpoint\.pt belongs to another training or is damaged .* or delete it"):
        Run(tmp_path).go()


class Bar:
    """Stands in for tqdm."""

    made: list[Bar]

    def __init__(self, total: int, initial: int, **_: Any) -> None:
        self.total, self.count, self.texts, self.closed = total, initial, [], False
        self.made.append(self)

    def set_postfix(self, texts: dict[str, str], refresh: bool) -> None:
        self.texts.append(texts)

    def update(self) -> None:
        self.count += 1

    def close(self) -> None:
        self.closed = True


def test_progress_goes_on_where_the_training_does(tmp_path, monkeypatch) -> None:
    Bar.made = []
    monkeypatch.setattr(handlers, "tqdm", Bar)
    Run(tmp_path, more=[TrainingProgress()]).go()
    killed(tmp_path / "killed", 2 * LENGTH + 1)
    Run(tmp_path / "killed", more=[TrainingProgress()]).go()
    whole, resumed = Bar.made
    assert (whole.total, whole.count, whole.closed) == (15, 15, True)
    assert (resumed.total, resumed.count, len(resumed.texts)) == (15, 15, 9)
    assert set(whole.texts[0]) == {"loss"}
    assert whole.texts[0]["loss"] == f"{float(whole.texts[0]['loss']):.3f}"


def test_losses_are_a_copy() -> None:
    output = {"loss": 1.0, "mask_loss": 0.5}
    assert losses(output) == output
    assert losses(output) is not output


def test_exported_weights_are_half_precision_and_load_strictly(tmp_path) -> None:
    sizes: Any = {"image_size": 64, "channels": (16, 16, 32, 32), "blocks": (1, 1, 1), "width": 32}
    network = build_compact(**sizes)
    ExportWeights(tmp_path, network, record())._write(Run(tmp_path).trainer)
    path = tmp_path / "weights.pt"
    state = torch.load(path, weights_only=True)
    assert {value.dtype for value in state.values()} == {torch.float16}
    assert all(value.is_contiguous() and value.device.type == "cpu" for value in state.values())
    for name, value in build_sam("compact", path, **sizes).state_dict().items():
        assert torch.equal(value, network.state_dict()[name].half().float())
    written = read_record(path)
    assert written is not None
    assert written.sha256 == sha256_of(path)
    assert written.model_copy(update={"sha256": ""}) == record()
    assert json.loads((tmp_path / "weights.json").read_text())["name"] == "weights"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["weights.json", "weights.pt"]


def test_export_happens_when_the_training_ends_and_is_the_same_after_a_resume(tmp_path) -> None:
    whole = Run(tmp_path / "whole", export=True).go()
    killed(tmp_path / "killed", 8, export=True)
    assert not (tmp_path / "killed" / "weights.pt").exists()
    Run(tmp_path / "killed", export=True).go()
    assert sha256_of(tmp_path / "killed" / "weights.pt") == sha256_of(tmp_path / "whole" / "weights.pt")
    exported = torch.load(tmp_path / "whole" / "weights.pt", weights_only=True)
    assert torch.equal(exported["0.weight"], whole.network[0].weight.detach().half())


def test_whole_numbers_stay_whole(tmp_path) -> None:
    network = nn.BatchNorm2d(2)
    network.num_batches_tracked += 70000
    ExportWeights(tmp_path, network, record())._write(Run(tmp_path).trainer)
    assert torch.load(tmp_path / "weights.pt", weights_only=True)["num_batches_tracked"] == 70000


def test_weights_keep_all_digits_where_asked_and_come_without_lora(tmp_path) -> None:
    network = nn.Sequential(LoraLinear(nn.Linear(4, 6), 1, 1.0, 3))
    nn.init.normal_(network[0].lora_b)
    ExportWeights(tmp_path, network, record(), "float32")._write(Run(tmp_path).trainer)
    state = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert set(state) == {"0.weight", "0.bias"}
    assert torch.equal(state["0.weight"], network[0].merged_weight())
    with pytest.raises(UserError, match="export_precision 'float8' is unknown: choose float16 or float32"):
        ExportWeights(tmp_path, network, record(), "float8")


def test_a_process_that_is_not_the_first_shows_and_writes_nothing(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(processes, "_job", processes.Job(dist.HashStore(), 1, 2))
    run = Run(tmp_path, more=[TrainingProgress()], export=True).go()
    assert len(run.drawn) == EPOCHS * LENGTH
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


def test_a_process_that_is_not_the_first_resumes_too(tmp_path, monkeypatch) -> None:
    killed(tmp_path, 2 * LENGTH + 1)
    whole = Run(tmp_path / "whole").go()
    monkeypatch.setattr(processes, "_job", processes.Job(dist.HashStore(), 1, 2))
    before = (tmp_path / "checkpoint.pt").read_bytes()
    resumed = Run(tmp_path).go()
    assert resumed.drawn == whole.drawn[2 * LENGTH :]
    assert all(torch.equal(a, b) for a, b in zip(resumed.network.parameters(), whole.network.parameters(), strict=True))
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_what_is_written_can_be_a_part_of_the_network(tmp_path) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    ExportWeights(tmp_path, network, record(), "float32", network[1].state_dict)._write(Run(tmp_path).trainer)
    state = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert state.keys() == {"weight", "bias"}
    assert torch.equal(state["weight"], network[1].weight)
