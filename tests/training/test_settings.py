import pytest

from medseg.errors import MedsegError
from medseg.training.settings import Optimization, TrainerSettings, seconds


def test_budgets_are_read_as_hours_minutes_seconds():
    assert seconds("01:30:05") == 5405
    assert seconds("10:00") == 600
    assert seconds(90) == 90
    assert seconds(None) is None
    with pytest.raises(MedsegError, match=r"'one hour': expected HH:MM:SS"):
        seconds("one hour")


def test_the_rate_is_flat_until_the_length_is_known_and_then_falls_to_zero():
    poly = Optimization(lr=0.1, schedule="poly")
    assert poly.rate(30, None) == 0.1
    rates = [poly.rate(step, 100) for step in range(101)]
    assert rates == sorted(rates, reverse=True) and rates[-1] == 0
    assert poly.rate(50, 100) == pytest.approx(0.1 * 0.5**0.9)
    assert Optimization(lr=0.1, schedule="cosine").rate(50, 100) == pytest.approx(0.05)


def test_warm_up_rises_linearly():
    slow = Optimization(lr=1.0, schedule="constant", warmup=9)
    assert [slow.rate(step, 100) for step in (0, 4, 9, 50)] == pytest.approx([0.1, 0.5, 1.0, 1.0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_epoch": 3}, "trainer has no max_epoch; it has"),
        ({"precision": 16}, "expected auto, bf16 or float32"),
        ({"compile": "maybe"}, "expected auto, true or false"),
        ({"ema": 1.5}, "0 ≤ ema < 1"),
        ({"augment_on": "gpu"}, "expected auto, workers or device"),
        ({"keep_on_device": "some"}, "keep_on_device 'some'; expected auto, true or false"),
        ({"keep_on_device": True, "augment_on": "workers"}, "what a device holds is changed there"),
    ],
)
def test_impossible_trainer_settings_are_named(values, message):
    with pytest.raises(MedsegError, match=message):
        TrainerSettings.from_mapping(values)


def test_an_optimizer_is_one_of_the_list_and_takes_its_arguments():
    import torch

    parameter = torch.nn.Parameter(torch.zeros(1))
    adam = Optimization.from_mapping({"_target_": "torch.optim.AdamW", "lr": 0.1, "weight_decay": 0.2}).build(
        [parameter]
    )
    assert adam.param_groups[0]["weight_decay"] == 0.2
    with pytest.raises(MedsegError, match="expected one of torch.optim.SGD"):
        Optimization.from_mapping({"_target_": "os.system"})
    with pytest.raises(MedsegError, match="does not take"):
        Optimization.from_mapping({"_target_": "torch.optim.SGD", "momentun": 1}).build([parameter])
