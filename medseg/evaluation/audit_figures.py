"""The audit as one picture: a row of panels a column, a panel a figure, value and interval a group. Draws; computes nothing."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medseg.errors import MedsegError
from medseg.evaluation.audit import Audit, Cell, Verdict
from medseg.evaluation.figures import save_figure

_JUDGED, _OUTLIER, _SMALL = "#1f77b4", "#d62728", "#9e9e9e"


def draw_audit(audit: Audit, path: Path, *, title: str = "") -> None:
    """Groups below each other, their values to the right, the value of all cases as a dashed line.

    Groups that are too small to judge are hollow and grey; where groups differ, the one that stands out is red and the panel says
    the corrected p.

    Raises:
        MedsegError: there is nothing to draw.
    """
    if not audit.cells:
        raise MedsegError("figure: expected at least one group to draw")
    columns = list(dict.fromkeys(cell.column for cell in audit.cells))
    groups = {name: list(dict.fromkeys(c.group for c in audit.cells if c.column == name)) for name in columns}
    verdicts = {(v.column, v.metric, v.label): v for v in audit.verdicts}
    heights = [len(groups[name]) + 1.5 for name in columns]
    width, height = 2.6 * len(audit.overall) + 1.2, 0.24 * sum(heights) + 0.6
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.add_gridspec(len(columns), len(audit.overall), height_ratios=heights)
    for row, column in enumerate(columns):
        for at, overall in enumerate(audit.overall):
            axes = figure.add_subplot(grid[row, at], sharex=figure.axes[at] if row else None)
            key = (column, overall.metric, overall.label)
            cells = {c.group: c for c in audit.cells if (c.column, c.metric, c.label) == key}
            _panel(axes, [cells[group] for group in groups[column]], overall, verdicts[key])
            axes.set_yticks(range(len(cells)), groups[column] if at == 0 else [""] * len(cells), fontsize=7)
            if at == 0:
                axes.set_ylabel(column, fontsize=8)
    for text in (text for axes in figure.axes for text in (*axes.get_yticklabels(), axes.title, axes.yaxis.label)):
        text.set_parse_math(False)
    figure.suptitle(title, fontsize=9, parse_math=False)
    save_figure(figure, path)


def _panel(axes: Axes, cells: list[Cell], overall: Cell, verdict: Verdict) -> None:
    axes.axvline(overall.value, ls="--", lw=0.8, color="black", alpha=0.6)
    for at, cell in enumerate(cells):
        outlier = bool(verdict.differs) and cell.group == verdict.outlier
        colour = _OUTLIER if outlier else _JUDGED if cell.judged else _SMALL
        axes.plot([cell.low, cell.high], [at, at], color=colour, lw=1.5)
        axes.plot(cell.value, at, "o", ms=4, color=colour, mfc=colour if cell.judged else "white")
        axes.annotate(
            f"{cell.n_patients}",
            (1.02, at),
            xycoords=("axes fraction", "data"),
            fontsize=6,
            color=colour,
            va="center",
        )
    axes.set_ylim(len(cells) - 0.4, -0.6)
    axes.tick_params(axis="x", labelsize=7)
    axes.locator_params(axis="x", nbins=5)
    axes.margins(x=0.12)
    axes.grid(axis="x", alpha=0.3)
    name = f"{overall.metric} {'' if overall.label == 'mean' else overall.label}".strip()
    p = "" if verdict.p_corrected is None else f", p = {verdict.p_corrected:.2g}"
    axes.set_title(f"{name}{p}", fontsize=7, color=_OUTLIER if verdict.differs else "black")
