"""Pictures of a detector: FROC and precision-recall curves, of its labels or of several detectors. Draws; computes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medseg.errors import MedsegError
from medseg.evaluation.detection import FROC_RATES
from medseg.evaluation.detection_summary import Curve
from medseg.evaluation.figures import save_figure
from medseg.evaluation.summary import Summary


def draw_froc(
    curves: Mapping[str, Curve],
    path: Path,
    *,
    summary: Summary | None = None,
    beside: Mapping[str, Mapping[str, Curve]] | None = None,
    iou: float | None = None,
    title: str = "",
) -> None:
    """Sensitivity against false positives a scan, from 1/8 to 8 on a logarithmic axis: steps, as they are scored.

    Args:
        curves: name (of a label or a detector) → curve.
        summary: where given, the intervals of the labels of the same names are drawn at the seven rates.
        beside: another detector → its curves of the same names, drawn dashed in their colours.
        iou: overlap from which a lesion is found, for the axis.

    Raises:
        MedsegError: there is no curve.
    """
    figure, axes = _figure(curves, title)
    for at, (name, curve) in enumerate(curves.items()):
        axes.step(curve.fp_per_scan, curve.sensitivity, where="post", color=f"C{at % 10}", label=name)
        if len(curve.fp_per_scan) and curve.fp_per_scan[-1] < FROC_RATES[-1]:
            ends = [curve.fp_per_scan[-1], FROC_RATES[-1]]
            axes.plot(ends, [curve.sensitivity[-1]] * 2, ":", color=f"C{at % 10}")
        for rate in FROC_RATES if summary else ():
            entry = (summary or {}).get(f"sensitivity_at_{rate:g}_fp", {}).get(name, {})
            if entry.get("low") is not None:
                spread = rate * 2 ** (0.06 * (at - (len(curves) - 1) / 2))
                axes.plot([spread, spread], [entry["low"], entry["high"]], color=f"C{at % 10}", alpha=0.5)
                axes.plot(spread, entry["value"], "o", ms=4, color=f"C{at % 10}")
        for other, theirs in (beside or {}).items():
            if name in theirs:
                steps = (theirs[name].fp_per_scan, theirs[name].sensitivity)
                axes.step(*steps, "--", where="post", color=f"C{at % 10}", lw=1, label=f"{name}: {other}")
    axes.set_xscale("log", base=2)
    axes.set_xlim(FROC_RATES[0] / 1.2, FROC_RATES[-1] * 1.2)
    axes.set_xticks(FROC_RATES, ["1/8", "1/4", "1/2", *(f"{rate:g}" for rate in FROC_RATES[3:])])
    axes.minorticks_off()
    axes.set_xlabel("false positives a scan")
    axes.set_ylabel("sensitivity" + (f" at IoU {iou:g}" if iou else ""))
    _save(figure, axes, path)


def draw_precision_recall(
    curves: Mapping[str, Curve], path: Path, *, iou: float | None = None, title: str = ""
) -> None:
    """Precision against recall, as they are: not interpolated.

    Args:
        curves: name (of a label or a detector) → curve.
        iou: overlap from which a lesion is found, for the axis.

    Raises:
        MedsegError: there is no curve.
    """
    figure, axes = _figure(curves, title)
    for at, (name, curve) in enumerate(curves.items()):
        axes.plot(curve.recall, curve.precision, color=f"C{at % 10}", label=name)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("recall" + (f" at IoU {iou:g}" if iou else ""))
    axes.set_ylabel("precision")
    _save(figure, axes, path)


def _figure(curves: Mapping[str, Curve], title: str) -> tuple[Figure, Axes]:
    if not curves:
        raise MedsegError("figure: expected at least one curve to draw")
    figure = Figure(figsize=(5.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=8, parse_math=False)
    return figure, axes


def _save(figure: Figure, axes: Axes, path: Path) -> None:
    """Whole or not at all; no global state of pyplot is touched."""
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.3)
    for text in axes.legend(loc="lower right", fontsize=8).get_texts():
        text.set_parse_math(False)
    save_figure(figure, path)
