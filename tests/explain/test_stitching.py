"""The score of a case is a sum over windows: the same as the score of what prediction puts together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg.errors import MedsegError
from medseg.explain.stitching import Stitching
from medseg.planning.conventions import Conventions, Peak
from medseg.tiling.blending import GaussianBlender
from medseg.tiling.windows import cut_window
from tests.explain.nets import convolutions, plan_2d, random_array, score_of
from tests.tiny import tiny_boxes, tiny_plan


@pytest.mark.parametrize("peak", ["middle", "after"])
@pytest.mark.parametrize("shape", [(9, 6), (4, 4), (3, 11), (2, 3)])
def test_the_score_is_the_mean_of_the_blended_logits_in_the_region(shape: tuple[int, int], peak: Peak) -> None:
    array, region = random_array((1, *shape)), random_array(shape, 1) > 0
    torch.manual_seed(0)
    network = convolutions(2, 1, 2)
    score = score_of(network, array, plan_2d(conventions=Conventions(peak=peak)), region)
    blender = GaussianBlender(shape, 2, (4, 4), peak=peak)
    for lower in score.stitching.starts:
        with torch.no_grad():
            window = torch.from_numpy(cut_window(array, lower, (4, 4)).copy())[None]
            blender.add(network(window)[0].numpy(), lower)
    assert score(array) == pytest.approx(float(blender.result()[1][region].mean()), abs=1e-4)


def test_windows_blend_to_one_everywhere() -> None:
    stitching = Stitching(plan_2d(), (11, 6), 0.5)
    total = np.zeros((11, 6), np.float32)
    for lower in stitching.starts:
        stitching.add(total, stitching.blend(lower), lower)
    np.testing.assert_allclose(total, 1, rtol=1e-5)


def test_windows_that_do_not_see_the_region_have_no_share() -> None:
    region = np.zeros((32, 4), bool)
    region[:2] = True
    shares = Stitching(plan_2d(), (32, 4), 0.5).shares("segmentation", region)
    assert all(share.lower[0] < 2 for share in shares)
    assert sum(share.weight for share in shares) == pytest.approx(1, abs=1e-3)


def test_many_windows_with_a_small_share_each_are_all_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.explain.stitching.NEGLIGIBLE", 0.1)
    shares = Stitching(plan_2d(), (20, 20), 0.0).shares("segmentation", None)
    assert len(shares) == 25 and sum(share.weight for share in shares) == pytest.approx(1)


def detector(dimensions: int = 2, levels: tuple[int, ...] = (1,)) -> Stitching:
    anchors = tuple(((4.0,) * dimensions,) for _ in levels)
    plan = tiny_plan(dimensions, task="detection", boxes=tiny_boxes(dimensions, levels=levels, anchors=anchors))
    return Stitching(plan, (20,) * dimensions, 0.5)


def test_a_box_belongs_to_the_windows_that_hold_its_centre() -> None:
    region = np.zeros((20, 20), bool)
    region[6:9, 2:5] = True
    stitching = detector()
    shares = stitching.shares("detection", region)
    holds = [s for s in stitching.starts if all(a <= c < a + 8 for a, c in zip(s, (7, 3), strict=True))]
    assert [share.lower for share in shares] == holds and len(holds) == 2
    assert sum(share.weight for share in shares) == pytest.approx(1)
    middle = max(shares, key=lambda share: share.weight)
    assert middle.lower == (4, 0)
    inside = middle.region()
    assert inside is not None and inside.shape == (1, 8, 8) and inside[0, 2:5, 2:5].all()


@pytest.mark.parametrize("corner", [(5, 6), (6, 6), (3, 0), (19, 19)])
def test_a_box_smaller_than_a_cell_holds_the_centre_of_one(corner: tuple[int, int]) -> None:
    """On the coarser level a cell is two voxels wide, and its centre lies in every second voxel of a window."""
    region = np.zeros((20, 20), bool)
    region[corner] = True
    for share in detector().shares("detection", region):
        inside = share.region()
        assert inside is not None and inside[0, 1::2, 1::2].any()


def test_every_window_has_the_same_part_in_a_class() -> None:
    shares = Stitching(plan_2d(), (8, 4), 0.5).shares("classification", None)
    assert [share.weight for share in shares] == [pytest.approx(1 / 3)] * 3
    assert all(share.region() is None for share in shares)


def test_regions_that_do_not_fit_are_named() -> None:
    stitching = Stitching(plan_2d(), (8, 4), 0.5)
    with pytest.raises(MedsegError, match="region on the plan's grid"):
        stitching.shares("segmentation", np.ones((4, 8), bool))
    with pytest.raises(MedsegError, match="the region is empty"):
        stitching.shares("segmentation", np.zeros((8, 4), bool))
    with pytest.raises(MedsegError, match="asked about a box"):
        stitching.shares("detection", None)
