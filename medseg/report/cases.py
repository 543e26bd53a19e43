"""A result folder as values that a page shows: an entry a case for the list, and its layers for those who open it.

What is missing, damaged or unfinished is said of its case and leaves the others unharmed. Knows nothing of how a page is laid
out; nothing of a patient is taken but pixels, and no name of a file that was read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import MedsegError
from medseg.export.lesions import Lesion, boxed_labels, lesions_of
from medseg.export.manifest import NAME as MANIFEST
from medseg.export.manifest import Record, read_manifest, records
from medseg.export.overlay import COLOURS
from medseg.export.preview import Display
from medseg.export.tables import COMPONENTS
from medseg.report.case_files import CaseFiles, holds_results
from medseg.report.sheets import grey_sheet, heat_sheet, label_sheet, thumbnail
from medseg.scans.names import case_id
from medseg.structures import Prediction
from medseg.volume import Array

MOST_FINDINGS = 100
"""Rows of a case's table; a mask of specks has thousands, which nobody reads."""
_PART = ".part-"  # what the folders of cases begin with while they are written
_MOST_PARTS = 1000
"""Parts of a label beyond which they are counted and not measured: it is scattered, and no list of findings."""
_MOST_LABELS = 255  # beside background, in 8 bits
_SIZES = ("ml", "mm2", "px")
_UNFINISHED = (
    "its folder is there, but the manifest does not name it: the run ended in between. Run the same command again"
)
_GONE = (
    "the manifest says that it is done, but its folder is not there. Run the same command again, it predicts it anew"
)
_EMPTY = "the manifest says that it is done, but no result lies in its folder. Run the same command again"
_NO_SLICES = (
    "No slices of the scan were kept beside this result, so its layers are shown alone. Predict it again to see them."
)


@dataclass(frozen=True)
class Shown:
    """A case of a page: ``entry`` stands in the list, ``detail`` is decoded when the case is opened."""

    entry: dict[str, Any]
    detail: dict[str, Any]


@dataclass(frozen=True)
class Results:
    """A result folder that has a manifest, and the cases in it.

    Args:
        labels: mask value → name.
        group: goes before the names of cases, where a page shows several folders.
    """

    folder: Path
    manifest: Mapping[str, Any]
    records: Mapping[str, Record]
    labels: Mapping[int, str]
    group: str = ""

    @classmethod
    def open(cls, folder: Path, group: str = "") -> Results | None:
        """None where there is no manifest. Raises MedsegError where it is none of medseg's."""
        manifest = read_manifest(folder)
        if manifest is None:
            return None
        named = manifest.get("labels")
        try:
            labels = {int(value): str(name) for value, name in named.items()}  # type: ignore[union-attr]
        except (ValueError, AttributeError):
            raise MedsegError(
                f"{folder / MANIFEST}: expected labels as value: name, found {repr(named)[:60]}; predict again"
            ) from None
        return cls(folder, manifest, records(manifest), labels, group)

    @property
    def names(self) -> list[str]:
        """All cases: those of the manifest, and folders that it does not name yet."""
        known = {record.folder for record in self.records.values()}
        begun = {
            path.name for path in self.folder.iterdir() if path.is_dir() and (_is_part(path) or holds_results(path))
        }
        return sorted({*self.records, *(name.removeprefix(_PART) for name in begun - known)})

    def show(self, name: str) -> Shown:
        """One case, whatever became of it."""
        record = self.records.get(name)
        entry: dict[str, Any] = {"id": name, "key": f"{self.group}/{name}" if self.group else name}
        if record is None:
            return Shown({**entry, "status": "unfinished", "reason": _UNFINISHED}, {})
        entry |= {"status": record.status, "reason": record.reason, "figures": dict(record.figures)}
        detail: dict[str, Any] = {"seconds": record.seconds, "mended": list(record.mended)}
        if record.status != "done":
            return Shown(entry, detail)
        place = self.folder / record.folder
        if case_id(record.folder) != record.folder or not place.is_dir():
            return Shown({**entry, "status": "unfinished", "reason": _GONE}, detail)
        files = CaseFiles.read(name, place, self.labels)
        if files.display is None and not files.prediction.classes and not files.troubles:
            return Shown({**entry, "status": "unfinished", "reason": _EMPTY}, detail)
        if files.troubles:
            entry |= {"status": "damaged", "reason": "; ".join(files.troubles)}
        layers = _layers(files, record.figures)
        entry |= {"thumb": layers.pop("thumb", ""), "figures": entry["figures"] or _figures(files.prediction)}
        return Shown(entry, {**detail, **layers})


def lacks_manifest(folder: Path) -> bool:
    """Whether a folder holds results that no manifest describes."""
    return not (folder / MANIFEST).is_file() and any(holds_results(path) for path in folder.iterdir() if path.is_dir())


def _is_part(path: Path) -> bool:
    return path.name.startswith(_PART)


def _figures(found: Prediction) -> dict[str, float]:
    """What the list can be sorted by where the manifest holds no figures."""
    unit = _unit(found)
    return {**found.classes, **{f"{name}_{unit}": size for name, size in found.sizes().items()}}


def _layers(files: CaseFiles, figures: Mapping[str, float]) -> dict[str, Any]:
    """Everything that the page of a case shows, as plain values; ``figures`` are the manifest's."""
    found, display = files.prediction, files.display
    layers: dict[str, Any] = {
        "classes": [
            {"name": name, "p": share, "in_set": figures.get(f"{name}_in_set")} for name, share in found.classes.items()
        ]
    }
    if display is None:
        return layers
    names = found.labels.names
    colours = {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(names.values())}
    present = [v for v in np.unique(found.mask).tolist() if v in names] if found.mask is not None else []
    drawn = present[:_MOST_LABELS]
    sheet = None if found.mask is None else _numbered(display.frames(found.mask, smooth=False), drawn)
    parts = {names[value]: int(figures.get(f"{names[value]}{COMPONENTS}", 0)) for value in present}
    listed = [name for name, count in parts.items() if count <= _MOST_PARTS]
    scattered = sum(parts[name] for name in set(parts) - set(listed) - boxed_labels(found))
    lesions = lesions_of(found, listed)
    rows = [_row(lesion, display, colours) for lesion in lesions[:MOST_FINDINGS]]
    maps = {title: display.frames(values, smooth=True) for title, values in files.heat_maps.items()}
    start = rows[0]["frame"] if rows and rows[0]["is_box"] else _first_look(sheet, list(maps.values()), display)
    width, height = display.size
    grey = np.zeros((height, width), np.uint8) if files.preview is None else files.preview.frames[start]
    boxes = _boxes(found, display, colours)
    framed = [(box["place"][:4], box["colour"]) for box in boxes if box["counts"] and box["frame"] == start]
    palette = np.array([colours[names[value]] for value in drawn], np.float32).reshape(-1, 3)
    layers |= {
        "thumb": thumbnail(grey, None if sheet is None else sheet[start], palette, framed),
        "frames": {
            **{"count": len(display.slices), "width": width, "height": height, "start": start, "depth": display.depth},
            **{"slices": display.slices, "captions": display.captions(), "edges": display.edges},
            "sheet": None if files.preview is None else grey_sheet(files.preview.frames),
        },
        "mask": label_sheet(sheet) if sheet is not None and drawn else None,
        "painted": [{"name": names[value], "colour": colours[names[value]]} for value in drawn],
        "strip": [] if sheet is None else _strip(sheet, len(drawn)),
        "volumes": _volumes(found, figures, colours),
        "boxes": boxes,
        "findings": rows,
        "more_findings": len(lesions) - len(rows) + scattered,
        "heatmaps": [{"name": title, **heat_sheet(frames)} for title, frames in maps.items()],
        "method": files.method,
        "unit": found.geometry.unit,
        "dimensions": found.geometry.dimensions,
    }
    return layers if files.preview is not None else {**layers, "word": _NO_SLICES}


def _unit(found: Prediction) -> str:
    return "px" if found.geometry.unit == "px" else "ml" if found.geometry.dimensions == 3 else "mm2"


def _volumes(
    found: Prediction, figures: Mapping[str, float], colours: Mapping[str, Sequence[int]]
) -> list[dict[str, Any]]:
    """How much there is of each label. A model's own figure goes before what others left of it in the mask."""
    own = {
        name: (unit, size) for key, size in figures.items() for name, _, unit in [key.rpartition("_")] if unit in _SIZES
    }
    listed = []
    for name, size in found.sizes().items():
        unit, size = own.get(name, (_unit(found), size))
        unsure = figures.get(f"{name}_uncertainty")
        listed.append({"name": name, "colour": colours[name], "size": size, "unit": unit, "uncertainty": unsure})
    return listed


def _boxes(found: Prediction, display: Display, colours: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
    """All boxes by id, those below the working point too."""
    if found.boxes is None:
        return []
    listed = []
    for n, edges in enumerate(found.boxes.boxes):
        name = found.labels.names[int(found.boxes.labels[n])]
        score = None if found.boxes.scores is None else float(found.boxes.scores[n])
        counts = score is None or score >= found.thresholds.get(name, 0.0)
        spread = None if found.boxes.spread is None else float(found.boxes.spread[n])
        box = {"id": n + 1, "label": name, "score": score, "spread": spread, "counts": counts, "colour": colours[name]}
        listed.append({**box, **_placed(edges, display)})
    return listed


def _row(lesion: Lesion, display: Display, colours: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """A row of the table of findings; sizes are in mm³ (mm², px), lengths in the unit of the grid."""
    return {
        **{"id": lesion.id, "label": lesion.label, "colour": colours[lesion.label], "score": lesion.score},
        **{
            "diameter": lesion.diameter,
            "size": lesion.size,
            "is_box": lesion.is_box,
            **_placed(lesion.box_vox, display),
        },
    }


def _placed(edges: Array, display: Display) -> dict[str, Any]:
    """Where a box lies on the frames (see `Display.boxes`), and the frame that shows its middle."""
    place = [round(float(edge), 5) for edge in display.boxes(np.asarray(edges, np.float64)[None])[0]]
    return {"place": place, "frame": display.nearest_frame(place[4], place[5])}


def _numbered(sheet: Array, values: Sequence[int]) -> Array:
    """Frames of mask values as frames of 1 for the first of ``values``, and so on; 0 for all others."""
    order = np.array([0, *values])
    at = np.searchsorted(order, sheet).clip(max=len(values))
    return np.where(order[at] == sheet, at, 0).astype(np.uint8)


def _strip(sheet: Array, labels: int) -> list[int]:
    """For each frame the label on it of which there is least in all, from 1; 0 where there is none."""
    each = np.stack([np.bincount(frame.ravel(), minlength=labels + 1)[1:] for frame in sheet])
    rarest = np.argsort(each.sum(axis=0), kind="stable")
    return [next((int(label) + 1 for label in rarest if row[label]), 0) for row in each]


def _first_look(sheet: Array | None, maps: Sequence[Array], display: Display) -> int:
    """The frame that is seen first: with most labels, else where the first heat map is strongest, else the middle one."""
    if sheet is not None and sheet.any():
        return int(np.argmax((sheet > 0).sum(axis=(1, 2))))
    if maps:
        return int(np.argmax(np.abs(maps[0]).max(axis=(1, 2))))
    return len(display.slices) // 2
