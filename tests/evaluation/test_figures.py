from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg.errors import MedsegError
from medseg.evaluation.figures import Overlay, draw_metric, draw_overlays
from medseg.evaluation.segmentation import NAN, Row
from medseg.evaluation.summary import ScoredCase
from medseg.scans.box_frames import moved
from medseg.volume import Geometry, reorientation_to


def test_the_figure_is_drawn_also_where_a_label_has_no_value(tmp_path: Path) -> None:
    cases = [
        ScoredCase(str(i), str(i), "test", (Row("organ", "dice", i / 10, 1, 1), Row("$absent_{$", "dice", NAN, 0, 0)))
        for i in range(10)
    ]
    draw_metric(cases, tmp_path / "figures" / "dice.png", title="test")
    with Image.open(tmp_path / "figures" / "dice.png") as picture:
        assert picture.size[0] > 200
    assert [p.name for p in (tmp_path / "figures").iterdir()] == ["dice.png"]


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 8), (6, 7, 1)])
def test_overlays_are_drawn_in_two_and_three_dimensions(shape: tuple[int, ...], tmp_path: Path) -> None:
    truth = np.zeros(shape, bool)
    truth[(slice(2, 5),) * len(shape)] = True
    geometry = Geometry.from_spacing(shape, (1.0,) * len(shape))
    image = np.random.default_rng(0).random(shape)
    overlay = Overlay.of("a & <b>: $x_{1$ \\frac", image, truth, np.roll(truth, 1, 0), geometry)
    draw_overlays([overlay] * 4, tmp_path / "worst.png")
    with Image.open(tmp_path / "worst.png") as picture:
        assert picture.size[1] > 200


def test_nothing_to_draw_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MedsegError):
        draw_overlays([], tmp_path / "worst.png")


def test_the_slice_is_the_fullest_across_the_coarsest_axis() -> None:
    shape = (40, 6, 50)
    truth = np.zeros(shape, bool)
    truth[20:23, 4, 25:30] = True
    image = np.indices(shape)[1]
    overlay = Overlay.of("a", image, truth, truth, Geometry.from_spacing(shape, (1.0, 5.0, 2.0)))
    assert (overlay.image == 4).all()
    assert overlay.truth.sum() == 15
    assert overlay.spacing == (1.0, 2.0)
    assert overlay.image.shape == (23, 25)  # three and five voxels with ten on each side


def test_slices_look_the_same_whatever_orientation_the_file_has() -> None:
    shape = (12, 10, 4)
    geometry = Geometry.from_spacing(shape, (1.0, 1.0, 3.0))
    image = np.random.default_rng(0).random(shape)
    truth = image > 0.8
    one = Overlay.of("a", image, truth, truth, geometry)
    turn = reorientation_to(geometry, "PSR")
    turned = [turn.apply(array) for array in (image, truth, truth)]
    two = Overlay.of("a", *turned, turn.apply_to_geometry(geometry))
    assert np.array_equal(one.image, two.image)
    assert np.array_equal(one.truth, two.truth)
    assert one.spacing == two.spacing
    assert one.upwards


def boxes_drawn(overlay: Overlay) -> tuple[list[list[float]], list[list[float]]]:
    return overlay.true_boxes.tolist(), overlay.found_boxes.tolist()


def test_boxes_are_shown_where_most_of_the_true_ones_are() -> None:
    shape = (40, 50, 10)
    true = np.array([[20, 30, 2, 24, 36, 5], [21, 25, 4, 25, 29, 6], [2, 2, 8, 5, 5, 9]], float)
    found = np.array([[20, 31, 4, 24, 37, 5], [1, 1, 8, 4, 4, 9], [1, 1, 7.5, 4, 4, 9], [0, 0, 8, 2, 2, 9]])
    image = np.indices(shape)[2]
    overlay = Overlay.of_boxes("a", image, true, found, Geometry.from_spacing(shape, (1.0, 1.0, 3.0)))
    assert (overlay.image == 4).all() and overlay.upwards and overlay.spacing == (1.0, 1.0)
    assert overlay.image.shape == (15 + 10, 24 + 12)  # turned: the first axis grows to the left, and the rim is near
    right = [[40 - 24, 30, 40 - 20, 36], [40 - 25, 25, 40 - 21, 29]]
    start = np.array([5, 13, 5, 13])  # ten pixels, or as many as the boxes span, around them
    assert boxes_drawn(overlay) == ((np.array(right) - start).tolist(), [(np.array([16, 31, 20, 37]) - start).tolist()])


def test_slices_with_boxes_look_the_same_whatever_orientation_the_file_has() -> None:
    shape = (30, 40, 10)
    geometry = Geometry.from_spacing(shape, (1.0, 1.0, 3.0))
    true, found = np.array([[20.0, 12, 2, 24, 16, 5]]), np.array([[19.0, 12, 3, 24.5, 16, 4]])
    turn = reorientation_to(geometry, "PSR")
    turned = turn.apply_to_geometry(geometry)
    image = np.random.default_rng(0).random(shape)
    one = Overlay.of_boxes("a", image, true, found, geometry)
    both = (moved(boxes, geometry, turned) for boxes in (true, found))
    two = Overlay.of_boxes("a", turn.apply(image), *both, turned)
    assert np.array_equal(one.image, two.image) and boxes_drawn(one) == boxes_drawn(two)


def test_boxes_of_a_picture_are_drawn_at_their_edges(tmp_path: Path) -> None:
    image = np.zeros((60, 80))
    none, true = np.zeros((0, 4)), np.array([[20.0, 30, 40, 44]])
    overlay = Overlay.of_boxes("a", image, true, none, Geometry.from_spacing(image.shape, (1.0, 1.0), "px"))
    assert boxes_drawn(overlay) == ([[20, 14, 40, 28]], []) and overlay.image.shape == (60, 42)
    nothing = Overlay.of_boxes("b", image, none, none, Geometry.from_spacing(image.shape, (1.0, 1.0), "px"))
    assert nothing.image.shape == image.shape
    draw_overlays([overlay, nothing], tmp_path / "worst.png")
    with Image.open(tmp_path / "worst.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    drawn = np.argwhere((pixels == (0x17, 0xBE, 0xCF)).all(-1))  # rows, columns
    high, wide = np.ptp(drawn, axis=0)
    assert wide / high == pytest.approx(20 / 14, rel=0.05)
