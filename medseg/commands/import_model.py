"""``medseg import``: a model that another program trained becomes a model folder. Knows no format: `medseg.interop` does."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medseg.errors import MedsegError
from medseg.files import full_disk_is_said
from medseg.model import Model, fold_folders, save_model

logger = logging.getLogger(__name__)
FROM = ("nnunet", "bundle")


def import_model(
    *,
    kind: str,
    source: Path | str,
    output: Path | str,
    folds: Sequence[int | str] | None = None,
    checkpoint: str = "final",
    orientation: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Read a foreign model and write it as medseg's own.

    Args:
        kind: ``"nnunet"`` or ``"bundle"``.
        source: its folder.
        output: a model folder; where nnU-Net has several folds, an experiment folder ``fold_<k>/model``.
        folds, checkpoint: see `medseg.interop.nnunet.read_nnunet`.
        orientation: axis codes of the files that it was trained on, where it takes axes as they are stored: scans that are
            stored otherwise, DICOM for example, are then turned to them; None to go on taking axes as they are stored.
        overwrite: whether an older model in ``output`` is replaced.

    Returns:
        ``output``.

    Raises:
        MedsegError: the model cannot be imported, or ``output`` holds something.
        MachineError: the disk is full.
    """
    output = Path(output)
    if kind not in FROM:
        raise MedsegError(f"import: from={kind}; expected one of {', '.join(FROM)}")
    check_output(output, overwrite)
    if kind == "nnunet":
        from medseg.interop.nnunet import read_nnunet

        models = {
            str(fold): model for fold, model in read_nnunet(Path(source), folds=folds, checkpoint=checkpoint).items()
        }
    else:
        from medseg.interop.bundle import read_bundle

        models = {"0": read_bundle(Path(source))}
    models = {fold: _oriented(model, orientation) for fold, model in models.items()}
    write_models(models, output)
    plan = next(iter(models.values())).plan
    if plan.orientation == "stored" and plan.dimensions == 3:
        logger.info(
            "axes are taken as each file has them: predict files stored as those it was trained on, or say how these were, "
            "such as orientation=LAS for axial scans that dcm2niix wrote"
        )
    logger.info(
        "%s: %d model(s), %dD, labels %s; try medseg predict model=%s input=… output=…",
        output,
        len(models),
        plan.dimensions,
        ", ".join(plan.labels.names.values()),
        output,
    )
    return output


def _oriented(model: Model, orientation: str | None) -> Model:
    """The model with the orientation that it is told."""
    plan = model.plan
    if orientation is None:
        return model
    if plan.orientation != "stored" or plan.dimensions != 3:
        turned = f"this model turns scans to {plan.orientation}" if plan.dimensions == 3 else "pictures have none"
        raise MedsegError(f"import: orientation={orientation}: {turned}; leave it out")
    why = {**plan.why, "orientation": "that of the files that the model was trained on, as said at its import"}
    return replace(model, plan=replace(plan, orientation=orientation, why=why))


def check_output(output: Path, overwrite: bool) -> None:
    """Raises MedsegError unless a model may be written to ``output``: only a model is ever replaced."""
    if not output.exists():
        return
    if not overwrite:
        raise MedsegError(
            f"output {output}: exists already; choose another, or say overwrite=true to replace the model there"
        )
    if not ((output / "model.yaml").is_file() or any((f / "model").is_dir() for f in fold_folders(output))):
        raise MedsegError(
            f"output {output}: holds no model, and overwrite=true replaces models only; choose another output"
        )


def write_models(models: Mapping[str, Model], output: Path) -> None:
    """One model as a model folder, several as the folds of an experiment folder; whole or not at all."""
    with full_disk_is_said(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
        try:
            new = aside / "new"
            for fold, model in models.items():
                save_model(model, new if len(models) == 1 else new / f"fold_{fold}" / "model")
            if output.exists():
                output.replace(aside / "old")
            new.replace(output)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
