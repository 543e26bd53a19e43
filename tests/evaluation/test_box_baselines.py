from __future__ import annotations

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.evaluation.box_baselines import BoxExample, BrightestComponents
from medseg.evaluation.boxes import iou_matrix
from medseg.structures import Boxes, LabelTable

LESION = LabelTable({1: "lesion"})
NONE = Boxes(np.zeros((0, 6)), np.zeros(0, int))


def scan(seed: int, value: float = 0.8, axes: int = 3, label: int = 1) -> BoxExample:
    """Two cubes of ``value`` on noise around 0.25."""
    random = np.random.default_rng(seed)
    image = random.normal(0.25, 0.02, (1, *(24,) * axes)).astype(np.float32)
    boxes = []
    for start in (2, 14):
        lower = random.integers(start, start + 3, axes)
        image[(0, *(slice(a, a + 5) for a in lower))] = value + random.normal(0, 0.02)
        boxes.append([*lower, *(lower + 5)])
    return BoxExample(image, Boxes(np.array(boxes, float), np.full(2, label)))


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("value", [0.8, 0.02])
def test_bright_and_dark_lesions_are_found_with_their_boxes(axes: int, value: float) -> None:
    fitted = BrightestComponents.fit((scan(i, value, axes) for i in range(3)), LESION)
    rule, case = fitted.rules["lesion"], scan(9, value, axes)
    found = fitted.predict(case.image)
    assert rule.precision == pytest.approx(1) and rule.sign == (1 if value > 0.25 else -1)
    assert case.truth is not None and found.scores is not None
    assert (iou_matrix(found.boxes[:2], case.truth.boxes).max(axis=1) == 1).all()
    assert (np.diff(found.scores) <= 0).all() and found.scores.min() >= 0 and found.scores.max() <= 1
    assert set(found.labels) == {1}


def test_a_faint_large_lesion_is_told_from_a_single_bright_voxel() -> None:
    def case(seed: int) -> BoxExample:
        made = scan(seed)
        made.image[0, 11, 11, 11] = 3.0
        return made

    fitted = BrightestComponents.fit([case(i) for i in range(3)], LESION)
    assert fitted.rules["lesion"].ranked_by == "excess" and fitted.rules["lesion"].precision == pytest.approx(1)


def test_the_channel_that_shows_the_lesions_is_taken() -> None:
    cases = [scan(i) for i in range(3)]
    noise = np.random.default_rng(0).normal(0.25, 0.2, cases[0].image.shape).astype(np.float32)
    both = [BoxExample(np.concatenate([noise, case.image]), case.truth) for case in cases]
    assert BrightestComponents.fit(both, LESION).rules["lesion"].channel == 1


def test_each_label_has_its_own_rule_and_one_that_fit_never_shows_has_none() -> None:
    labels = LabelTable({1: "bright", 2: "dark", 3: "absent"})
    cases = [scan(i, value, label=label) for i in range(3) for value, label in ((0.8, 1), (0.02, 2))]
    fitted = BrightestComponents.fit(cases, labels)
    assert set(fitted.rules) == {"bright", "dark"}
    for value, label in ((0.8, 1), (0.02, 2)):
        case = scan(7, value)
        found = fitted.predict(case.image)
        assert case.truth is not None and 3 not in found.labels
        assert (iou_matrix(found.boxes[found.labels == label][:2], case.truth.boxes).max(axis=1) == 1).all()


def test_what_shines_in_scans_without_lesion_counts_against_a_rule() -> None:
    image = np.full((1, 24, 24, 24), 0.25, np.float32)
    image[0, 4:18, 4:18, 4:18] = 0.6  # less bright than a lesion, but so large that together it exceeds one
    fitted = BrightestComponents.fit([*(scan(i) for i in range(3)), *[BoxExample(image, NONE)] * 5], LESION)
    assert fitted.rules["lesion"].precision == pytest.approx(1)
    shining, lesions = fitted.predict(image).scores, fitted.predict(scan(5).image).scores
    assert shining is not None and lesions is not None
    assert max(shining, default=0.0) < lesions[1]


def test_an_image_in_which_nothing_stands_out_has_no_box() -> None:
    fitted = BrightestComponents.fit([scan(0)], LESION)
    for image in (np.zeros((1, 8, 8, 8)), np.ones((1, 8, 8, 8)) * 9):
        found = fitted.predict(image)
        assert found.boxes.shape == (0, 6) and len(found.labels) == 0


def test_what_a_threshold_cannot_be_fitted_on_is_an_error() -> None:
    with pytest.raises(MedsegError, match="at least one true box"):
        BrightestComponents.fit([], LESION)
    with pytest.raises(MedsegError, match="at least one true box"):
        BrightestComponents.fit([BoxExample(scan(0).image, NONE)], LESION)
    with pytest.raises(MedsegError, match="needs the true boxes"):
        BrightestComponents.fit([BoxExample(scan(0).image)], LESION)
    with pytest.raises(MedsegError, match="1 channels in 3D and 1 channels in 2D"):
        BrightestComponents.fit([scan(0), scan(0, axes=2)], LESION)
