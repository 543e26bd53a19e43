"""Plans for made-up statistics whose right answer follows from the published rules."""

from __future__ import annotations

import math
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from medseg.errors import MedsegError
from medseg.planning.fingerprint import CaseStatistics, ChannelStatistics, Fingerprint
from medseg.planning.plan import Plan
from medseg.planning.planner import make_plan
from medseg.planning.topology import Stages, training_bytes
from medseg.structures import LabelTable
from medseg.volume import Unit

LABELS = LabelTable({1: "organ", 2: "lesion"})


def channel(modality: str = "", minimum: float = 0.0, maximum: float = 255.0) -> ChannelStatistics:
    return ChannelStatistics(modality, 40.0, 20.0, 41.0, -80.0, 120.0, minimum, maximum)


def cases_of(
    count: int,
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    *,
    crop: tuple[int, ...] | None = None,
    unit: Unit = "mm",
    channels: tuple[ChannelStatistics, ...] = (channel(),),
    stored: tuple[int, ...] | None = None,
) -> Fingerprint:
    order = stored or tuple(range(len(shape)))
    cases = tuple(
        CaseStatistics(f"case{n:03}", shape, spacing, unit, crop or shape, order, {"organ": 1.0}) for n in range(count)
    )
    return Fingerprint(cases, channels)


def plan_for(fingerprint: Fingerprint, names: tuple[str, ...] = ("MRI",), **options: Any) -> Plan:
    return make_plan(fingerprint, names, LABELS, **options)


HIPPOCAMPUS = cases_of(200, (35, 50, 36), (1.0, 1.0, 1.0))
LARGE = cases_of(100, (512, 512, 200), (0.8, 0.8, 2.0), channels=(channel("CT", -1024.0, 3000.0),))


def test_hippocampus_is_planned_as_nnunet_plans_it() -> None:
    """nnU-Net v2, Task04, 3d_fullres: patch 40×56×40, strides of three halvings, 32…256 features, batch 9."""
    plan = plan_for(HIPPOCAMPUS)
    assert plan.spacing == (1.0, 1.0, 1.0)
    assert plan.patch_size == (40, 56, 40)
    assert plan.features == (32, 64, 128, 256)
    assert plan.batch_size == 9
    assert plan.divisor == (8, 8, 8)
    assert plan.channels[0].normalisation == "zscore"
    assert plan.mirror_axes == (0, 1, 2)


def test_every_value_carries_a_reason_and_survives_the_file() -> None:
    for fingerprint in (HIPPOCAMPUS, LARGE):
        plan = plan_for(fingerprint)
        assert set(plan.why) == {f.name for f in fields(Plan)} - {"why", "boxes", "classes", "conventions"}
        assert Plan.from_yaml(plan.to_yaml()) == plan
        assert plan_for(fingerprint).to_yaml() == plan.to_yaml()


@pytest.mark.parametrize("memory_gb", [1.0, 2.0, 4.0, 8.0, 24.0])
@pytest.mark.parametrize("encoder", ["plain", "residual"])
def test_a_training_step_fits_in_the_stated_memory(memory_gb: float, encoder: Any) -> None:
    for fingerprint in (HIPPOCAMPUS, LARGE, cases_of(30, (900, 700), (1.0, 1.0), unit="px")):
        plan = plan_for(fingerprint, memory_gb=memory_gb, encoder=encoder)
        stages = Stages(encoder, plan.features, plan.strides, plan.kernel_sizes, plan.blocks)
        assert training_bytes(plan.patch_size, plan.batch_size, stages, 1, 3) <= memory_gb * 1e9
        assert plan.batch_size >= 2


def test_more_memory_never_gives_a_smaller_patch() -> None:
    sizes = [math.prod(plan_for(LARGE, memory_gb=gb, width=32).patch_size) for gb in (2, 4, 8, 16, 32)]
    assert all(small <= large for small, large in pairwise(sizes))
    assert sizes[0] < sizes[-1]


def test_the_patch_keeps_the_proportions_of_the_cases() -> None:
    plan = plan_for(cases_of(100, (320, 320, 160), (1.0, 1.0, 1.0)))
    assert plan.patch_size[0] / plan.patch_size[2] == pytest.approx(2, rel=0.35)


def test_a_small_budget_makes_the_network_narrower_and_says_so() -> None:
    plan = plan_for(LARGE, memory_gb=1.0)
    assert plan.features[0] < 32
    assert "32" in plan.why["features"]


def test_far_apart_slices_are_planned_on_their_own() -> None:
    """Spacing 1×1×8 in nine of ten cases, 1×1×4 in the tenth: the 10th percentile is taken along that axis."""
    coarse, fine = cases_of(9, (200, 200, 20), (1.0, 1.0, 8.0)), cases_of(1, (200, 200, 40), (1.0, 1.0, 4.0))
    plan = plan_for(Fingerprint(coarse.cases + fine.cases, coarse.channels))
    assert plan.spacing == (1.0, 1.0, 7.6)  # numpy's linear percentile between 4 and 8
    assert (plan.image_order, plan.label_order) == ((3, 3, 0), (1, 1, 0))
    assert plan.kernel_sizes[0] == (3, 3, 1)
    assert plan.strides[1] == (2, 2, 1)
    assert "percentile" in plan.why["spacing"]


def test_coarse_but_long_axes_are_not_treated_as_slices() -> None:
    plan = plan_for(cases_of(10, (100, 100, 100), (1.0, 1.0, 5.0)))
    assert plan.image_order == (3, 3, 3)


def test_ct_is_clipped_and_normalised_by_all_cases() -> None:
    plan = plan_for(LARGE)
    ct = plan.channels[0]
    assert (ct.normalisation, ct.low, ct.high, ct.mean, ct.std) == ("ct", -80.0, 120.0, 40.0, 20.0)
    assert plan.crop == "none"


@pytest.mark.parametrize(
    ("name", "modality", "kind"),
    [
        ("CT", "", "ct"),
        ("low-dose CT", "", "ct"),
        ("CT", "MR", "zscore"),
        ("scan", "CT", "ct"),
        ("picture", "", "zscore"),
    ],
)
def test_the_files_modality_goes_before_the_channels_name(name: str, modality: str, kind: str) -> None:
    fingerprint = cases_of(5, (32, 32, 32), (1.0, 1.0, 1.0), channels=(channel(modality),))
    assert plan_for(fingerprint, (name,)).channels[0].normalisation == kind


def test_values_that_look_like_ct_are_pointed_out() -> None:
    fingerprint = cases_of(5, (32, 32, 32), (1.0, 1.0, 1.0), channels=(channel(minimum=-1024.0),))
    assert "name the channel CT" in plan_for(fingerprint, ("image",)).why["channels"]


def test_the_user_may_choose_the_normalisation() -> None:
    plan = plan_for(HIPPOCAMPUS, normalisation="ct")
    assert (plan.channels[0].normalisation, plan.channels[0].high) == ("ct", 120.0)
    with pytest.raises(MedsegError, match="expected one of"):
        plan_for(HIPPOCAMPUS, normalisation="histogram")


def test_empty_borders_are_cropped_where_it_pays() -> None:
    assert plan_for(cases_of(5, (100, 100, 100), (1.0,) * 3, crop=(95, 95, 95))).crop == "none"
    plan = plan_for(cases_of(5, (100, 100, 100), (1.0,) * 3, crop=(48, 64, 48)))
    assert plan.crop == "nonzero"
    assert plan.patch_size == (48, 64, 48)


def test_pictures_are_planned_in_pixels_as_stored() -> None:
    plan = plan_for(cases_of(600, (256, 214), (1.0, 1.0), unit="px"))
    assert (plan.dimensions, plan.unit, plan.orientation, plan.spacing) == (2, "px", "stored", (1.0, 1.0))
    assert plan.patch_size == (256, 224)
    assert max(plan.features) == 512
    with pytest.raises(MedsegError, match="orientation"):
        plan_for(cases_of(6, (256, 214), (1.0, 1.0), unit="px"), orientation="RAS")


def test_colours_are_scaled_alike() -> None:
    colours = (channel(maximum=255.0), channel(maximum=1.0), channel(maximum=200.0))
    plan = plan_for(cases_of(6, (64, 64), (1.0, 1.0), unit="px", channels=colours), ("photo",))
    assert [c.name for c in plan.channels] == ["red", "green", "blue"]
    assert {(c.normalisation, c.low, c.high) for c in plan.channels} == {("rescale", 0.0, 255.0)}


def test_several_channels_are_found_by_their_names() -> None:
    fingerprint = cases_of(6, (64, 64, 64), (1.0,) * 3, channels=(channel(), channel()))
    plan = plan_for(fingerprint, ("T1", "FLAIR"))
    assert [c.match for c in plan.channels] == ["T1", "FLAIR"]
    assert [c.match for c in plan_for(fingerprint, ("0", "1")).channels] == ["", ""]
    given = plan_for(fingerprint, ("T1", "FLAIR"), match={"T1": "mprage|t1"})
    assert [c.match for c in given.channels] == ["mprage|t1", "FLAIR"]
    with pytest.raises(MedsegError, match="no channel"):
        plan_for(fingerprint, ("T1", "FLAIR"), match={"T2": "t2"})
    with pytest.raises(MedsegError, match="names 1 channels"):
        plan_for(fingerprint, ("T1",))


def test_stored_orientation_plans_along_the_axes_of_the_file() -> None:
    fingerprint = cases_of(20, (64, 96, 32), (1.0, 1.0, 1.0), stored=(2, 0, 1))
    turned = plan_for(fingerprint, orientation="stored")
    assert plan_for(fingerprint).patch_size == (64, 96, 32)
    assert turned.patch_size == (96, 32, 64)  # axis 0 (R) of 64 is axis 2 of the file
    assert turned.why["orientation"] == "as configured"


def test_labels_of_a_side_are_not_mirrored_onto_the_other() -> None:
    labels = LabelTable({1: "left_kidney", 2: "right_kidney"})
    assert make_plan(HIPPOCAMPUS, ("MRI",), labels).mirror_axes == (1, 2)
    fingerprint = cases_of(20, (64, 96, 32), (1.0, 1.0, 1.0), stored=(2, 0, 1))
    assert make_plan(fingerprint, ("MRI",), labels, orientation="stored").mirror_axes == (0, 1)


@pytest.mark.parametrize("divisor", [32, (32, 32, 32), (16, 32, 8)])
def test_a_networks_own_divisor_is_obeyed(divisor: Any) -> None:
    each = divisor if isinstance(divisor, tuple) else (divisor,) * 3
    for fingerprint in (HIPPOCAMPUS, LARGE):
        plan = plan_for(fingerprint, divisor=divisor)
        assert all(n % d == 0 for n, d in zip(plan.patch_size, each, strict=True))
    tiny = plan_for(cases_of(9, (20, 20, 20), (1.0,) * 3), divisor=32)
    assert max(tiny.patch_size) == 64  # more than one voxel must be left at the bottom


@pytest.mark.parametrize("shape", [(5, 5, 5), (3, 3, 1), (64, 64, 1), (9, 70, 4)])
def test_small_and_thin_cases_have_a_plan_too(shape: tuple[int, ...]) -> None:
    plan = plan_for(cases_of(4, shape, (1.0, 1.0, 1.0)))
    assert len(plan.features) >= 2
    assert all(p >= n for p, n in zip(plan.patch_size, shape, strict=True))
    assert math.prod(p // d for p, d in zip(plan.patch_size, plan.divisor, strict=True)) > 1


def test_a_batch_shows_less_than_a_twentieth_of_the_voxels() -> None:
    for count in (60, 200, 1000):
        plan = plan_for(cases_of(count, (40, 40, 40), (1.0,) * 3), memory_gb=100.0)
        assert plan.batch_size == math.ceil(0.05 * count) - 1
    assert plan_for(cases_of(3, (40, 40, 40), (1.0,) * 3)).batch_size == 2


def test_a_patch_of_the_users_replans_the_strides() -> None:
    plan = plan_for(HIPPOCAMPUS, overrides={"patch_size": [32, 32, 16]})
    assert plan.patch_size == (32, 32, 16)
    assert plan.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 1))
    assert plan.why["patch_size"] == "as configured"
    assert "32×32×16" in plan.why["strides"]


def test_a_spacing_of_the_users_replans_the_patch() -> None:
    plan = plan_for(HIPPOCAMPUS, overrides={"spacing": [2, 2, 2]})
    assert plan.spacing == (2.0, 2.0, 2.0)
    assert plan.patch_size == (20, 28, 20)


def test_features_of_the_users_decide_the_number_of_stages() -> None:
    plan = plan_for(HIPPOCAMPUS, overrides={"features": [16, 32, 64]})
    assert len(plan.strides) == len(plan.blocks) == len(plan.kernel_sizes) == 3
    assert plan.patch_size == (36, 52, 36)
    deeper = plan_for(HIPPOCAMPUS, overrides={"features": [16, 32, 64, 64, 64]})
    assert len(deeper.strides) == 5


def test_strides_of_the_users_decide_the_divisor() -> None:
    strides = [[1, 1, 1], [2, 2, 2], [3, 3, 3]]
    plan = plan_for(HIPPOCAMPUS, overrides={"strides": strides})
    assert plan.divisor == (6, 6, 6)
    assert plan.patch_size == (36, 54, 36)
    assert len(plan.features) == 3


def test_the_batch_follows_the_users_patch_and_the_patch_the_users_batch() -> None:
    small = plan_for(LARGE, overrides={"patch_size": [64, 64, 32]})
    assert small.batch_size > plan_for(LARGE).batch_size
    many = plan_for(LARGE, batch_size=8, width=32)
    assert many.batch_size == 8
    assert math.prod(many.patch_size) < math.prod(plan_for(LARGE, width=32).patch_size)
    assert many.why["batch_size"] == "as configured"


def test_what_is_null_is_left_to_the_planner() -> None:
    names = [f.name for f in fields(Plan) if f.name != "why"]
    assert plan_for(HIPPOCAMPUS, overrides=dict.fromkeys(names)) == plan_for(HIPPOCAMPUS)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"patchsize": [8, 8, 8]}, "plan has no patchsize"),
        ({"patch_size": [50, 50, 50]}, "48 or 56"),
        ({"patch_size": [32, 32]}, "a list of 3 numbers"),
        ({"patch_size": "large"}, "a list of 3 numbers"),
        ({"patch_size": [32, 32, 0]}, "from 1 up"),
        ({"patch_size": [32.5, 32, 32]}, "whole numbers"),
        ({"spacing": [1, 1, -1]}, "positive"),
        ({"features": []}, "one entry a stage"),
        ({"features": 32}, "expected a list"),
        ({"features": [8] * 9}, "can be halved into"),
        ({"features": [8, 16], "blocks": [2, 2, 2]}, "one entry a stage"),
        ({"strides": [[2, 2, 2], [2, 2, 2]]}, "keeps the resolution"),
        ({"strides": [[1, 1], [2, 2]]}, "a list of 3 numbers"),
        ({"strides": [[1, 1, 1], [2, 2, 2]], "patch_size": [33, 32, 32]}, "multiples of"),
        ({"kernel_sizes": [[3, 3, 3], [2, 2, 2]]}, "odd"),
        ({"mirror_axes": [0, 3]}, "mirror_axes"),
        ({"image_order": [2, 2, 2]}, "expected 0"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 2.5}, "whole numbers"),
        ({"foreground": 2}, "foreground"),
        ({"foreground": "much"}, "wrong type"),
        ({"memory_gb": -1}, "positive"),
        ({"unit": "px"}, "leave it out"),
        ({"options": {"grey": True}}, "leave it out"),
        ({"orientation": "LPS"}, "RAS or stored"),
        ({"crop": "tight"}, "nonzero or none"),
        ({"channels": [{"name": "CT", "normalisation": "ct"}]}, "low < high"),
        ({"channels": [{"name": "CT"}]}, "wrong type"),
    ],
)
def test_what_the_user_sets_wrongly_is_one_clear_message(overrides: dict[str, Any], says: str) -> None:
    with pytest.raises(MedsegError, match=says):
        plan_for(HIPPOCAMPUS, overrides=overrides)


def test_a_patch_that_does_not_fit_the_network_is_refused() -> None:
    with pytest.raises(MedsegError, match="32, 32, 32"):
        plan_for(HIPPOCAMPUS, divisor=32, overrides={"patch_size": [40, 56, 40]})


def test_what_exceeds_the_budget_is_said(caplog: pytest.LogCaptureFixture) -> None:
    plan = plan_for(LARGE, memory_gb=2.0, overrides={"patch_size": [256, 256, 128]})
    assert plan.batch_size == 2
    assert "more than plan.memory_gb=2" in caplog.text


@pytest.mark.shared_data
def test_the_real_hippocampus_cases_have_the_known_plan(shared_data: Path) -> None:
    from medseg.planning.fingerprint import fingerprint
    from medseg.structures import Case, Cohort, Source

    root = shared_data / "hippocampus"
    cases = tuple(
        Case(path.name.split(".")[0], (Source("nifti", (path,)),), Source("nifti", (root / "labelsTr" / path.name,)))
        for path in sorted((root / "imagesTr").glob("*.nii.gz"))
    )
    labels = LabelTable({1: "Anterior", 2: "Posterior"})
    plan = make_plan(fingerprint(Cohort(cases, ("MRI",), labels), progress=False), ("MRI",), labels)
    assert (plan.spacing, plan.patch_size, plan.batch_size) == ((1.0, 1.0, 1.0), (40, 56, 40), 9)
    assert len(plan.features) == 4
