"""From a table of boxes, or a folder of masks, to a trained detector, its figures and its boxes.json, all by commands."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from PIL import Image

from medseg import cli

SMALL = [
    "trainer.steps_per_epoch=40", "trainer.max_epochs=3", "trainer.pictures=0", "trainer.precision=float32", "trainer.ema=0.9",
    "trainer.workers=0", "logger=none", "optim.lr=0.003", "augment=light", "tune=0.3",
]  # fmt: skip


def bright(shape: tuple[int, ...], rng: np.random.Generator, lesions: int) -> tuple[np.ndarray, list[list[int]]]:
    """Noise with a bright block in the first half of its first axis, or in both, and the boxes around them."""
    image, boxes = rng.normal(40, 10, shape), []
    for n in range(lesions):
        size = rng.integers(8, 13, len(shape))
        room = np.array([shape[0] // 2, *shape[1:]])
        first = rng.integers(0, room - size + 1)
        first[0] += n * room[0]
        image[tuple(map(slice, first, first + size))] += 120
        boxes.append([*map(int, first), *map(int, first + size)])
    return image.clip(0, 255), boxes


def table_of_pictures(folder: Path) -> list[str]:
    """Pictures of no, one or two bright blocks, and a table of their boxes."""
    rng, rows = np.random.default_rng(0), []
    folder.mkdir()
    for n in range(20):
        image, boxes = bright((64, 48), rng, (0, 1, 2)[n % 3])
        Image.fromarray(image.T.astype(np.uint8)).save(folder / f"p{n}.png")
        rows.append([f"p{n}", f"p{n}.png", ";".join(",".join(map(str, [*box, "cell"])) for box in boxes)])
    with (folder / "cases.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "image", "boxes"], *rows])
    return ["data=table", f"data.file={folder / 'cases.csv'}"]


def folder_of_volumes(folder: Path) -> list[str]:
    """Anisotropic volumes of one bright block or none, and their masks."""
    rng = np.random.default_rng(1)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for n in range(12):
        image, boxes = bright((32, 32, 16), rng, int(n % 4 > 0))
        mask = np.zeros(image.shape, np.uint8)
        for box in boxes:
            mask[tuple(map(slice, box[:3], box[3:]))] = 1
        for name, values in (("images", image.astype(np.float32)), ("masks", mask)):
            nib.save(nib.Nifti1Image(values, np.diag([1.0, 1, 2, 1])), folder / name / f"v{n}.nii.gz")
    return [
        "data=folder", f"data.images={folder / 'images'}", f"data.labels={folder / 'masks'}", "data.label_names={1: node}"
    ]  # fmt: skip


def run(*words: str) -> None:
    assert cli.main(list(words)) == 0


@pytest.mark.parametrize(
    ("data", "patch", "label", "more"),
    [
        (table_of_pictures, "[48,48]", "cell", ["network=anchor_free", "loss=quality_giou"]),
        (folder_of_volumes, "[24,24,16]", "node", []),
    ],
    ids=["boxes of pictures", "masks of volumes"],
)
def test_a_detector_is_trained_scored_and_used(
    data: Callable[[Path], list[str]], patch: str, label: str, more: list[str], tmp_path: Path
) -> None:
    given, model = data(tmp_path / "data"), tmp_path / "run"
    run(
        "train", "task=detection", *given, f"run.dir={model}", f"cache.dir={tmp_path / 'cache'}", f"plan.patch_size={patch}",
        "plan.batch_size=4", "plan.width=8", *SMALL, *more,
    )  # fmt: skip
    run("evaluate", *given, f"model={model}", f"out={tmp_path / 'scores'}", "baselines=true", "bootstrap=20")
    summary = json.loads((tmp_path / "scores" / "summary.json").read_text())
    assert summary["ap_10"][label]["value"] > 0.7, summary["ap_10"]
    assert (tmp_path / "scores" / "figures" / "froc.png").is_file()
    assert (tmp_path / "scores" / "baselines" / "brightest_components" / "summary.json").is_file()

    scans = tmp_path / "data" / ("images" if label == "node" else "")
    run("predict", f"model={model}", f"input={scans}", f"output={tmp_path / 'found'}", "boxes.fp_per_scan=2")
    with (tmp_path / "found" / "predictions.csv").open() as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert {row["status"] for row in rows.values()} == {"done"} and len(rows) == (12 if label == "node" else 20)
    assert sum(int(row[f"{label}_lesions"]) for row in rows.values()) > 5
    case = tmp_path / "found" / ("v1" if label == "node" else "p1")
    assert (case / "mask.nii.gz").is_file() == (label == "node")
    body = json.loads((case / "boxes.json").read_text())
    assert set(body["working_point"]) == {label} and (case / "overlay.png").is_file()
    run(
        "evaluate",
        *given,
        f"predictions={tmp_path / 'found'}",
        "split=all",
        "task=detection",
        f"out={tmp_path / 'again'}",
    )


def test_a_segmentation_model_becomes_a_detector_by_its_components(tmp_path: Path) -> None:
    given, model = folder_of_volumes(tmp_path / "data"), tmp_path / "run"
    run(
        "train", "task.components=true", *given, f"run.dir={model}", f"cache.dir={tmp_path / 'cache'}",
        "plan.patch_size=[24,24,16]", "plan.batch_size=4", "plan.width=8", *SMALL,
    )  # fmt: skip
    point = yaml.safe_load((model / "model" / "model.yaml").read_text())["working_point"]["components"]
    assert set(point["thresholds"]) == {"node"} and point["aggregate"] in ("max", "mean", "p95")
    run("evaluate", *given, f"model={model}", "boxes=components", f"out={tmp_path / 'scores'}", "bootstrap=20")
    summary = json.loads((tmp_path / "scores" / "summary.json").read_text())
    assert summary["ap_10"]["node"]["value"] > 0.7 and "dice" not in summary
    run(
        "predict",
        f"model={model}",
        f"input={tmp_path / 'data' / 'images'}",
        f"output={tmp_path / 'b'}",
        "boxes=components",
    )
    assert (tmp_path / "b" / "v1" / "boxes.json").is_file() and (tmp_path / "b" / "v1" / "mask.nii.gz").is_file()
