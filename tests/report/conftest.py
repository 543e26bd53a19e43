"""Small result folders, written as `predict` writes them, and a browser without a window to look at their page."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from medseg.evaluation.segmentation import Row
from medseg.evaluation.summary import ScoredCase, write_evaluation
from medseg.export.boxes import write_boxes
from medseg.export.manifest import Manifest, Record
from medseg.export.nifti import write_mask, write_values
from medseg.export.preview import write_preview
from medseg.export.tables import figures
from medseg.structures import Boxes, LabelTable, Prediction
from medseg.volume import Geometry, Volume

HOSTILE = "</script><script>window.hacked=1</script><b>tümor</b>"
LABELS = LabelTable({1: "organ", 2: HOSTILE})
GRID = Geometry((40, 32, 20), np.diag([2.0, 2.0, 4.0, 1.0]))  # RAS+


def ball(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> np.ndarray:
    at = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    return sum((a - c) ** 2 for a, c in zip(at, centre, strict=True)) < radius**2


def scan(geometry: Geometry = GRID, seed: int = 0) -> Volume:
    """Grey noise with a bright middle, brighter from slice to slice."""
    values = np.random.default_rng(seed).normal(0, 3, geometry.shape)
    values += 100 * ball(geometry.shape, tuple(n / 2 for n in geometry.shape), 0.4 * max(geometry.shape))
    return Volume((values + np.arange(geometry.shape[-1])).astype(np.float32)[None], geometry)


def volume_prediction(case: str = "a") -> Prediction:
    """An organ, and on the patient's right (high i) a lesion in slices 5 to 9 with a box; one more box does not count."""
    mask = ball(GRID.shape, (14, 16, 10), 8).astype(np.uint8)
    mask[ball(GRID.shape, (31, 16, 7), 3)] = 2
    boxes = Boxes(np.array([[28.0, 13, 5, 35, 20, 10], [2, 2, 12, 6, 6, 14]]), np.array([2, 1]), np.array([0.9, 0.2]))
    return Prediction(case, GRID, LABELS, mask, boxes, {"organ": 0.5, HOSTILE: 0.5})


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Cases that are done, a picture, one that failed, one that is unfinished and one whose mask is damaged."""
    folder = tmp_path / "results"
    manifest = Manifest(
        folder,
        models={"": {"sha256": "ab" * 32}},
        options={"overlap": 0.5},
        labels=dict(LABELS.names),
        versions={"medseg": "0"},
    )
    for case in ("a", "damaged"):
        place, found = folder / case, volume_prediction(case)
        place.mkdir(parents=True)
        write_mask(found, place)
        write_boxes(found, place, every=True)
        write_preview(scan(), found, place)
        heat = ball(GRID.shape, (31, 16, 7), 5) * np.linspace(0, 1, 20)
        write_values(heat, GRID, place / "heatmap_lesion-1")
        write_values(heat - 0.2, GRID, place / "uncertainty")
        manifest.record(case, Record("done", 1.5, case, mended=("it was tilted",), figures=figures(found)))
    (folder / "damaged" / "mask.nii.gz").write_bytes((folder / "damaged" / "mask.nii.gz").read_bytes()[:60])
    picture = Geometry.from_spacing((64, 48), (1.0, 1.0), "px")
    place = folder / "picture"
    place.mkdir()
    classes = Prediction("picture", picture, LABELS, classes={"benign": 0.25, "malignant": 0.75})
    write_preview(scan(picture), classes, place)
    write_values(ball((64, 48), (20, 20), 8) - 0.1, picture, place / "heatmap_class-malignant")
    (place / "classes.json").write_text(json.dumps(dict(classes.classes)))
    manifest.record("picture", Record("done", 0.1, "picture", figures=figures(classes)))
    manifest.record("broken", Record("failed", reason="broken.nii.gz: cut short <img src=x>"))
    manifest.record("gone", Record("done", folder="gone"))
    (folder / ".part-halfway").mkdir()
    (folder / "features").mkdir()  # sheets of what a model learned are no case
    manifest.save()
    return folder


TRUST = {
    "grad_cam": {"energy_near": {"value": 0.61, "low": 0.5, "high": 0.7, "n": 9}, "flags": []},
    "guided_backprop": {
        "energy_near": {"value": 0.4, "low": 0.3, "high": 0.5, "n": 9},
        "flags": ["does not depend on the weights"],
    },
    "centre": {"energy_near": {"value": 0.31, "low": 0.25, "high": 0.37, "n": 9}, "flags": []},
}
AUDIT = """column,group,metric,label,value,low,high,n_cases,n_patients,judged
everything,all,dice,mean,0.7,0.6,0.8,9,9,yes
site,A,dice,mean,0.9,0.8,0.95,5,5,yes
site,B,dice,mean,0.3,0.2,0.4,4,4,no
"""


@pytest.fixture
def evaluation(tmp_path: Path, results: Path) -> Path:
    """Figures, baselines, a curve, calibration, audit and trust, beside the predictions that they are of."""
    folder = tmp_path / "evaluation"
    values = {"a": 0.25, "damaged": 0.75, "picture": math.nan}
    write_evaluation(folder, [_scored(case, value) for case, value in values.items()], samples=0)
    write_evaluation(folder / "baselines" / "global_threshold", [_scored("a", 0.1)], samples=0)
    results.rename(folder / "predictions")
    (folder / "figures").mkdir()
    for name in ("dice", "audit"):
        Image.new("RGB", (40, 30), (10, 200, 90)).save(folder / "figures" / f"{name}.png")
    calibration = {
        "temperature": 1.5,
        "ece_before": 0.2,
        "ece_before_interval": [0.1, 0.3],
        "ece_after": None,
        "bins": {},
    }
    audit = {"words": ["Dice differs by site."], "verdicts": [_verdict()]}
    verdict = {
        "method": "grad_cam",
        "passed": False,
        "checks": [{"claim": "points at the lesion", **_entry(), "passed": None}],
    }
    state = {"format": 1, "request": {"split": "tune", "folds": ["0"]}, "complete": False, "failed": ["picture"]}
    for name, body in {
        "calibration": {"all": calibration},
        "audit": audit,
        "trust": TRUST,
        "trust_verdict": verdict,
        "evaluation": state,
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(body))
    (folder / "audit.csv").write_text(AUDIT)
    return folder


def _scored(case: str, value: float) -> ScoredCase:
    return ScoredCase(case, case, "test", (Row("organ", "dice", value, 1, 1),), "0", {"site": "A"})


def _verdict() -> dict[str, object]:
    return {"column": "site", "metric": "dice", "label": "mean", "outlier": "A", "differs": True}


def _entry() -> dict[str, float | None]:
    return {"value": 0.5, "low": None, "high": None, "n": 9}


@pytest.fixture(scope="session")
def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("chromium is not installed")
    return found


FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb")
"""Of a browser that may run as root, without a screen."""
UNFINISHED = ('data-drawn="false"', '<pre id="said"></pre>')
TRIALS = 4
"""The browser's own time runs while it waits for pictures that it decodes: on a busy machine it may end before them."""


class Look:
    """What a page looks like in a browser, at a place of it."""

    def __init__(self, browser: str, folder: Path) -> None:
        self.browser, self.folder = browser, folder

    def _run(self, page: Path, at: dict[str, str], *flags: str, width: int, height: int) -> str:
        fragment = "&".join(f"{name}={quote(value)}" for name, value in at.items())
        own = (
            f"--user-data-dir={self.folder / 'profile'}",
            f"--window-size={width},{height}",
            "--virtual-time-budget=20000",
        )
        command = [self.browser, *FLAGS, *own, "--dump-dom", *flags, f"{page.resolve().as_uri()}#{fragment}"]
        for _ in range(TRIALS):
            dom = subprocess.run(command, capture_output=True, text=True, timeout=110, check=True).stdout
            if not any(sign in dom for sign in UNFINISHED):
                break
        return dom

    def dom(self, page: Path, *, width: int = 1280, height: int = 900, **at: str) -> str:
        """The page after its script ran, without its data."""
        found = self._run(page, at, width=width, height=height)
        return re.sub(r"<(script|style)\b.*?</\1>", "", found, flags=re.DOTALL)

    def driven(self, page: Path, script: str, **at: Any) -> str:
        """The page when ``script``, the body of an async function, did what a reader would; what it returns is in ``#said``."""
        copy = page.with_name("driven.html")
        bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text("utf-8"))  # lets it in
        body = f"""<pre id="said"></pre><script>(async () => {{
            const find = (selector) => document.querySelector(selector);
            const wait = (time) => new Promise((go) => setTimeout(go, time));
            const drawn = async () => {{ while (find('.stage')?.dataset.drawn !== 'true') await wait(20); }};
            const tell = (element, kind, value) => {{ element.value = value; element.dispatchEvent(new Event(kind)); }};
            await drawn();
            const said = await (async () => {{ {script} }})();
            find('#said').textContent = JSON.stringify(said);
        }})()</script></body>"""
        copy.write_text(bare.replace("</body>", body), encoding="utf-8")
        return self.dom(copy, **at)

    def picture(self, page: Path, path: Path, *, width: int = 1280, height: int = 900, **at: str) -> np.ndarray:
        """A picture of it, ``(height, width, 3)``."""
        self._run(page, at, f"--screenshot={path}", width=width, height=height)
        return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture
def look(browser: str, tmp_path: Path) -> Callable[..., Look]:
    return Look(browser, tmp_path)
