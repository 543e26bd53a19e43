"""Pictures of trust: mean deletion and insertion curves by method, and the table as bars. Draws; computes no measure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from medseg.errors import MedsegError
from medseg.evaluation.bootstrap import Estimate
from medseg.evaluation.figures import save_figure
from medseg.explain.baselines import NAMES
from medseg.explain.faithfulness import STEPS, Curve
from medseg.explain.trust import TrustCase
from medseg.explain.trust_table import AIM, TrustTable
from medseg.volume import Array

_PANELS = {
    "energy_near": "energy near the lesion",
    "pointing": "pointing game",
    "deletion": "deletion area (small is good)",
    "insertion": "insertion area (large is good)",
    "stability": "stability under small shifts",
    "shuffled_rank": "|rank correlation| with\nshuffled weights (small is good)",
}


def draw_curves(cases: Sequence[TrustCase], path: Path, *, title: str = "") -> None:
    """The mean curve of each method over the cases, deletion on the left, insertion on the right; baselines dashed.

    Raises:
        MedsegError: no case has a curve.
    """
    methods = list(dict.fromkeys(name for case in cases for name in case.curves))
    if not methods:
        raise MedsegError("figure: expected at least one case with a deletion curve to draw")
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    share = np.linspace(0, 1, STEPS + 1)
    for at, words in enumerate(("deleted", "inserted")):
        axes = figure.add_subplot(1, 2, at + 1)
        for name in methods:
            curves = [case.curves[name][at] for case in cases if name in case.curves]
            axes.plot(share, _mean_score(curves, share), **_line(name, methods))
        axes.set_xlabel(f"share {words}, highest values first")
        axes.set_ylabel("score (1: whole image, 0: replaced)")
        axes.set_ylim(-0.02, 1.02)
        axes.grid(alpha=0.3)
    for text in axes.legend(loc="lower right", fontsize=8).get_texts():
        text.set_parse_math(False)
    figure.suptitle(title, fontsize=8, parse_math=False)
    save_figure(figure, path)


def draw_trust(table: TrustTable, path: Path, *, title: str = "") -> None:
    """A panel a measure, a bar a method with its interval, baselines in grey; what is flagged is hatched.

    Raises:
        MedsegError: the table has no figure to draw.
    """
    methods = list(table.estimates)
    panels = [m for m in _PANELS if any(m in own and own[m].n for own in table.estimates.values())]
    if not panels:
        raise MedsegError("figure: expected at least one measure with a figure to draw")
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns + 1, (0.28 * len(methods) + 1.0) * rows + 0.4), layout="constrained")
    for at, measure in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, at)
        for place, name in enumerate(methods):
            estimate = table.estimates[name].get(measure)
            if estimate is None or np.isnan(estimate.value):
                continue
            colour, hatch = "0.6" if name in NAMES else "C0", "//" if table.flags[name] else None
            axes.barh(place, estimate.value, color=colour, hatch=hatch, edgecolor="white")
            axes.plot([estimate.low, estimate.high], [place, place], color="black", lw=1.2)
        if measure == "energy_near":
            axes.axvline(AIM, color="black", lw=0.8, ls=":")
        shown = methods if (at - 1) % columns == 0 else [""] * len(methods)
        axes.set_yticks(range(len(methods)), shown, parse_math=False)
        axes.set_ylim(len(methods) - 0.4, -0.6)
        axes.set_xlim(*_limits([own[measure] for own in table.estimates.values() if measure in own]))
        axes.set_title(_PANELS[measure], fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", alpha=0.3)
    flagged = f"hatched: {'; '.join(sorted({flag for own in table.flags.values() for flag in own}))}"
    shown_flags = flagged if any(table.flags.values()) else ""
    figure.suptitle("\n".join(filter(None, (title, shown_flags))), fontsize=8, parse_math=False)
    save_figure(figure, path)


def _limits(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """0…1, or as far as bars and intervals reach beyond: rank correlations may be negative."""
    ends = np.array([[estimate.value, estimate.low, estimate.high] for estimate in estimates])
    low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
    return min(1.05 * low, 0.0), 1.05 * high if high > 1 else 1.0


def _mean_score(curves: Sequence[Curve], share: Array) -> Array:
    """Curves meet cases of other sizes in other points, so their scores are taken at common shares."""
    return np.mean([np.interp(share, curve.share, curve.score) for curve in curves], axis=0)


def _line(name: str, methods: Sequence[str]) -> dict[str, Any]:
    if name in NAMES:
        return {"label": name, "color": "0.5", "lw": 1, "ls": ("-", "--", "-.", ":")[NAMES.index(name)]}
    return {"label": name, "color": f"C{[m for m in methods if m not in NAMES].index(name) % 10}"}
