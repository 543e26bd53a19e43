import csv
import errno
import time
from types import SimpleNamespace

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from medseg.errors import MachineError
from medseg.structures import LabelTable
from medseg.tasks.segmentation import SegmentationTask
from medseg.training.callbacks import Clock, full_disk_is_clear, write_rows
from medseg.training.module import TrainingModule, _average
from medseg.training.settings import Optimization, TrainerSettings


def _module(total_steps: int | None = None, ema: float = 0.9) -> TrainingModule:
    return TrainingModule(
        torch.nn.Conv3d(1, 2, 1),
        SegmentationTask(LabelTable({1: "a"})),
        SimpleNamespace(dimensions=3),  # type: ignore[arg-type]
        Optimization(),
        ema=ema,
        seed=0,
        total_steps=total_steps,
        precision="float32",
    )


def _epoch(clock: Clock, module: TrainingModule, steps: int, seconds: float, number: int = 0) -> SimpleNamespace:
    alone = SimpleNamespace(broadcast=lambda value: value)
    trainer = SimpleNamespace(current_epoch=number, should_stop=False, strategy=alone)
    for step in range(steps):
        clock.on_train_batch_start(trainer, module, None, step)
        time.sleep(seconds)
        clock.on_train_batch_end(trainer, module, None, None, step)
    clock.on_train_epoch_end(trainer, module)
    return trainer


def test_the_schedule_is_fixed_once_by_the_measured_epoch(monkeypatch):
    monkeypatch.setattr(TrainingModule, "global_step", 8)
    settings = TrainerSettings(max_time=4.0, steps_per_epoch=8)
    clock, module = Clock(settings, time.monotonic()), _module()
    trainer = _epoch(clock, module, 8, 0.02)
    assert not trainer.should_stop
    epochs = module.total_steps / 8
    assert 12 <= epochs <= 25  # 0.16 s an epoch in 4 s
    fixed = module.total_steps
    _epoch(clock, module, 8, 0.04, 1)
    assert module.total_steps == fixed


def test_the_clock_stops_before_an_epoch_that_would_not_fit(monkeypatch):
    monkeypatch.setattr(TrainingModule, "global_step", 4)
    clock, module = Clock(TrainerSettings(max_time=0.3, steps_per_epoch=4), time.monotonic()), _module(400)
    assert _epoch(clock, module, 4, 0.05).should_stop


def test_time_spent_by_earlier_processes_counts():
    clock = Clock(TrainerSettings(max_time=100), time.monotonic())
    clock.load_state_dict({"elapsed": 90.0})
    assert 90 <= clock.elapsed < 91
    assert 90 <= clock.state_dict()["elapsed"] < 91


def test_the_average_forgets_its_first_weights():
    module = _module(ema=0.99)
    with torch.no_grad():
        for _ in range(200):
            for parameter in module.network.parameters():
                parameter.fill_(3.0)
            module.averaged.update_parameters(module.network)
    assert torch.allclose(module.best_network.weight, torch.full_like(module.best_network.weight, 3.0), atol=1e-2)


def test_rows_read_back_as_they_were_written(tmp_path):
    rows = [{"epoch": 0.0, "step": 4.0, "loss": 1 / 3}, {"epoch": 1.0, "step": 8.0, "loss": 0.1, "tune/score": 0.7}]
    write_rows(tmp_path / "training.csv", rows)
    with (tmp_path / "training.csv").open() as file:
        read = list(csv.DictReader(file))
    assert float(read[0]["loss"]) == 1 / 3 and read[0]["tune/score"] == "" and read[1]["step"] == "8"
    assert not list(tmp_path.glob("*.part"))


def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path, monkeypatch):
    path = tmp_path / "training.csv"
    write_rows(path, [{"epoch": 0.0}])
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(MachineError, match=r"training.csv: could not be written.*Free some space"):
        write_rows(path, [{"epoch": 1.0}])
    assert path.read_bytes() == before
    with pytest.raises(MachineError), full_disk_is_clear(path):
        raise RuntimeError("[enforce fail] . No space left on device")


def test_running_figures_of_batch_norm_are_averaged_and_whole_numbers_copied() -> None:
    network = torch.nn.BatchNorm1d(1, momentum=1.0)
    averaged = AveragedModel(network, multi_avg_fn=_average(0.9), use_buffers=True)
    for mean in (1.0, 3.0):
        network.running_mean.fill_(mean)
        network.num_batches_tracked.add_(1)
        averaged.update_parameters(network)
    assert float(averaged.module.running_mean) == pytest.approx(1.0 + (3.0 - 1.0) * (1 - 2 / 11))
    assert int(averaged.module.num_batches_tracked) == 2
