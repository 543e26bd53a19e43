"""MONAI's networks obey the plan's stages, or state their divisor, and keep the forward contract."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets.dynunet import DynUNet
from torch import Tensor

from medseg.errors import MedsegError
from medseg.networks import monai_nets

STRIDES = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2))
KERNELS = ((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))


def test_dynunet_returns_the_true_levels_of_monais_own() -> None:
    """MONAI enlarges each level to the finest; ours are the same before that."""
    options = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "deep_supervision": True, "deep_supr_num": 2}
    rows = [list(row) for row in STRIDES]
    theirs = DynUNet(
        **options, kernel_size=KERNELS, strides=rows, upsample_kernel_size=rows[1:], filters=[4, 8, 8, 8]
    ).train()
    ours = monai_nets.dynunet(
        dimensions=3, in_channels=1, out_channels=2, features=(4, 8, 8, 8), strides=STRIDES, kernel_sizes=KERNELS
    ).train()
    weights = {name: w for name, w in theirs.state_dict().items() if not name.startswith("skip_layers")}
    ours.load_state_dict(weights)
    x = torch.randn(1, 1, 8, 16, 16)
    expected = theirs(x).unbind(1)
    found = ours(x)
    assert len(found) == len(expected) == 3
    for level, enlarged in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.nn.functional.interpolate(level, enlarged.shape[2:]), enlarged)


def test_dynunet_needs_three_stages() -> None:
    with pytest.raises(MedsegError, match="three or more stages, found 2"):
        monai_nets.dynunet(
            dimensions=2,
            in_channels=1,
            out_channels=2,
            features=(4, 8),
            strides=((1, 1), (2, 2)),
            kernel_sizes=((3, 3),) * 2,
        )


@pytest.mark.parametrize("builder", [monai_nets.unet, monai_nets.attention_unet])
def test_plain_monai_networks_return_one_tensor_in_training(builder: object) -> None:
    network = builder(dimensions=3, in_channels=1, out_channels=2, features=(4, 8, 8, 8), strides=STRIDES)  # type: ignore[operator]
    out = network.train()(torch.randn(2, 1, 8, 16, 16))
    assert isinstance(out, Tensor) and out.shape == (2, 2, 8, 16, 16)


def test_segresnet_keeps_the_stages_of_its_divisor() -> None:
    assert monai_nets.segresnet.divisor == 8
    with pytest.raises(MedsegError, match="four blocks_down"):
        monai_nets.segresnet(dimensions=3, in_channels=1, out_channels=2, blocks_down=(1, 2), blocks_up=(1,))


def test_a_patch_that_shrinks_to_one_voxel_is_refused_before_training() -> None:
    with pytest.raises(MedsegError, match="single voxel.*at least 64"):
        monai_nets.swin_unetr(dimensions=3, in_channels=1, out_channels=2, patch_size=(32, 32, 32))


def test_layers_may_be_named_as_yaml_names_them() -> None:
    network = monai_nets.unet(
        dimensions=2,
        in_channels=1,
        out_channels=2,
        features=(4, 8),
        strides=((1, 1), (2, 2)),
        norm=["GROUP", {"num_groups": 2}],
    )
    assert any(isinstance(module, torch.nn.GroupNorm) for module in network.modules())
