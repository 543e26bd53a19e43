"""The folder of one case: it appears whole or not at all, and replaces nothing but an older result.

What is written into it is decided elsewhere.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

_NEW, _OLD = ".part-", ".old-"
_RESULTS = (
    *("mask.nii.gz", "mask.png", "boxes.json", "overlay.png", "probability_*.nii.gz", "probability_*.png"),
    *("classes.json", "slices.png", "uncertainty.nii.gz", "uncertainty.tif", "heatmaps.json"),
    *("heatmap_*.nii.gz", "heatmap_*.tif", "heatmap_*.png"),
    *("seg.dcm", "rtstruct.dcm", "sr.dcm", "probability_*.dcm", "heatmap_*.dcm"),
)


@contextmanager
def whole_folder(place: Path) -> Iterator[Path]:
    """Yield an empty folder to write into; it becomes ``place`` at the end, and is removed if the block raises."""
    new, old = place.with_name(_NEW + place.name), place.with_name(_OLD + place.name)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
            place.replace(old)
        new.replace(place)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def remove_remains(folder: Path) -> None:
    """Remove what a killed `whole_folder` left below ``folder``."""
    for path in folder.glob(".*"):
        if path.name.startswith((_NEW, _OLD)):
            shutil.rmtree(path, ignore_errors=True)
            if path.is_file():
                path.unlink(missing_ok=True)


def holds_only_results(folder: Path) -> bool:
    """Whether all that lies below ``folder`` has a name that a prediction writes, so that it may be replaced."""
    files = [path for path in folder.rglob("*") if not path.is_dir()] if folder.is_dir() else [folder]
    return all(any(fnmatch(path.name, pattern) for pattern in _RESULTS) for path in files)
