"""Whether audit and heat maps find a planted shortcut, and leave a cohort without one alone, over many seeds.

    .venv/bin/python scripts/benchmarks/shortcut.py --seeds 10 --out shortcut

For each seed two cohorts of pictures are made (`medseg.testing.shortcut`): with a marker that one site burns into the images of
its diseased, and the same without. On each a classifier is trained, scored on the patients that it has not seen, audited by site,
and explained. ``found`` is the audit's own verdict on the column site; the heat maps point at the marker where their share of
positive energy in its surroundings is at least three times the share of the area, in the mean over the cases.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from medseg.commands.audit import audit
from medseg.commands.evaluate import evaluate
from medseg.commands.train import train
from medseg.data.augment import none
from medseg.data.splits import Splits
from medseg.evaluation.classification import auroc
from medseg.explain.explainer import AUTO, Explainer
from medseg.explain.targets import Target
from medseg.inference.predictor import Predictor
from medseg.model import load_members
from medseg.scans import read_case
from medseg.scans.layouts import table
from medseg.testing.shortcut import DISEASED, MARKER_BOX, SIZE, shortcut_found, write_shortcut
from scripts.benchmarks.measure import publish, record, versions

TASK = {"name": "classification"}
NETWORK = {"_target_": "medseg.networks.classifier.encoder_classifier"}
TRAINER = {"steps_per_epoch": 40, "max_epochs": 20, "pictures": 0, "precision": "float32", "ema": 0.9, "workers": 0}
OPTIM = {"_target_": "torch.optim.AdamW", "lr": 0.005}
MARGIN = 2
"""Pixels around the marker that count as its surroundings."""
POINTS = 3.0
"""A map points at the marker from this multiple of the area's share up."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--cases", type=int, default=240)
    parser.add_argument("--method", default=AUTO, help="of explanation")
    parser.add_argument("--out", type=Path, required=True, help="a folder; finished seeds are not made again")
    arguments, load = parser.parse_args(), os.getloadavg()
    logging.getLogger("medseg").setLevel(logging.ERROR)
    rows = [
        one(arguments.out, seed, planted, arguments.cases, arguments.method)
        for seed in range(arguments.seeds)
        for planted in (True, False)
    ]
    text = markdown(rows)
    what = f"{arguments.seeds} seeds of two cohorts of {arguments.cases} pictures, explained by {arguments.method}"
    result = record(what, load, {"medseg": versions("medseg", "torch", "captum")}, rows=rows)
    publish(result, text, arguments.out / "result.json")
    (arguments.out / "result.md").write_text(text + "\n")


def one(out: Path, seed: int, planted: bool, cases: int, method: str) -> dict[str, Any]:
    """One cohort from pictures to verdicts; read from its file where it was made before."""
    folder = out / f"seed_{seed}_{'planted' if planted else 'clean'}"
    done = folder / f"verdict_{method}.json"
    if done.is_file():
        return dict(json.loads(done.read_text()))
    truth = {case.id: case for case in write_shortcut(folder, range(cases), seed=seed, shortcut=planted)}
    cohort, run = table(folder / "cases.csv", progress=False), folder / "run" / "fold_0"
    train(
        cohort,
        run_dir=run,
        cache_dir=folder / "cache",
        network=NETWORK,
        task=TASK,
        augment=none,
        optim=OPTIM,
        trainer=TRAINER,
        overrides={"features": [8, 16, 32], "batch_size": 16},
        folds=2,
        tune=0.3,
        seed=seed,
    )
    scored = evaluate(
        cohort=cohort, model=run, out=folder / "evaluation", bootstrap=200, report=False, overwrite=True, progress=False
    )
    found = audit(evaluation=folder / "evaluation", columns=["site"], progress=False)
    marked, unmarked = _by_marker(folder, truth)
    verdict = {
        "seed": seed,
        "planted": planted,
        "auroc": scored["auroc"][DISEASED]["value"],
        "auroc_marked_site": marked,
        "auroc_other_site": unmarked,
        "found": shortcut_found(found),
        "pointing": _pointing(run, cohort, truth, planted, method),
    }
    shutil.rmtree(folder / "cache")
    done.write_text(json.dumps(verdict) + "\n")
    return verdict


def _by_marker(folder: Path, truth: dict[str, Any]) -> tuple[float, float]:
    """AUROC in the site that marks (or would) and in the other."""
    with (folder / "evaluation" / "cases.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["metric"] == "probability" and r["label"] == DISEASED]
    values = []
    for site in "BA":
        own = [(float(r["value"]), truth[r["id"]].diseased) for r in rows if truth[r["id"]].site == site]
        scores, diseased = (np.array(column) for column in zip(*own, strict=True))
        values.append(float(auroc(scores, diseased)))
    return values[0], values[1]


def _pointing(run: Path, cohort: Any, truth: dict[str, Any], planted: bool, method: str) -> float:
    """Mean multiple of the area's share that heat maps of the diseased put around the marker's place, over unseen cases."""
    models, by_id = load_members(run), {case.id: case for case in cohort.cases}
    explainer, predictor = Explainer(models, method=method), Predictor(models)
    test = Splits.load(run / "splits.json").fold(0).test
    wanted = [name for name in test if (truth[name].marked if planted else truth[name].diseased)][:20]
    x0, y0, x1, y1 = MARKER_BOX
    window = slice(x0 - MARGIN, x1 + MARGIN), slice(y0 - MARGIN, y1 + MARGIN)
    area = (x1 - x0 + 2 * MARGIN) * (y1 - y0 + 2 * MARGIN) / SIZE**2
    shares = []
    for name in wanted:
        volume = read_case(by_id[name])
        (heat,) = explainer.explain(volume, predictor.predict_volume(volume, name), [Target("class", DISEASED)])
        values = np.clip(heat.values, 0, None)
        shares.append(float(values[window].sum() / values.sum()) if values.any() else 0.0)
    return float(np.mean(shares)) / area


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table and how often each was found."""
    lines = [
        "| seed | cohort | AUROC | site B | site A | audit | heat maps at the marker |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        kind, verdict = "shortcut" if row["planted"] else "clean", "differs" if row["found"] else "–"
        sites = f"{row['auroc_marked_site']:.3f} | {row['auroc_other_site']:.3f}"
        lines.append(
            f"| {row['seed']} | {kind} | {row['auroc']:.3f} | {sites} | {verdict} | {row['pointing']:.1f}× area |"
        )
    for planted, name in ((True, "with the shortcut"), (False, "without it")):
        own = [row for row in rows if row["planted"] == planted]
        lines += [
            "",
            f"{name}: the audit says that sites differ in {sum(r['found'] for r in own)} of {len(own)}, the heat maps point "
            f"at the marker's place in {sum(r['pointing'] >= POINTS for r in own)} of {len(own)}.",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
