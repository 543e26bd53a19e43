"""What a run looks like while it runs: ``curves.png`` from its rows, ``samples.png`` from the last validation."""

from __future__ import annotations

import logging
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medseg.export.overlay import grid_overlay
from medseg.files import whole_file
from medseg.training.module import TrainingModule

logger = logging.getLogger(__name__)


class Pictures:
    """Draws into the run folder; a picture that cannot be drawn is logged and never stops the training."""

    def __init__(self, folder: Path, module: TrainingModule) -> None:
        self._folder = folder
        self._module = module

    def draw(self, rows: list[dict[str, float]]) -> None:
        try:
            self._save(curves(rows), "curves.png")
            module = self._module
            samples = module.samples()
            if samples:
                grid_overlay(samples, module.task.labels, self._folder / "samples.png", module.plan.spacing)
        except (OSError, ValueError) as error:
            logger.warning("the pictures of epoch %d were not drawn: %s", int(rows[-1]["epoch"]), error)

    def _save(self, figure: Figure, name: str) -> None:
        with whole_file(self._folder / name) as aside:
            figure.savefig(aside, dpi=100)


def curves(rows: list[dict[str, float]]) -> Figure:
    """Loss, ``tune`` figures and learning rate against the epoch."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 1])
    epochs = [row["epoch"] for row in rows]
    names = [name for name in rows[-1] if name not in ("epoch", "step", "lr")]
    for axis, chosen in ((axes[0], [n for n in names if "/" not in n]), (axes[1], [n for n in names if "/" in n])):
        for name in chosen:
            values = [row.get(name, float("nan")) for row in rows]
            axis.plot(epochs, values, label=name, linewidth=2.0 if name in ("loss", "tune/score") else 1.0)
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("loss")
    axes[1].set_ylabel("tune")
    axes[1].set_ylim(0, 1)
    axes[2].plot(epochs, [row["lr"] for row in rows], color="gray")
    axes[2].set_ylabel("lr")
    axes[2].set_xlabel("epoch")
    return figure
