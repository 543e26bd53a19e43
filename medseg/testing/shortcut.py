"""The planted shortcut: pictures of two sites, one of which burns a marker into the images of the diseased.

Every picture has a round spot, and disease makes it a little brighter: whoever measures it perfectly reaches an AUROC of 0.80.
With the shortcut, site B marks its diseased with a small bright square. A network that learns it looks excellent there and is no
better than the spot at site A. Without the shortcut nobody is marked, and the pictures are the same but for the marker: the sites
then differ in nothing, so that any difference that an audit claims is a false alarm, and so is a heat map at the marker's place.
(Markers at random in both classes would be weaker as a control: a network may be disturbed by them, which is a true difference.)

A case is a function of (seed, index, shortcut) alone.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from medseg.evaluation.audit import Audit
from medseg.files import whole_file, write_text
from medseg.volume import Array

SIZE = 48
MARKER_BOX = (40, 3, 45, 8)
"""Where the marker lies, or would lie: x0, y0, x1, y1, half-open edges in px."""
HEALTHY, DISEASED = "healthy", "diseased"

_BASE, _NOISE, _MOTTLE = 80.0, 10.0, 5.0
_CONTRAST, _SPREAD, _APART = 40.0, 10.0, 1.19  # Φ(1.19 / √2) = 0.80 is the AUROC of two normals 1.19 deviations apart
_SPOT = 5.0  # its deviation in px; two of them to each side are its box


@dataclass(frozen=True, eq=False)
class ShortcutCase:
    """One picture: ``image`` (I, J) uint8, i = column, j = row, and all that is true of it.

    ``contrast`` is that of the spot, ``spot_box`` where it lies (px, as `MARKER_BOX`), ``marked`` whether the marker is there.
    """

    id: str
    patient: str
    site: str
    diseased: bool
    marked: bool
    contrast: float
    spot_box: tuple[int, int, int, int]
    image: Array


def make_shortcut(seed: int, index: int, *, shortcut: bool = True) -> ShortcutCase:
    """Case ``index`` of the cohort ``seed``: of four cases in a row each site has one healthy and one diseased."""
    random = np.random.default_rng([seed, index])
    diseased, site = index % 2 == 1, "AB"[index // 2 % 2]
    contrast = float(random.normal(_CONTRAST + _APART * _SPREAD * diseased, _SPREAD))
    center = random.integers(18, 31, 2)
    x, y = np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5, indexing="ij")
    spot = contrast * np.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / (2 * _SPOT**2))
    image = _BASE + spot + _mottle(x, y, random) + random.normal(0, _NOISE, (SIZE, SIZE))
    marked = shortcut and diseased and site == "B"
    if marked:
        x0, y0, x1, y1 = MARKER_BOX
        image[x0:x1, y0:y1] = 250
    lower, upper = center - int(2 * _SPOT), center + int(2 * _SPOT)
    return ShortcutCase(
        f"shortcut_{index:03d}",
        f"p{index:03d}",
        site,
        diseased,
        marked,
        contrast,
        (int(lower[0]), int(lower[1]), int(upper[0]), int(upper[1])),
        np.clip(np.round(image), 0, 255).astype(np.uint8),
    )


def write_shortcut(
    folder: Path, indices: Sequence[int] = range(160), *, seed: int = 0, shortcut: bool = True
) -> list[ShortcutCase]:
    """Write ``images/<id>.png`` and ``cases.csv`` with id, image, class, patient, site and marker; returns what is true."""
    cases = [make_shortcut(seed, index, shortcut=shortcut) for index in indices]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "image", "class", "patient", "site", "marker"])
    for case in cases:
        file = folder / "images" / f"{case.id}.png"
        with whole_file(file) as aside:
            Image.fromarray(case.image.T).save(aside, format="PNG")
        disease, marker = DISEASED if case.diseased else HEALTHY, "yes" if case.marked else "no"
        writer.writerow([case.id, f"images/{file.name}", disease, case.patient, case.site, marker])
    write_text(folder / "cases.csv", text.getvalue())
    return cases


def shortcut_found(audit: Audit) -> bool:
    """Whether an audit says that cases with and without the marker, or the two sites, differ."""
    return any(verdict.column in ("site", "marker") for verdict in audit.differences)


def _mottle(x: Array, y: Array, random: np.random.Generator) -> Array:
    """Smooth noise of deviation `_MOTTLE`: plane waves of 12 to 36 px in all directions."""
    waves = np.zeros(x.shape)
    for turn, length, phase in random.uniform((0, 12, 0), (math.pi, 36, 2 * math.pi), (8, 3)):
        waves += np.cos(2 * math.pi * (x * math.cos(turn) + y * math.sin(turn)) / length + phase)
    return _MOTTLE * waves / math.sqrt(4)  # eight waves of mean square 1/2
