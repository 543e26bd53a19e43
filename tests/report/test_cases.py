"""Whatever became of a case is on its page, and one spoilt case leaves the others as they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.export.nifti import write_labels, write_values
from medseg.report.cases import MOST_FINDINGS, Results, lacks_manifest
from medseg.volume import Geometry
from tests.report.conftest import GRID, HOSTILE
from tests.report.test_sheets import decoded


@pytest.fixture
def opened(results: Path) -> Results:
    found = Results.open(results)
    assert found is not None
    return found


def test_every_case_is_there_with_what_became_of_it(opened: Results) -> None:
    assert opened.names == ["a", "broken", "damaged", "gone", "halfway", "picture"]
    status = {name: opened.show(name).entry["status"] for name in opened.names}
    assert status == {
        "a": "done",
        "broken": "failed",
        "damaged": "damaged",
        "gone": "unfinished",
        "halfway": "unfinished",
        "picture": "done",
    }
    assert "cut short" in opened.show("broken").entry["reason"]
    assert "Run the same command again" in opened.show("gone").entry["reason"]
    assert "Run the same command again" in opened.show("halfway").entry["reason"]


def test_layers_of_a_volume_lie_on_the_same_frames(opened: Results) -> None:
    detail = opened.show("a").detail
    frames = detail["frames"]
    assert (frames["count"], frames["width"], frames["height"], frames["depth"]) == (20, 40, 32, 20)
    assert frames["edges"]["right"] == "L" and detail["mended"] == ["it was tilted"] and "word" not in detail
    mask = decoded(detail["mask"]).reshape(20, 32, 40)
    assert [entry["name"] for entry in detail["painted"]] == ["organ", HOSTILE]
    columns = np.nonzero(mask[7] == 2)[1]
    assert (columns.min(), columns.max()) == (39 - 33, 39 - 29)  # i = 29 … 33 of 40, mirrored
    assert detail["strip"][7] == 2 and detail["strip"][12] == 1 and detail["strip"][0] == 0
    assert decoded(frames["sheet"]).shape == (20 * 32, 40)


def test_findings_come_first_and_point_at_their_slice(opened: Results) -> None:
    detail = opened.show("a").detail
    (row,) = detail["findings"]
    assert (row["id"], row["label"], row["score"], row["is_box"], row["frame"]) == (1, HOSTILE, 0.9, True, 7)
    assert detail["frames"]["start"] == 7
    box, below = detail["boxes"]
    assert box["counts"] and not below["counts"]
    assert box["place"] == [5 / 40, 12 / 32, 12 / 40, 19 / 32, 5, 10]  # R is left: i 28…35 → 5…12; j 13…20 → 12…19


def test_volumes_are_those_of_the_manifest_and_else_of_the_mask(opened: Results, results: Path) -> None:
    sizes = {one["name"]: (one["size"], one["unit"]) for one in opened.show("a").detail["volumes"]}
    assert sizes["organ"] == (opened.records["a"].figures["organ_ml"], "ml")
    body = json.loads((results / "manifest.json").read_text())
    body["cases"]["a"]["figures"] = {"organ_ml": 999.0}
    (results / "manifest.json").write_text(json.dumps(body))
    again = Results.open(results)
    assert again is not None
    assert {one["name"]: one["size"] for one in again.show("a").detail["volumes"]} == {
        "organ": 999.0,
        HOSTILE: sizes[HOSTILE][0],
    }
    del body["cases"]["a"]["figures"]
    (results / "manifest.json").write_text(json.dumps(body))
    again = Results.open(results)
    assert again is not None and again.show("a").entry["figures"]["organ_ml"] == pytest.approx(sizes["organ"][0])


def test_heat_maps_are_called_by_their_targets(opened: Results, results: Path) -> None:
    detail = opened.show("a").detail
    assert [(one["name"], one["signed"]) for one in detail["heatmaps"]] == [("lesion 1", False), ("uncertainty", True)]
    assert detail["method"] == ""
    index = {"made": {"method": "grad_cam"}, "default": True, "targets": {"label-a/b": ["heatmap_lesion-1.nii.gz"]}}
    (results / "a" / "heatmaps.json").write_text(json.dumps(index))
    detail = opened.show("a").detail
    assert detail["heatmaps"][0]["name"] == "label a/b" and detail["method"] == "grad_cam"


def test_what_is_unsure_is_told_with_what_it_is_of(opened: Results, results: Path) -> None:
    boxes = json.loads((results / "a" / "boxes.json").read_text())
    boxes["boxes"][0]["spread"] = 0.05
    (results / "a" / "boxes.json").write_text(json.dumps(boxes))
    (results / "a" / "organs").mkdir()  # where one of several models has its own
    write_values(np.zeros(GRID.shape), GRID, results / "a" / "organs" / "uncertainty")
    body = json.loads((results / "manifest.json").read_text())
    body["cases"]["a"]["figures"]["organ_uncertainty"] = 0.25
    body["cases"]["picture"]["figures"] |= {"benign_in_set": 0.0, "malignant_in_set": 1.0}
    (results / "manifest.json").write_text(json.dumps(body))
    again = Results.open(results)
    assert again is not None
    detail = again.show("a").detail
    assert [box["spread"] for box in detail["boxes"]] == [0.05, pytest.approx(np.nan, nan_ok=True)]
    assert [one["name"] for one in detail["heatmaps"]] == ["lesion 1", "uncertainty", "organs uncertainty"]
    assert [one["uncertainty"] for one in detail["volumes"]] == [0.25, None]
    assert [one["in_set"] for one in again.show("picture").detail["classes"]] == [0.0, 1.0]


def test_a_picture_with_classes_has_bars_and_starts_with_its_heat_map(opened: Results) -> None:
    shown = opened.show("picture")
    assert [(one["name"], one["p"]) for one in shown.detail["classes"]] == [("benign", 0.25), ("malignant", 0.75)]
    assert shown.detail["mask"] is None and shown.detail["volumes"] == [] and shown.detail["frames"]["count"] == 1
    assert shown.entry["figures"]["malignant"] == 0.75 and shown.entry["thumb"].startswith("data:image/jpeg")


def test_a_file_that_is_damaged_is_named_and_the_rest_is_shown(opened: Results, results: Path) -> None:
    shown = opened.show("damaged")
    assert shown.entry["reason"].startswith("mask.nii.gz: ") and str(results) not in shown.entry["reason"]
    assert shown.detail["mask"] is None and len(shown.detail["boxes"]) == 2 and shown.detail["frames"]["sheet"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("boxes.json", "{", "boxes.json"),
        ("boxes.json", '{"boxes": [{"label": "other", "score": 1, "box_vox": [0,0,0,1,1,1]}]}', "boxes of other"),
        ("classes.json", '{"a": "much"}', "expected a probability a class"),
        ("heatmaps.json", "{", "heatmaps.json"),
        ("heatmap_lesion-1.nii.gz", "none", "heatmap_lesion-1.nii.gz"),
        ("slices.png", "none", "slices.png"),
    ],
)
def test_any_file_may_be_damaged(opened: Results, results: Path, name: str, text: str, said: str) -> None:
    (results / "a" / name).write_text(text)
    shown = opened.show("a")
    assert shown.entry["status"] == "damaged" and said in shown.entry["reason"]
    assert shown.detail["mask"] is not None


def test_without_slices_a_case_is_shown_on_its_own_mask_and_says_so(opened: Results, results: Path) -> None:
    (results / "a" / "slices.png").unlink()
    shown = opened.show("a")
    assert shown.entry["status"] == "done" and "No slices of the scan were kept" in shown.detail["word"]
    assert shown.detail["frames"]["sheet"] is None and shown.detail["frames"]["count"] == 20
    assert decoded(shown.detail["mask"]).any()
    (results / "a" / "mask.nii.gz").unlink()
    for path in (results / "a").glob("*.nii.gz"):
        path.unlink()
    boxes_alone = opened.show("a").detail
    assert (
        boxes_alone["frames"]["count"] == 20 and boxes_alone["boxes"][0]["place"] == shown.detail["boxes"][0]["place"]
    )


def test_classes_alone_are_shown_without_a_picture(opened: Results, results: Path) -> None:
    for path in results.joinpath("picture").iterdir():
        if path.name != "classes.json":
            path.unlink()
    shown = opened.show("picture")
    assert shown.entry["status"] == "done" and "frames" not in shown.detail and len(shown.detail["classes"]) == 2
    (results / "picture" / "classes.json").unlink()
    assert opened.show("picture").entry["status"] == "unfinished"


def test_layers_of_another_grid_are_left_out_and_named(opened: Results, results: Path) -> None:
    write_labels(np.ones((3, 3, 3), np.uint8), Geometry.from_spacing((3, 3, 3), (1, 1, 1)), results / "a" / "mask")
    shown = opened.show("a")
    assert (
        shown.entry["reason"]
        == "mask.nii.gz: lies on another grid (3×3×3 at 1×1×1 mm) than the rest (40×32×20 at 2×2×4 mm)"
    )
    assert shown.detail["mask"] is None


def test_labels_that_nothing_names_and_masks_of_specks_are_shown_all_the_same(opened: Results, results: Path) -> None:
    mask = np.zeros(GRID.shape, np.uint16)
    mask[::3, ::3, ::4] = 300
    write_labels(mask, GRID, results / "a" / "mask")
    (results / "a" / "boxes.json").unlink()
    detail = opened.show("a").detail
    assert [one["name"] for one in detail["painted"]] == ["label 300"]
    assert len(detail["findings"]) == MOST_FINDINGS and detail["more_findings"] == 14 * 11 * 5 - MOST_FINDINGS
    assert set(np.unique(decoded(detail["mask"]))) == {0, 1}


def test_a_label_of_thousands_of_parts_is_counted_and_not_measured(opened: Results, results: Path) -> None:
    (results / "a" / "boxes.json").unlink()
    assert [row["label"] for row in opened.show("a").detail["findings"]] == ["organ", HOSTILE]
    body = json.loads((results / "manifest.json").read_text())
    body["cases"]["a"]["figures"] |= {"organ_components": 123456}
    (results / "manifest.json").write_text(json.dumps(body))
    again = Results.open(results)
    assert again is not None
    detail = again.show("a").detail
    assert [row["label"] for row in detail["findings"]] == [HOSTILE] and detail["more_findings"] == 123456


def test_a_record_that_points_out_of_the_folder_is_not_followed(opened: Results, results: Path) -> None:
    body = json.loads((results / "manifest.json").read_text())
    body["cases"]["a"]["folder"] = "../results/a"
    (results / "manifest.json").write_text(json.dumps(body))
    again = Results.open(results)
    assert again is not None and again.show("a").entry["status"] == "unfinished"


def test_no_name_of_a_file_that_was_read_is_taken(opened: Results, results: Path) -> None:
    body = json.loads((results / "manifest.json").read_text())
    body["cases"]["a"]["sources"] = ["Jane_Doe.nii.gz"]
    (results / "manifest.json").write_text(json.dumps(body))
    again = Results.open(results)
    assert again is not None
    shown = again.show("a")
    assert "Jane" not in json.dumps([shown.entry, shown.detail])


def test_a_folder_without_or_with_a_broken_manifest_is_told_apart(results: Path, tmp_path: Path) -> None:
    assert not lacks_manifest(results)
    body = json.loads((results / "manifest.json").read_text())
    (results / "manifest.json").write_text(json.dumps(body | {"labels": ["organ"]}))
    with pytest.raises(MedsegError, match=r"manifest\.json: expected labels as value: name"):
        Results.open(results)
    (results / "manifest.json").unlink()
    assert lacks_manifest(results) and Results.open(results) is None
    assert not lacks_manifest(tmp_path / "results" / "features")
