"""medseg's detector beside the components of a segmentation model, the brightest components and MONAI's `RetinaNetDetector`.

    .venv/bin/python scripts/benchmarks/detectors.py experiment=sarcoma_pet root=../shared/data/sarcoma_pet \\
        --minutes 10 --folds 0,1,2,3,4 --out comparison

Every ``key=value`` is one of ``medseg train`` and goes to all three trainings, which share cases, splits, crops, augmentation,
optimiser, weight average, schedule and minutes; cases are preprocessed before any clock runs. MONAI's detector has the trunk and
heads of medseg's, without a mask head, which it does not know (`monai_retinanet`). Only folds that all three have finished are
scored, pooled, by ``medseg evaluate``. The same command goes on where it stopped and trains nothing twice:

    out/runs/<system>/fold_<k>    run folders, with what each said in out/logs
    out/predictions/<by>          boxes.json of every test case
    out/scores/<by>               an evaluation folder each
    out/result.json, result.md    the table, with the command, the machine and the versions
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from medseg.commands.evaluate import evaluate
from medseg.commands.plan import plan as make_plan
from medseg.config import compose
from medseg.data.splits import Split, Splits
from medseg.data.store import prepare
from medseg.errors import MedsegError, all_at_once
from medseg.evaluation.summary import MEAN, Summary
from medseg.export.boxes import NAME, write_boxes
from medseg.export.case_folder import whole_folder
from medseg.files import write_text
from medseg.inference.predictor import Predictor
from medseg.model import Model, load_model
from medseg.planning.plan import Plan
from medseg.runs import build_run
from medseg.scans.names import case_id
from medseg.structures import Case, Cohort, Prediction
from medseg.training.run_folder import RunFolder, compare
from scripts.benchmarks.measure import ROOT, command_line, machine, versions
from scripts.benchmarks.monai_retinanet import NMS_IOU, MonaiFinder, MonaiLoss, evened

SYSTEMS: Mapping[str, Sequence[str]] = {
    "medseg": (),
    "segmentation": ("task=segmentation", "task.components=true"),
    "monai": (
        "network=retinanet",
        f"loss._target_={MonaiLoss.__module__}.{MonaiLoss.__name__}",
        "task.fusion=nms",
        f"task.iou={NMS_IOU}",
    ),
}
"""What is trained, and by which settings beside those that all share."""
ALIKE = ("data", "select", "augment", "loader", "optim", "trainer", "tune", "folds", "seed")
"""Settings that the trainings of a fold must share, in case a configuration was edited between them."""
METRICS = {"AP@0.1": "ap_10", "AP@0.3": "ap_30", "CPM": "cpm", "sensitivity at 1 FP a scan": "sensitivity_at_1_fp"}
BRIGHTEST = "brightest_components"
INTERRUPTED = (130, 143, -signal.SIGINT, -signal.SIGTERM)


@dataclass(frozen=True)
class Row:
    """A line of the table: what it is called, what was trained for it, and how a model finds boxes in a case."""

    title: str
    system: str
    finder: Callable[[Model], Callable[[Case], Prediction]]


ROWS: Mapping[str, Row] = {
    "medseg": Row("medseg", "medseg", lambda model: Predictor([model]).predict),
    "medseg_plain": Row("medseg, no mirroring", "medseg", lambda model: Predictor([model], mirror=False).predict),
    "components": Row(
        "components of a segmentation", "segmentation", lambda m: Predictor([m], boxes={"from": "components"}).predict
    ),
    "monai": Row("MONAI RetinaNetDetector", "monai", lambda model: MonaiFinder(model).predict),
}


def main() -> None:
    arguments, load = _arguments(), os.getloadavg()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a training does not outlive this
    try:
        result = compared(arguments)
    except MedsegError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)  # the same command goes on
    result |= {"command": command_line(), "machine": machine(load) | {"device": _device()}}
    result |= {"versions": versions("medseg", "monai", "torch")}
    text = markdown(result)
    print(text)
    write_text(arguments.out / "result.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_text(arguments.out / "result.md", text + "\n")


def compared(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train what is not trained yet, predict, score: the figures of every row, pooled over the folds that all systems finished.

    Raises:
        MedsegError: no fold is finished by all systems, or something that ``medseg`` refuses.
    """
    out: Path = arguments.out
    common = [*arguments.overrides, f"trainer.max_time={_clock(arguments.minutes)}"]
    own = {system: list(words) for system, words in SYSTEMS.items()}
    own["medseg"] += arguments.medseg
    own["segmentation"] += arguments.segmentation
    cohort, plan = prepared([*common, *own["medseg"]], out / "plans" / "medseg")
    own["monai"] += as_medseg([*common, *own["medseg"]], plan)
    for system in ("segmentation", "monai"):
        prepared([*common, *own[system]], out / "plans" / system)
    runs: dict[str, dict[int, RunFolder]] = {system: {} for system in SYSTEMS}
    failed: list[str] = []
    for fold in arguments.folds:
        for system in SYSTEMS:
            words = [*common, *own[system], f"fold={fold}", f"run.dir={out / 'runs' / system / f'fold_{fold}'}"]
            run, reason = trained(words, out / "logs" / f"{system}_fold_{fold}.txt")
            if reason:
                failed.append(f"{system}, fold {fold}: {reason}")
            if run.finished:
                runs[system][fold] = run
            _say(f"fold {fold}, {system}: {reason or 'trained'}")
    folds = [fold for fold in arguments.folds if all(fold in of_system for of_system in runs.values())]
    if not folds:
        raise MedsegError("\n".join(["no fold was finished by all systems, so there is nothing to compare:", *failed]))
    tests = {fold: shared_split([of_system[fold] for of_system in runs.values()], fold) for fold in folds}
    Splits(tuple(tests.values()), {"only_folds": folds}).save(out / "splits.json")
    models = {system: {fold: load_model(of_system[fold].model) for fold in folds} for system, of_system in runs.items()}
    cases = {case.id: case for case in cohort.cases}
    summaries: dict[str, Summary] = {}
    for name, row in ROWS.items():
        for fold in folds:
            wanted = [cases[case] for case in tests[fold].test]
            predict(models[row.system][fold], row, wanted, out / "predictions" / name, runs[row.system][fold].model)
        _say(f"scoring {row.title}")
        summaries[name] = scored(name, cohort, plan, out, baselines=name == "medseg")
    summaries[BRIGHTEST] = summaries["medseg"].pop("baselines")[BRIGHTEST]
    return {
        "minutes": arguments.minutes,
        "folds": folds,
        "failed": failed,
        "anchors_repeated": plan.boxes is not None and len({len(level) for level in plan.boxes.anchors}) > 1,
        "trainings": {system: {f: dict(model.training) for f, model in of.items()} for system, of in models.items()},
        "figures": {name: {m: summary[m][MEAN] for m in METRICS.values()} for name, summary in summaries.items()},
        "lesions": summaries["medseg"]["sensitivity"][MEAN]["n"],
        "scans": summaries["medseg"]["sensitivity"][MEAN]["n_cases"],
    }


def prepared(words: Sequence[str], folder: Path) -> tuple[Cohort, Plan]:
    """Cohort and plan of a training, every case preprocessed: none pays with its minutes for what the next one finds done."""
    run = build_run("train", compose("train", words))
    cohort, given = run.args[0], run.keywords  # type: ignore[attr-defined]  # a partial
    shared = {name: given[name] for name in ("planner", "overrides", "network", "task", "trust")}
    plan = make_plan(cohort, out=folder / "plan.yaml", progress=False, **shared)
    prepare(cohort.cases, plan, given["cache_dir"], progress=False)
    return cohort, plan


def as_medseg(words: Sequence[str], plan: Plan) -> list[str]:
    """What gives MONAI's detector the trunk, the heads and the anchors of the training that ``words`` describe."""
    if plan.boxes is None:
        raise MedsegError("this compares detectors: expected an experiment with task=detection, or task=detection")
    options = compose("train", words)["network"]
    alike = ("encoder", "decoder_blocks", "head_width", "head_depth", "dropout")
    trunk = [f"network.{name}={options[name]}" for name in alike if name in options]
    return [*trunk, f"plan.boxes={{anchors: {evened(plan.boxes.anchors)}}}"]


def trained(words: Sequence[str], log: Path) -> tuple[RunFolder, str]:
    """The run that ``medseg train`` made of ``words`` in a process of its own, now or before, and what went wrong with it."""
    config = compose("train", words)
    run = RunFolder.open(Path(config["run"]["dir"]), config)
    if run.finished:
        return run, ""
    log.parent.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    _say(f"medseg train {shlex.join(words)}")
    with log.open("a", encoding="utf-8") as file:
        command = [sys.executable, "-m", "medseg", "train", *words]
        process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | {"PYTHONPATH": path})
        try:
            status = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if status in INTERRUPTED:
        raise KeyboardInterrupt
    return run, f"exit status {status}: {_last_words(log)} ({log})" if status else ""


def shared_split(runs: Sequence[RunFolder], fold: int) -> Split:
    """The split of a fold, which all runs must have, as well as the settings that are `ALIKE`.

    Raises:
        MedsegError: they differ; says in what.
    """
    found = [Splits.load(run.path / "splits.json").fold(fold) for run in runs]
    configs = [yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8")) for run in runs]
    settings = [{name: config.get(name) for name in ALIKE} for config in configs]
    for run, split, other in zip(runs, found, settings, strict=True):
        differences = [*compare(settings[0], other), *(["other splits"] if split != found[0] else [])]
        if differences:
            raise all_at_once(
                f"fold {fold}: {runs[0].path} and {run.path} cannot be compared; remove the older one", differences
            )
    return found[0]


def predict(model: Model, row: Row, cases: Sequence[Case], folder: Path, weights: Path) -> None:
    """Write all boxes that a row finds in each case, unless they are there and younger than the ``weights``."""
    places = {case.id: folder / case_id(case.id) for case in cases}
    todo = [case for case in cases if not _is_younger(places[case.id] / NAME, weights / "model.yaml")]
    if not todo:
        return
    find = row.finder(model)
    for number, case in enumerate(todo, start=1):
        with whole_folder(places[case.id]) as place:
            write_boxes(find(case), place, every=True)
        _say(f"{row.title}: {number}/{len(todo)} predicted")


def scored(name: str, cohort: Cohort, plan: Plan, out: Path, *, baselines: bool = False) -> Summary:
    """The summary of ``medseg evaluate`` over the tests of all folds in ``out/splits.json``, with intervals over patients."""
    if plan.boxes is None:
        raise MedsegError("expected a plan with boxes")
    rule = {"instances": plan.boxes.rule.instances, "smallest_mm3": plan.boxes.rule.smallest_mm3}
    return evaluate(
        cohort=cohort,
        out=out / "scores" / name,
        predictions=out / "predictions" / name,
        task="detection",
        lesions=rule,
        splits=out / "splits.json",
        baselines=baselines,
        overwrite=True,
        reader=plan.options,
        progress=False,
    )


def markdown(result: Mapping[str, Any]) -> str:
    """The table, and below it what must be known to read it."""
    lines = [["by", *METRICS, "steps"], ["---"] * (len(METRICS) + 2)]
    for name, figures in result["figures"].items():
        row = ROWS.get(name)
        trainings = result["trainings"][row.system].values() if row else ()
        steps = f"{sum(one['steps'] for one in trainings) / len(trainings):.0f}" if trainings else "–"
        title = row.title if row else "brightest components"
        lines.append([title, *(_figure(figures[metric]) for metric in METRICS.values()), steps])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    machine = result["machine"]
    where = (
        f"{machine['cores']} cores, {machine['processor']}, {machine['device']}, load before {machine['load_before']}"
    )
    folds, minutes = ", ".join(map(str, result["folds"])), f"{result['minutes']:g}"
    anchors = "the same anchors"
    if result["anchors_repeated"]:
        anchors += ", those of a level repeated until every level has as many, as MONAI expects"
    notes = [
        f"{result['lesions']} lesions in {result['scans']} scans: the tests of fold {folds}, pooled; {minutes} minutes of "
        "training a system and fold, steps their mean; 95 % bootstrap intervals over patients. The brightest components are "
        "fitted on `fit`.",
        f"MONAI's detector: its code unchanged, set up as in its tutorial, on medseg's trunk and heads with {anchors}; "
        "without mask head and mirroring, which it does not have. Its training reaches for torchvision's matcher even with "
        "ATSS: here that name in its module is an empty class. Its scores on `tune`, which decide where trainer.keep=best, come "
        "from medseg's windows and NMS at its IoU.",
        *(f"Failed or incomplete: {reason}" for reason in result["failed"]),
        f"`{result['command']}`",
        f"{where}; {', '.join(f'{name} {number}' for name, number in result['versions'].items())}",
    ]
    return "\n\n".join([table, *notes])


def _figure(entry: Mapping[str, Any]) -> str:
    if entry["value"] is None:
        return "–"
    return f"{entry['value']:.3f}" + ("" if entry["low"] is None else f" [{entry['low']:.2f}–{entry['high']:.2f}]")


def _last_words(log: Path) -> str:
    """What a command that failed said: its error, else its last line."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["nothing"])[-1].removeprefix("error: ")


def _is_younger(file: Path, than: Path) -> bool:
    return file.is_file() and file.stat().st_mtime >= than.stat().st_mtime


def _clock(minutes: float) -> str:
    seconds = round(60 * minutes)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words: dict[str, Any] = {"nargs": "*", "default": [], "metavar": "KEY=VALUE"}
    parser.add_argument("overrides", nargs="+", metavar="KEY=VALUE", help="of medseg train, for all trainings")
    parser.add_argument("--medseg", **words, help="for medseg's detector alone, such as network=anchor_free")
    parser.add_argument("--segmentation", **words, help="for the segmentation model alone")
    parser.add_argument("--minutes", type=float, default=10.0, help="of each training (default 10)")
    parser.add_argument("--folds", type=_numbers, default=[0, 1, 2, 3, 4], help="default 0,1,2,3,4")
    parser.add_argument("--out", type=Path, required=True, help="a folder; the same command goes on with it")
    return parser.parse_intermixed_args()


def _numbers(text: str) -> list[int]:
    return sorted({int(word) for word in text.split(",")})


if __name__ == "__main__":
    main()
