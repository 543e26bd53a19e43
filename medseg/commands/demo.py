"""The whole way on phantoms, in minutes: check → plan → train → evaluate → predict, and what came out. Nothing to configure.

The cohort has unseen cases in its ``test`` split, and a folder of new scans mixes DICOM, NIfTI and a corrupt file, as folders
of scans do. Everything here is what a user would call, in the order in which a user would call it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg.commands.check import check
from medseg.commands.evaluate import evaluate
from medseg.commands.predict import predict
from medseg.commands.train import train
from medseg.errors import SomeFailed
from medseg.scans.layouts import folder as folder_layout
from medseg.testing.phantoms import LABELS, make_phantom, write_phantoms, write_scan

logger = logging.getLogger(__name__)

NETWORK: Mapping[str, Any] = {"_target_": "medseg.networks.unet.plain_unet"}
NEW_SCANS = 4


def demo(*, folder: Path, minutes: float = 4.0, cases: int = 30, seed: int = 0) -> dict[str, Any]:
    """Make a cohort, train on it for ``minutes`` and show what comes out, all below ``folder``.

    Running it again goes on where the first run stopped.

    Args:
        cases: phantoms with labels; a fifth of them is ``test`` and never seen in training.

    Returns:
        The summary of the evaluation, as `evaluate` gives it.
    """
    data, run, new = folder / "data", folder / "run" / "fold_0", folder / "new_scans"
    _step(1, f"{cases} phantoms with known answers, half of them as DICOM series: {data}")
    if not (data / "complete").exists():
        write_phantoms(data, range(cases), seed=seed)
        _mixed_folder(new, range(cases, cases + NEW_SCANS), seed)
        (data / "complete").touch()
    cohort = folder_layout(
        images=data / "images", labels=data / "labels", label_names=dict(LABELS.names), channels=["MR"]
    )

    _step(2, "medseg check: is the data set sound?")
    check(cohort)

    _step(3, f"medseg train: plan, preprocess and train for {minutes:g} minutes")
    model = train(
        cohort,
        run_dir=run,
        cache_dir=folder / "cache",
        network=NETWORK,
        optim={"_target_": "torch.optim.AdamW", "lr": 2e-3, "weight_decay": 0.01, "schedule": "cosine", "warmup": 20},
        trainer={"max_time": 60 * minutes, "steps_per_epoch": 100, "compile": "false", "ema": 0.99},
        overrides={"batch_size": 2, "features": [12, 24, 48, 96]},  # many small steps: there are only minutes
        seed=seed,
    )

    _step(4, "medseg evaluate: how good is it on cases that it never saw?")
    summary = evaluate(cohort=cohort, model=run, out=folder / "evaluation", baselines=True)

    _step(5, f"medseg predict: a folder that mixes DICOM, NIfTI and a corrupt file ({new}), and why it says so")
    try:
        predict(model=model, input=new, output=folder / "results", saliency={"method": "auto"})
    except SomeFailed as failed:
        logger.info("%s", failed)
    _closing(folder, summary)
    return summary


def _mixed_folder(folder: Path, indices: range, seed: int) -> None:
    """New scans as they come: DICOM series, NIfTI, and a file that was cut off while it was copied."""
    for index in indices:
        write_scan(make_phantom(seed, index), folder, dicom=bool(index % 2))
    whole = sorted(folder.glob("*.nii.gz"))[0].read_bytes()
    (folder / "cut_off.nii.gz").write_bytes(whole[: len(whole) // 3])


def _step(number: int, text: str) -> None:
    logger.info("\n[%d/5] %s", number, text)


def _closing(folder: Path, summary: Mapping[str, Any]) -> None:
    dice, threshold = summary["dice"]["mean"], summary["baselines"]["global_threshold"]["dice"]["mean"]
    logger.info(
        "\nMean Dice on unseen cases: %.2f. The best global threshold reaches %.2f.\nWhere to look:",
        dice["value"],
        threshold["value"],
    )
    for path, what in (
        ("run/fold_0/plan.yaml", "every choice with its reason"),
        ("run/fold_0/curves.png", "the training; samples.png beside it"),
        ("evaluation/summary.json", "the figures; cases.csv has them a case"),
        ("evaluation/report.html", "the same as a page, worst cases first"),
        ("results", "mask.nii.gz, overlay.png and heat maps of each new scan; manifest.json says what failed and why"),
        ("results/report.html", "all of them to scroll through: masks and heat maps, switched on and off"),
    ):
        logger.info("  %-32s %s", folder / path, what)
