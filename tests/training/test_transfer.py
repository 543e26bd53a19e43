import torch
from torch import nn

from medseg.training.transfer import transfer


class Net(nn.Module):
    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Conv3d(channels, 8, 3)
        self.body = nn.Conv3d(8, 8, 3)
        self.head = nn.Conv3d(8, outputs, 1)


def _transfer(
    old: Net, new: Net, outputs: list[str], old_outputs: list[str], channels: list[str], old_channels: list[str]
):
    return transfer(
        new,
        old.state_dict(),
        outputs=outputs,
        old_outputs=old_outputs,
        channels=channels,
        old_channels=old_channels,
    )


def test_the_same_labels_and_channels_take_everything():
    old, new = Net(1, 3), Net(1, 3)
    names = ["background", "a", "b"]
    taken = _transfer(old, new, names, names, ["MR"], ["MR"])
    assert not taken.left and not taken.adapted
    assert all(torch.equal(a, b) for a, b in zip(old.state_dict().values(), new.state_dict().values(), strict=True))


def test_outputs_are_taken_by_name_and_new_ones_stay_fresh():
    old, new = Net(1, 3), Net(1, 3)
    fresh = new.head.weight.detach().clone()
    taken = _transfer(old, new, ["background", "c", "a"], ["background", "a", "b"], ["MR"], ["MR"])
    assert torch.equal(new.head.weight[0], old.head.weight[0])
    assert torch.equal(new.head.weight[2], old.head.weight[1])
    assert torch.equal(new.head.weight[1], fresh[1])
    assert set(taken.adapted) == {"head.weight", "head.bias"}


def test_new_channels_start_from_the_mean_of_the_old_ones():
    old, new = Net(2, 2), Net(3, 2)
    names = ["background", "a"]
    _transfer(old, new, names, names, ["T2", "FLAIR", "T1"], ["T1", "T2"])
    assert torch.allclose(new.stem.weight[:, 0], old.stem.weight[:, 1] * 2 / 3)
    assert torch.allclose(new.stem.weight[:, 1], old.stem.weight.mean(1) * 2 / 3)
    assert torch.equal(new.body.weight, old.body.weight)
