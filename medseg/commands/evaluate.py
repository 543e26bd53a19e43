"""``medseg evaluate``: how good a model, or a folder of predictions, is on the cases of a split; the evaluation folder.

Knows the order of the steps and what may be asked for. A fold's model sees cases of its own split only; what cannot be scored
is named and ends with exit status 3. How masks, boxes and classes are measured is in `score_masks`, `score_boxes` and
`score_classes`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medseg.commands.evaluation_parts import SPLITS, Part, parts_of_model, parts_of_predictions
from medseg.commands.evaluation_predictions import hashes_of, predict_parts
from medseg.commands.report import report as write_report
from medseg.commands.score_boxes import box_scoring
from medseg.commands.score_classes import ClassScoring, class_scoring
from medseg.commands.score_masks import mask_scoring
from medseg.commands.scoring import Data, Key, Scored, Scoring, without_paths
from medseg.errors import MedsegError, SomeFailed, all_at_once
from medseg.evaluation.box_folder import BoxFolder
from medseg.evaluation.calibration_figures import draw_reliability
from medseg.evaluation.calibration_summary import format_calibration, write_calibration
from medseg.evaluation.class_folder import ClassFolder
from medseg.evaluation.mask_folder import MaskFolder
from medseg.evaluation.summary import check_label_names
from medseg.evaluation.working_point import COMPONENTS, mean_point
from medseg.files import full_disk_is_said, write_text
from medseg.inference.boxes import BoxFinder, BoxOptions
from medseg.inference.predictor import Predictor
from medseg.planning.classification import CLASSIFICATION, class_labels
from medseg.structures import Case, Cohort, LabelTable

logger = logging.getLogger(__name__)
FORMAT = 1
SEGMENTATION, DETECTION = "segmentation", "detection"
TASKS = (SEGMENTATION, DETECTION, CLASSIFICATION)
_FIGURES = (
    *("cases.csv", "summary.json", "calibration.json", "report.html"),
    *("audit.csv", "audit.json", "audit.md"),
)
"""What an evaluation and the audit of it leave behind, which another evaluation must not inherit."""
_CAUTION = {
    "tune": "NOT TO BE REPORTED: the checkpoint and the post-processing were chosen on these cases",
    "fit": "NOT TO BE REPORTED: the model was trained on these cases",
}


def evaluate(
    *,
    cohort: Cohort,
    out: Path,
    model: Path | None = None,
    predictions: Path | None = None,
    task: str | None = None,
    boxes: Mapping[str, Any] | None = None,
    lesions: Mapping[str, Any] | None = None,
    split: str = "test",
    fold: int | None = None,
    splits: Path | None = None,
    tolerance_mm: float = 1.0,
    bootstrap: int = 1000,
    baselines: bool = False,
    baseline_columns: Sequence[str] = (),
    bands: Sequence[Mapping[str, Any]] = (),
    report: bool = True,
    overlap: float = 0.5,
    mirror: bool = True,
    overwrite: bool = False,
    trust: Sequence[str] = (),
    runtime: Mapping[str, Any] | None = None,
    reader: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Score a model or a folder of masks, boxes or classes, and write the evaluation folder ``out``.

    Args:
        cohort: the data set with its labels or classes.
        model: a run folder; an experiment folder, whose folds are scored each on its own cases and pooled; or a model folder.
            Of a classifier the classes are scored, of a detector the boxes, of a segmentation model the masks, or with
            ``boxes={"from": "components"}`` the boxes around its components.
        predictions: instead of a model, a result folder, or a folder of label files, of boxes or of class probabilities named
            by case id.
        task: of predictions: whether masks (``segmentation``), boxes (``detection``) or classes (``classification``) are
            scored; None for what both the folder and the data hold, masks before boxes before classes.
        boxes: options of the group ``boxes``: how the boxes of a model are made, and the false positives a scan of its working
            point.
        lesions: ``instances`` and ``smallest_mm3`` of `LesionRule`: what is one lesion of a true mask, where a case has no boxes
            of its own and the model was not trained to find lesions.
        split: ``test``, ``tune``, ``fit``, or ``all`` cases (then an experiment's folds are an ensemble).
        fold: which fold, where it is not the model's own; for predictions, None pools the tests of all folds.
        splits: a ``splits.json``, where it is not the run's own.
        tolerance_mm: of the normalised surface Dice (px in pictures without spacing).
        bootstrap: draws of the intervals; 0 for none.
        baselines: whether what needs no model is fitted on ``fit`` and scored beside: the global threshold and the mean shape,
            a box around everything that stands out, or logistic regressions on numbers.
        baseline_columns: of classes: columns of numbers in the table, a baseline each.
        bands: of classes: ``{"column": …, "low": …, "high": …}``, cases whose AUROC is also given apart.
        report: whether ``report.html`` is written.
        overlap, mirror, runtime: see `Predictor`.
        overwrite: whether results in ``out`` of another model or other options are replaced.
        trust: targets of networks that are not built in.
        reader: options of the readers for ``predictions``; a model brings those that it was trained with.

    Returns:
        ``summary.json`` as a dict; with ``baselines`` also ``{"baselines": {name: summary}}``.

    Raises:
        MedsegError: nothing was done because of the request, the data or the model.
        SomeFailed: some cases could not be scored; the figures of the others are in ``out``.
        MachineError: the disk or the memory is full; the same command goes on.
    """
    out, box_options = Path(out), BoxOptions.from_mapping(boxes or {})
    if cohort.labels is None and not cohort.classes:
        raise MedsegError("evaluate: the data set has neither labels nor classes to compare with; set data.labels")
    if split not in (*SPLITS, "all"):
        raise MedsegError(f"split={split}: expected one of {', '.join(SPLITS)} or all")
    if not tolerance_mm >= 0 or bootstrap < 0:
        raise MedsegError(f"expected tolerance_mm and bootstrap of 0 or more, found {tolerance_mm} and {bootstrap}")
    if task not in (None, *TASKS):
        raise MedsegError(f"task={task}: expected one of {', '.join(TASKS)}")
    if model is not None and predictions is None:
        parts = parts_of_model(cohort, Path(model), split, fold, splits and Path(splits), trust)
        kind, reader = _kind_of_model(parts, box_options), parts[0].models[0].plan.options
    elif predictions is not None and model is None:
        if box_options != BoxOptions():
            raise MedsegError(
                "boxes: how they are made can be said of a model (model=…), not of predictions that are there"
            )
        parts = parts_of_predictions(cohort, split, fold, splits and Path(splits))
        kind = task or _kind_of_predictions(Path(predictions), [case for part in parts for case in part.cases], cohort)
    else:
        raise MedsegError(
            "evaluate: expected either model=… (a run folder) or predictions=… (a folder of masks, boxes or classes)"
        )
    if baseline_columns and not baselines:
        raise MedsegError("baseline_columns: are looked at with baselines=true only; say so, or leave them out")
    if baselines and not all(part.fit for part in parts):
        raise MedsegError("baselines=true: they are fitted on fit, so split=test (or tune) and splits are needed")
    labels = _labels_of(cohort, kind)
    data = Data(labels, cohort.channels, split, reader or {}, progress)
    scoring = _scoring(kind, data, parts, box_options, lesions, tolerance_mm, cohort, bands, baseline_columns)
    given = scoring.opened(Path(predictions)) if predictions is not None else None
    options = {"overlap": overlap, "mirror": mirror, "runtime": dict(runtime or {}), **scoring.made_by}
    request = {
        **({"predictions": _hash([str(given.path.resolve())])} if given else {"models": hashes_of(parts), **options}),
        **{"split": split, "folds": [part.fold for part in parts], **scoring.settings, "bootstrap": bootstrap},
        "labels": {name: list(values) for name, values in labels.targets.items()},
        "cases": _hash([case.id for part in parts for case in part.cases]),
    }

    def predictor(part: Part) -> Predictor:
        # What is written states the model's own working point: another rate then needs no other predictions.
        own = replace(box_options, fp_per_scan=None)
        return Predictor(part.models, runtime=runtime, overlap=overlap, mirror=mirror, boxes=own, trust=trust)

    with full_disk_is_said(out):
        _open_output(out, request, overwrite)
        failed: dict[Key, str] = {}
        found = {part.fold: given for part in parts}
        if given is None:
            how: dict[str, Any] = {
                "options": options, "overwrite": overwrite, "slices": report, "progress": progress
            }  # fmt: skip
            folders, failed = predict_parts(out, parts, scoring, predictor, **how)
            found = {fold: scoring.opened(folder) for fold, folder in folders.items()}
        every = {(part.fold, case.id): case for part in parts for case in part.cases}
        cases = {key: case for key, case in every.items() if key not in failed}
        scored: list[Any] = []
        for key, case in tqdm(cases.items(), desc="scoring", unit="case", disable=not progress):
            try:
                scored.append(scoring.score(case, found[key[0]], key[0]))
            except (MedsegError, OSError) as error:
                failed[key] = f"case {case.id!r}: {without_paths(error, case)}"
        if not scored:
            raise all_at_once(f"none of the {len(failed)} cases could be scored:", failed.values())
        summary: dict[str, Any] = dict(scoring.write(out, scored, bootstrap))
        title = _title(parts, scored, split, scoring.title(scored))
        logger.info("%s\n%s", title, scoring.table(scored, summary))
        beside = _baselines(scoring, parts, scored) if baselines else {}
        scoring.draw(out / "figures", title, scored, summary, cases=cases, found=found, baselines=beside)
        shutil.rmtree(out / "baselines", ignore_errors=True)  # those of an earlier call with others
        if beside:
            theirs = {name: scoring.write(out / "baselines" / name, of, bootstrap) for name, of in beside.items()}
            if isinstance(scoring, ClassScoring):
                summary = dict(scoring.with_differences(out, scored, summary, beside, bootstrap))
            logger.info("%s", scoring.compared(scored, summary, theirs))
            summary["baselines"] = theirs
        points = {p.fold: mean_point([model.working_point for model in p.models]) for p in parts if p.models}
        honest = scoring.calibration(scored, found, points, bootstrap)
        if honest is not None:
            stated = write_calibration(out, honest.rows, coverage=honest.coverage, held=honest.held)
            draw_reliability(honest.rows, out / "figures" / "calibration.png", title=title)
            logger.info("%s", format_calibration(stated))
        _write_state(out, request, complete=True, failed=sorted({case for _, case in failed}))
        if report:
            write_report(out, progress=progress)
    logger.info("cases.csv, summary.json and figures are in %s", out)
    if failed:
        listed = all_at_once(f"{len(failed)} of {len(failed) + len(scored)} cases were not scored:", failed.values())
        raise SomeFailed(f"{listed}\nThe figures of the others are in {out}")
    return summary


def _kind_of_model(parts: Sequence[Part], boxes: BoxOptions) -> str:
    """What of models is scored."""
    kinds = {str(model.task.get("name")) for part in parts for model in part.models}
    if len(kinds) > 1:
        raise MedsegError(
            f"model: expected folds of one task, found {' and '.join(sorted(kinds))}; evaluate them apart"
        )
    for part in parts:
        BoxFinder.of(part.models, boxes)  # says what cannot be asked of it
    return DETECTION if boxes.origin == COMPONENTS else kinds.pop()


def _kind_of_predictions(path: Path, cases: Sequence[Case], cohort: Cohort) -> str:
    """What of a folder is scored: what it holds, as far as the data have it too; masks before boxes before classes."""
    masks, boxes, classes = MaskFolder(path), BoxFolder(path), ClassFolder(path)
    if not any(case.label is not None for case in cases):
        if any(case.boxes is not None for case in cases):
            return DETECTION
        if cohort.classes:
            return CLASSIFICATION
    if not any(boxes.holds(case.id) for case in cases):
        of_classes = cohort.classes and any(classes.holds(case.id) for case in cases)
        return CLASSIFICATION if of_classes and not any(masks.holds(case.id) for case in cases) else SEGMENTATION
    if not any(masks.holds(case.id) for case in cases):
        return DETECTION
    logger.info("the predictions hold masks and boxes: the masks are scored; task=detection scores the boxes")
    return SEGMENTATION


def _scoring(
    kind: str,
    data: Data,
    parts: Sequence[Part],
    boxes: BoxOptions,
    lesions: Mapping[str, Any] | None,
    tolerance_mm: float,
    cohort: Cohort,
    bands: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
) -> Scoring[Any, Any]:
    if kind == CLASSIFICATION:
        return class_scoring(data, parts, cohort, bands, columns)
    if bands or columns:
        raise MedsegError(f"bands and baseline_columns: are for classification, and this is {kind}; leave them out")
    return box_scoring(data, parts, boxes, lesions) if kind == DETECTION else mask_scoring(data, parts, tolerance_mm)


def _labels_of(cohort: Cohort, kind: str) -> LabelTable:
    """What the masks of the data mean; of data without masks, the classes."""
    if kind == CLASSIFICATION:
        if not cohort.classes:
            raise MedsegError(
                "evaluate: the data set has no classes to compare with; name each case's class in the column class of the table "
                "(data.columns={class: <its name>})"
            )
        return cohort.labels or class_labels(cohort.classes)
    if cohort.labels is None:
        raise MedsegError("evaluate: the data set has no labels to compare with; set data.labels")
    check_label_names(list(cohort.labels.targets))
    return cohort.labels


def _baselines(scoring: Scoring[Any, Any], parts: Sequence[Part], scored: Sequence[Scored]) -> dict[str, list[Any]]:
    """Name → what a baseline, fitted on each fold's ``fit``, scores on the cases that were scored; one that all folds have."""
    found: dict[str, list[Any]] = {}
    wanted = {(case.fold, case.id) for case in scored}
    for part in parts:
        cases = [case for case in part.cases if (part.fold, case.id) in wanted]
        for name, of_part in scoring.baselines(part.fit, cases, part.fold).items() if cases else ():
            found.setdefault(name, []).extend(of_part)
    return {name: of_all for name, of_all in found.items() if len(of_all) == len(scored)}


def _hash(words: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def _open_output(out: Path, request: Mapping[str, Any], overwrite: bool) -> None:
    """Take over an evaluation of the same request; refuse or, with ``overwrite``, remove another one."""
    if out.exists() and not out.is_dir():
        raise MedsegError(f"out {out}: expected a folder, found a file; choose another")
    file = out / "evaluation.json"
    mine = json.loads(json.dumps(request))
    theirs: Any = None
    if file.is_file():
        try:
            theirs = json.loads(file.read_text(encoding="utf-8"))["request"]
        except (ValueError, KeyError, TypeError):
            theirs = {}
    other = theirs is not None and theirs != mine
    stray = theirs is None and any((out / name).exists() for name in ("cases.csv", "summary.json", "predictions"))
    if (other or stray) and not overwrite:
        names = sorted(n for n in {*mine, *(theirs or {})} if mine.get(n) != (theirs or {}).get(n))
        what = f"an evaluation with other {', '.join(names)}" if other else "files that no evaluation.json explains"
        raise MedsegError(f"out {out}: it holds {what}. Choose another folder, or say overwrite=true to replace it")
    if other or stray:  # masks stay until it is known whether the same model made them
        for name in ("figures", "baselines"):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in _FIGURES:
            (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    _write_state(out, request, complete=False, failed=[])


def _write_state(out: Path, request: Mapping[str, Any], *, complete: bool, failed: Sequence[str]) -> None:
    body = {"format": FORMAT, "request": request, "complete": complete, "failed": failed}
    write_text(out / "evaluation.json", json.dumps(body, indent=1, ensure_ascii=False) + "\n")


def _title(parts: Sequence[Part], scored: Sequence[Scored], split: str, measured: str) -> str:
    """What the figures are of, and whether they must not be reported."""
    folds = ", ".join(part.fold for part in parts if part.fold)
    patients = len({case.patient for case in scored})
    text = f"split {split}{f', fold {folds}' if folds else ''}: {len(scored)} cases of {patients} patients, {measured}"
    seen = sum(part.seen for part in parts)
    caution = (
        f"NOT TO BE REPORTED: {seen} of the cases were in fit or tune of the model" if seen else _CAUTION.get(split)
    )
    return f"{text}\n{caution}" if caution else text
