"""Pictures of calibration: reliability diagrams before and after. Draws; computes no figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from medseg.errors import MedsegError
from medseg.evaluation.calibration import Calibration, Measured, Reliability
from medseg.evaluation.figures import save_figure

_BEFORE, _AFTER = "#ff7f0e", "#1f77b4"
_MOST_COLUMNS = 4


def draw_reliability(calibrations: Mapping[str, Calibration], path: Path, *, title: str = "") -> None:
    """How often it was so against how surely it was said, a panel a row of the calibration, before and after in each.

    Grey bars show where 95 % of the points of a perfectly calibrated model would lie, were all events of a bin independent; the
    steps along the floor the share of events in each bin. A row without events is left out.

    Raises:
        MedsegError: there is nothing to draw.
    """
    shown = {name: row for name, row in calibrations.items() if row.after.ece.n}
    if not shown:
        raise MedsegError("figure: expected at least one event to draw a reliability diagram of, found none")
    columns = min(len(shown), _MOST_COLUMNS)
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3.2 * columns + 0.4, 3.4 * rows + 0.4), layout="constrained")
    for at, (name, row) in enumerate(shown.items(), start=1):
        axes = figure.add_subplot(rows, columns, at)
        axes.plot([0, 1], [0, 1], color="0.6", lw=1)
        _scatter_if_perfect(axes, row.after.bins)
        for when, measured, colour in (("before", row.before, _BEFORE), ("after", row.after, _AFTER)):
            _draw(axes, measured, colour, f"{when}: ECE {measured.ece.value:.3f}")
        perfect = row.if_perfect.value
        beside = "" if math.isnan(perfect) else f", {perfect:.3f} if perfect"
        axes.set_title(f"{name}\n{row.after.ece.n} events{beside}", fontsize=8, parse_math=False)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="stated probability", ylabel="share that came true")
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left", fontsize=7)
    figure.suptitle(title, fontsize=8, parse_math=False)
    save_figure(figure, path)


def _draw(axes: Axes, measured: Measured, colour: str, label: str) -> None:
    bins = measured.bins
    used = bins.counts > 0
    axes.plot(bins.confidence[used], bins.accuracy[used], "o-", ms=4, lw=1.2, color=colour, label=label)
    axes.stairs(0.2 * bins.counts / bins.counts.max(), bins.edges, color=colour, alpha=0.5)  # a fifth of the height


def _scatter_if_perfect(axes: Axes, bins: Reliability) -> None:
    used = bins.counts > 0
    counts, stated = bins.counts[used], bins.confidence[used]
    low, high = (stats.binom.ppf(end, counts, stated) / counts for end in (0.025, 0.975))
    axes.vlines(stated, low, high, color="0.8", lw=5, zorder=0)
