"""``medseg evaluate``: how good a model, or any folder of masks, is on the cases of a split; the evaluation folder.

Knows which cases may be scored by which model, and the order of the steps. A fold's model sees cases of its own split only;
what cannot be scored is named and ends with exit status 3. Metrics, means and baselines are in `medseg.evaluation`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from medseg.commands.evaluation_parts import SPLITS, Part, parts_of_model, parts_of_predictions
from medseg.errors import MachineError, MedsegError, SomeFailed, all_at_once
from medseg.evaluation.baselines import Example, GlobalThreshold, MeanShapeAtlas, normalised
from medseg.evaluation.figures import Overlay, draw_metric, draw_overlays
from medseg.evaluation.mask_folder import MaskFolder
from medseg.evaluation.segmentation import segmentation_metrics
from medseg.evaluation.summary import ScoredCase, check_label_names, format_table, write_evaluation
from medseg.export.case_folder import remove_remains, whole_folder
from medseg.export.manifest import Manifest, Record
from medseg.export.nifti import write_mask
from medseg.export.origin import InputNames, content_key
from medseg.files import NO_SPACE, full_disk_is_said, write_text
from medseg.inference.predictor import Predictor
from medseg.model import current_versions
from medseg.scans import difference, read_case, read_geometry, read_mask, same_grid
from medseg.scans.labels import present
from medseg.scans.names import case_id
from medseg.structures import Case, Cohort, LabelTable, unique_values
from medseg.volume import Array, Geometry

logger = logging.getLogger(__name__)
FORMAT = 1
WORST = 6
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
    split: str = "test",
    fold: int | None = None,
    splits: Path | None = None,
    tolerance_mm: float = 1.0,
    bootstrap: int = 1000,
    baselines: bool = False,
    overlap: float = 0.5,
    mirror: bool = True,
    overwrite: bool = False,
    trust: Sequence[str] = (),
    runtime: Mapping[str, Any] | None = None,
    reader: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Score a model or a folder of masks and write the evaluation folder ``out``.

    Args:
        cohort: the data set with its labels.
        model: a run folder; an experiment folder, whose folds are scored each on its own cases and pooled; or a model folder.
        predictions: instead of a model, a result folder or a folder of label files named by case id.
        split: ``test``, ``tune``, ``fit``, or ``all`` cases (then an experiment's folds are an ensemble).
        fold: which fold, where it is not the model's own; for predictions, None pools the tests of all folds.
        splits: a ``splits.json``, where it is not the run's own.
        tolerance_mm: of the normalised surface Dice (px in pictures without spacing).
        bootstrap: draws of the intervals; 0 for none.
        baselines: whether the global threshold and the mean shape are fitted on ``fit`` and scored beside.
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
    labels, out = cohort.labels, Path(out)
    if labels is None:
        raise MedsegError("evaluate: the data set has no labels to compare with; set data.labels")
    check_label_names(list(labels.targets))
    if split not in (*SPLITS, "all"):
        raise MedsegError(f"split={split}: expected one of {', '.join(SPLITS)} or all")
    if not tolerance_mm >= 0 or bootstrap < 0:
        raise MedsegError(f"expected tolerance_mm and bootstrap of 0 or more, found {tolerance_mm} and {bootstrap}")
    options = {"overlap": overlap, "mirror": mirror, "runtime": dict(runtime or {})}
    made_by: dict[str, Any]
    if model is not None and predictions is None:
        parts = parts_of_model(cohort, Path(model), split, fold, splits and Path(splits), trust)
        made_by = {"models": _models(parts), **options}
    elif predictions is not None and model is None:
        masks = MaskFolder(Path(predictions))
        parts = parts_of_predictions(cohort, split, fold, splits and Path(splits))
        made_by = {"predictions": _hash([str(masks.path.resolve())])}
    else:
        raise MedsegError("evaluate: expected either model=… (a run folder) or predictions=… (a folder of masks)")
    if baselines and not all(part.fit for part in parts):
        raise MedsegError("baselines=true: they are fitted on fit, so split=test (or tune) and splits are needed")
    request = {
        **made_by,
        **{
            "split": split,
            "folds": [part.fold for part in parts],
            "tolerance_mm": tolerance_mm,
            "bootstrap": bootstrap,
        },
        "labels": {name: list(values) for name, values in labels.targets.items()},
        "cases": _hash([case.id for part in parts for case in part.cases]),
    }
    with full_disk_is_said(out):
        _open_output(out, request, overwrite)
        failed: dict[tuple[str, str], str] = {}
        if model is None:
            found = {part.fold: masks for part in parts}
        else:
            manifests = _manifests(out, parts, options, overwrite)
            for part in parts:
                predictor = Predictor(part.models, runtime=runtime, overlap=overlap, mirror=mirror, trust=trust)
                failed |= _predict(part, predictor, manifests[part.fold], progress)
            found = {fold: MaskFolder(manifest.path.parent) for fold, manifest in manifests.items()}
        models = [model for part in parts for model in part.models]
        scorer = _Scorer(labels, tolerance_mm, split, models[0].plan.options if models else dict(reader or {}))
        pairs = [(part.fold, case) for part in parts for case in part.cases if (part.fold, case.id) not in failed]
        scored: list[ScoredCase] = []
        for name, case in tqdm(pairs, desc="scoring", unit="case", disable=not progress):
            try:
                scored.append(scorer.score_file(case, found[name], name))
            except (MedsegError, OSError) as error:
                failed[name, case.id] = f"case {case.id!r}: {_without_paths(error, case)}"
        if not scored:
            raise all_at_once(f"none of the {len(failed)} cases could be scored:", failed.values())
        summary: dict[str, Any] = dict(write_evaluation(out, scored, samples=bootstrap))
        title = _title(parts, scored, split, tolerance_mm)
        _draw(out, scored, parts, found, scorer, title)
        logger.info("%s\n%s", title, format_table(summary))
        if baselines:
            summary["baselines"] = {}
            for name, cases in _baselines(parts, cohort, scored, scorer, progress).items():
                summary["baselines"][name] = write_evaluation(out / "baselines" / name, cases, samples=bootstrap)
                table = format_table(summary["baselines"][name])
                logger.info("baseline %s, fitted on fit\n%s", name.replace("_", " "), table)
        _write_state(out, request, complete=True, failed=sorted({case for _, case in failed}))
    logger.info("cases.csv, summary.json and figures are in %s", out)
    if failed:
        listed = all_at_once(f"{len(failed)} of {len(failed) + len(scored)} cases were not scored:", failed.values())
        raise SomeFailed(f"{listed}\nThe figures of the others are in {out}")
    return summary


def _models(parts: Sequence[Part]) -> dict[str, list[str]]:
    """Fold → hashes of the models that predict it."""
    return {part.fold: [model.sha256 for model in part.models] for part in parts}


def _hash(words: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def _manifests(out: Path, parts: Sequence[Part], options: Mapping[str, Any], overwrite: bool) -> dict[str, Manifest]:
    """Fold → where its masks are written: ``predictions``, or a folder a fold below it where folds share cases."""
    ids = [case.id for part in parts for case in part.cases]
    shared = len(set(ids)) < len(ids)
    models = {fold: {"sha256": hashes[0], "members": hashes} for fold, hashes in _models(parts).items()}
    found: dict[Path, Manifest] = {}
    folders = {part.fold: out / "predictions" / (f"fold_{part.fold}" if shared else "") for part in parts}
    for folder in folders.values():
        if folder not in found:
            labels = parts[0].models[0].plan.labels.names
            manifest = Manifest(folder, models=models, options=options, labels=labels, versions=current_versions())
            try:
                manifest.resume()
            except MedsegError:
                if not overwrite:
                    raise
                shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            remove_remains(folder)
            found[folder] = manifest
    return {fold: found[folder] for fold, folder in folders.items()}


def _predict(part: Part, predictor: Predictor, manifest: Manifest, progress: bool) -> dict[tuple[str, str], str]:
    """Write the mask of each case that is not there yet; returns what failed and why, by fold and case."""
    folder, failed = manifest.path.parent, {}
    todo = [case for case in part.cases if not _is_done(case, manifest)]
    if len(todo) < len(part.cases):
        logger.info("%d of %d cases are predicted already", len(part.cases) - len(todo), len(part.cases))
    with manifest.saving():
        for case in tqdm(todo, desc="predicting", unit="case", disable=not progress):
            try:
                key = content_key(case)
                prediction = predictor.predict(case)
                with whole_folder(folder / case_id(case.id)) as place:
                    write_mask(prediction, place)
                manifest.record(case.id, Record("done", folder=case_id(case.id), key=key))
            except (MachineError, MemoryError):
                raise
            except Exception as error:
                if isinstance(error, OSError) and error.errno in NO_SPACE:
                    raise
                if not isinstance(error, (MedsegError, OSError)):
                    logger.exception("case %s: this is a bug of medseg", case.id)
                reason = _without_paths(error, case)
                manifest.record(case.id, Record("failed", reason=reason))
                failed[part.fold, case.id] = f"case {case.id!r}: {reason}"
    return failed


def _is_done(case: Case, manifest: Manifest) -> bool:
    record = manifest.cases.get(case.id)
    if record is None or record.status != "done" or not any((manifest.path.parent / record.folder).glob("mask.*")):
        return False
    try:
        return record.key == content_key(case)
    except OSError:
        return False  # predicting says what is wrong


def _without_paths(error: Exception, case: Case) -> str:
    """The message of an error with names of files in the place of their paths, and without the case, which is said before."""
    text = str(error) if isinstance(error, MedsegError) else f"{type(error).__name__}: {error}"
    sources = [*case.images, *([case.label] if case.label is not None else [])]
    text = InputNames.of([file for source in sources for file in source.files]).without_paths(text, case)
    return text.removeprefix(f"case {case.id!r}: ")


@dataclass(frozen=True)
class _Scorer:
    """Reads a case's true and predicted mask, checks that they may be compared, and scores them."""

    labels: LabelTable
    tolerance_mm: float
    split: str
    reader: Mapping[str, Any]

    def truth(self, case: Case) -> tuple[Array, Geometry]:
        """The true mask on the scan's grid."""
        if case.label is None:
            raise MedsegError("it has no label to compare with")
        mask, geometry = read_mask(case.label, read_geometry(case.images[0], self.reader), self.labels)
        self._check_values(mask, "label")
        return mask, geometry

    def predicted(self, case: Case, masks: MaskFolder, geometry: Geometry) -> Array:
        """The predicted mask, which must lie on the scan's grid."""
        mask, grid = read_mask(masks.source(case.id))
        if not same_grid(geometry, grid):
            raise MedsegError(
                f"prediction and scan lie on different grids ({difference(grid, geometry, 'prediction', 'scan')}). Bring the "
                "prediction back to the scan's grid"
            )
        self._check_values(mask, "prediction")
        return mask

    def score_file(self, case: Case, masks: MaskFolder, fold: str) -> ScoredCase:
        truth, geometry = self.truth(case)
        return self.score(case, self.predicted(case, masks, geometry), truth, geometry, fold)

    def score(self, case: Case, predicted: Array, truth: Array, geometry: Geometry, fold: str) -> ScoredCase:
        rows = segmentation_metrics(predicted, truth, geometry, self.labels, tolerance_mm=self.tolerance_mm)
        known = {**({"class": case.class_name} if case.class_name else {}), **case.metadata}
        return ScoredCase(case.id, case.patient, self.split, tuple(rows), fold, known)

    def _check_values(self, mask: Array, name: str) -> None:
        unknown = unique_values(self.labels, present(mask))
        if unknown:
            raise MedsegError(f"its {name} holds the values {unknown[:10]}; expected 0 and {dict(self.labels.names)}")


class _Baseline(Protocol):
    def predict(self, case: Example) -> Array: ...


def _baselines(
    parts: Sequence[Part], cohort: Cohort, scored: Sequence[ScoredCase], scorer: _Scorer, progress: bool
) -> dict[str, list[ScoredCase]]:
    """Both baselines, fitted on each fold's ``fit`` and scored on the cases that were scored."""
    found: dict[str, list[ScoredCase]] = {"global_threshold": [], "mean_shape_atlas": []}
    wanted = {(case.fold, case.id) for case in scored}

    def examples(cases: Sequence[Case], image: bool) -> Iterator[Example]:
        for case in tqdm(cases, desc="fitting a baseline", unit="case", disable=not progress):
            try:
                truth, geometry = scorer.truth(case)
                yield Example(geometry, _image(case, cohort, scorer.reader) if image else None, truth)
            except MedsegError as error:
                logger.warning("baseline: case %s left out: %s", case.id, _without_paths(error, case))

    for part in parts:
        fitted: dict[str, _Baseline] = {
            "global_threshold": GlobalThreshold.fit(examples(part.fit, True), scorer.labels),
            "mean_shape_atlas": MeanShapeAtlas.fit(examples(part.fit, False), scorer.labels),
        }
        for case in part.cases:
            if (part.fold, case.id) in wanted:
                truth, geometry = scorer.truth(case)
                example = Example(geometry, _image(case, cohort, scorer.reader))
                for name, baseline in fitted.items():
                    mask = baseline.predict(example)
                    found[name].append(scorer.score(case, mask, truth, geometry, part.fold))
    return found


def _image(case: Case, cohort: Cohort, reader: Mapping[str, Any]) -> Array:
    volume = read_case(case, reader)
    names = cohort.channels if len(cohort.channels) == len(case.images) else ("",) * len(case.images)
    ct = [
        source.modality == "CT"
        or (not source.modality and re.search(r"(?<![a-z])ct(?![a-z])", name.lower()) is not None)
        for source, name in zip(case.images, names, strict=True)
    ]
    return normalised(volume, ct if len(ct) == len(volume.data) else [False] * len(volume.data))


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
        for name in ("cases.csv", "summary.json"):
            (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    _write_state(out, request, complete=False, failed=[])


def _write_state(out: Path, request: Mapping[str, Any], *, complete: bool, failed: Sequence[str]) -> None:
    body = {"format": FORMAT, "request": request, "complete": complete, "failed": failed}
    write_text(out / "evaluation.json", json.dumps(body, indent=1, ensure_ascii=False) + "\n")


def _title(parts: Sequence[Part], scored: Sequence[ScoredCase], split: str, tolerance: float) -> str:
    """What the figures are of, and whether they must not be reported."""
    folds = ", ".join(part.fold for part in parts if part.fold)
    patients = len({case.patient for case in scored})
    unit = "px" if any(row.metric == "hd95_px" for case in scored for row in case.rows) else "mm"
    text = f"split {split}{f', fold {folds}' if folds else ''}: {len(scored)} cases of {patients} patients"
    text += f", NSD at {tolerance:g} {unit}"
    seen = sum(part.seen for part in parts)
    caution = (
        f"NOT TO BE REPORTED: {seen} of the cases were in fit or tune of the model" if seen else _CAUTION.get(split)
    )
    return f"{text}\n{caution}" if caution else text


def _draw(
    out: Path,
    scored: Sequence[ScoredCase],
    parts: Sequence[Part],
    found: Mapping[str, MaskFolder],
    scorer: _Scorer,
    title: str,
) -> None:
    """``figures/dice.png``, and ``figures/worst.png`` with the cases of lowest mean Dice."""
    draw_metric(scored, out / "figures" / "dice.png", title=title)
    dice: dict[tuple[str, str], float] = {}
    for entry in scored:
        values = [row.value for row in entry.rows if row.metric == "dice" and not math.isnan(row.value)]
        if values:
            dice[entry.fold, entry.id] = sum(values) / len(values)
    by_id = {(part.fold, case.id): case for part in parts for case in part.cases}
    overlays = []
    for key in sorted(dice, key=lambda k: (dice[k], k))[:WORST]:
        case = by_id[key]
        try:
            truth, geometry = scorer.truth(case)
            predicted = scorer.predicted(case, found[key[0]], geometry)
            image = read_case(replace(case, images=case.images[:1]), scorer.reader).data[0]
        except MedsegError as error:
            logger.warning("figures: case %s is not drawn: %s", case.id, _without_paths(error, case))
            continue
        labelled = np.where(np.isin(truth, list(scorer.labels.names)), truth, 0)  # without what is ignored
        overlays.append(Overlay.of(f"{case.id}  Dice {dice[key]:.3f}", image, labelled, predicted, geometry))
    if overlays:
        draw_overlays(overlays, out / "figures" / "worst.png", title=title)
