"""``medseg report``: a result or evaluation folder as one page to look at. Knows what makes a folder one, not how a page looks.

An evaluation brings the cases that it predicted, so that its worst ones can be opened from its tables.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medseg import __version__
from medseg.errors import MedsegError
from medseg.files import full_disk_is_said
from medseg.report.cases import Results, lacks_manifest
from medseg.report.evaluation import holds_evaluation, read_evaluation
from medseg.report.pages import write_page

logger = logging.getLogger(__name__)
NAME = "report.html"


def report(folder: Path, out: Path | None = None, progress: bool = True) -> Path:
    """Write one self-contained HTML page over a result folder, an evaluation folder, or what is both.

    Cases that failed, are unfinished or damaged are on the page, with the reason.

    Args:
        out: the page, by default ``report.html`` in the folder.

    Returns:
        The page.

    Raises:
        MedsegError: there is no such folder, or it is neither (without a manifest results cannot be told apart), or damaged.
        MachineError: the disk is full.
    """
    folder = Path(folder)
    out = folder / NAME if out is None else Path(out)
    if not folder.is_dir():
        raise MedsegError(f"report: expected a result or evaluation folder, found none at {folder}; check the path")
    if out.is_dir() or not out.parent.is_dir():
        raise MedsegError(f"out {out}: expected the name of a page in a folder that is there; choose another")
    found = _results(folder)
    evaluation = read_evaluation(folder) if holds_evaluation(folder) else None
    if not found and evaluation is None:
        raise MedsegError(_nothing(folder))
    overview: dict[str, Any] = {
        "title": folder.resolve().name,
        "version": __version__,
        "cases": [],
        "evaluation": evaluation,
        "made": [_made(results) for results in found],
    }
    with full_disk_is_said(out.parent):
        size = write_page(out, overview["title"], _details(found, overview["cases"], progress), overview)
    cases = overview["cases"]
    other = len(cases) - sum(case["status"] == "done" for case in cases)
    spoilt = f", {other} of them failed, unfinished or damaged" if other else ""
    logger.info("%s: %d cases%s, %.1f MB", out, len(cases), spoilt, size / 1e6)
    return out


def _results(folder: Path) -> list[Results]:
    """The result folders to show: the folder itself, or the predictions of an evaluation, one a fold where folds share cases."""
    own = Results.open(folder)
    if own is not None:
        return [own]
    predictions = folder / "predictions"
    one = Results.open(predictions) if predictions.is_dir() else None
    if one is not None:
        return [one]
    folds = (
        (path, Results.open(path, group=path.name)) for path in sorted(predictions.glob("fold_*")) if path.is_dir()
    )
    return [results for _, results in folds if results is not None]


def _nothing(folder: Path) -> str:
    """Why there is nothing to show."""
    if lacks_manifest(folder):
        return (
            f"{folder}: holds results but no manifest.json, which says what they are: predicting was cut off before it "
            "wrote one. Run the same command again"
        )
    return (
        f"{folder}: expected a result folder (manifest.json) or an evaluation folder (summary.json), found neither; name the "
        "output of medseg predict or the out of medseg evaluate"
    )


def _details(
    found: list[Results], entries: list[dict[str, Any]], progress: bool
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The details of each case, one in memory at a time; its entry is added to ``entries``."""
    names = [(results, name) for results in found for name in results.names]
    for results, name in tqdm(names, desc="report", unit="case", disable=not progress):
        shown = results.show(name)
        entries.append(shown.entry)
        yield shown.entry["key"], shown.detail


def _made(results: Results) -> dict[str, Any]:
    """With what a result folder was made; no path stands in it."""
    names = ("models", "options", "runtimes", "versions")
    return {"group": results.group, **{name: results.manifest.get(name) for name in names}}
