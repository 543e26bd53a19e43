"""Pictures of a classifier: ROC and precision-recall curves, and the confusion matrix. Draws; computes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medseg.errors import MedsegError
from medseg.evaluation.figures import save_figure
from medseg.volume import Array

Curve = tuple[Array, Array]
"""What is drawn to the right, and what upwards."""


def draw_roc(
    curves: Mapping[str, Curve], path: Path, *, beside: Mapping[str, Curve] | None = None, title: str = ""
) -> None:
    """Sensitivity against the false-positive rate; the diagonal is chance.

    Args:
        curves: name (of a class, with its figure) → false-positive rates and sensitivities, rising.
        beside: name of another predictor → its curve, drawn dashed.

    Raises:
        MedsegError: there is no curve.
    """
    figure, axes = _curves(curves, beside or {}, title)
    axes.plot([0, 1], [0, 1], ":", color="grey", lw=1)
    axes.set_xlabel("1 − specificity")
    axes.set_ylabel("sensitivity")
    _finish(axes)
    save_figure(figure, path)


def draw_precision_recall(
    curves: Mapping[str, Curve], path: Path, *, beside: Mapping[str, Curve] | None = None, title: str = ""
) -> None:
    """Precision against recall, as they are: not interpolated. Dotted is chance, where a curve ends: the share of the cases.

    Args:
        curves: name → recalls, rising, and precisions.
        beside: as of `draw_roc`.

    Raises:
        MedsegError: there is no curve.
    """
    figure, axes = _curves(curves, beside or {}, title)
    for at, (_, precision) in enumerate(curves.values()):
        axes.axhline(float(precision[-1]), linestyle=":", color=f"C{at % 10}", lw=1)
    axes.set_xlabel("recall (sensitivity)")
    axes.set_ylabel("precision (PPV)")
    _finish(axes)
    save_figure(figure, path)


def draw_confusion(rows: Sequence[str], columns: Sequence[str], counts: Array, path: Path, *, title: str = "") -> None:
    """Counts in squares, the darker the larger their share of the row.

    Args:
        rows: true classes.
        columns: what is said of them: classes, or rightly and wrongly.
        counts: ``(rows, columns)``.
    """
    size = 2.2 + 0.8 * len(columns), 1.6 + 0.6 * len(rows)
    figure = Figure(figsize=(max(size[0], 4.5), max(size[1], 3.2)), layout="constrained")
    axes = figure.add_subplot()
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, of_row in enumerate(counts.tolist()):
        for column, count in enumerate(of_row):
            share = float(shares[row, column])
            colour = "white" if share > 0.6 else "black"
            axes.text(column, row, f"{count}\n{100 * share:.0f} %", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(columns)), columns, parse_math=False, fontsize=8, rotation=20)
    axes.set_yticks(range(len(rows)), rows, parse_math=False, fontsize=8)
    axes.set_xlabel("called")
    axes.set_ylabel("truth")
    axes.set_title(title, fontsize=8, parse_math=False)
    save_figure(figure, path)


def _curves(curves: Mapping[str, Curve], beside: Mapping[str, Curve], title: str) -> tuple[Figure, Axes]:
    if not curves:
        raise MedsegError("figure: expected at least one curve to draw")
    figure = Figure(figsize=(5.5, 4.8), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=8, parse_math=False)
    for at, (name, curve) in enumerate(curves.items()):
        axes.plot(*curve, color=f"C{at % 10}", label=name)
    for at, (name, curve) in enumerate(beside.items(), start=len(curves)):
        axes.plot(*curve, "--", lw=1, color=f"C{at % 10}", label=name)
    return figure, axes


def _finish(axes: Axes) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.3)
    for text in axes.legend(loc="best", fontsize=8).get_texts():
        text.set_parse_math(False)
