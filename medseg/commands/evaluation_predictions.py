"""What models say of the cases of an evaluation, written once: the folder ``predictions``, which the same command goes on with.

What is written of a case is said by a `Scoring`; nothing is compared here.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medseg.commands.evaluation_parts import Part
from medseg.commands.runtime_choice import RuntimeChoice
from medseg.commands.scoring import Key, Scoring, without_paths
from medseg.data.regions import read_planned
from medseg.errors import MachineError, MedsegError
from medseg.export.case_folder import remove_remains, whole_folder
from medseg.export.manifest import Manifest, Record
from medseg.export.preview import write_preview
from medseg.files import NO_SPACE
from medseg.inference.predictor import Predictor
from medseg.model import current_versions
from medseg.scans.names import case_id
from medseg.structures import Case

logger = logging.getLogger(__name__)


def predict_parts(
    out: Path,
    parts: Sequence[Part],
    scoring: Scoring[Any, Any],
    predictor: Callable[[Part], Predictor],
    *,
    options: Mapping[str, Any],
    overwrite: bool,
    slices: bool,
    progress: bool,
) -> tuple[dict[str, Path], dict[Key, str]]:
    """Predict every case of every part that is not predicted yet.

    Args:
        predictor: what predicts a part; made only when it is its turn.
        options: what predictions depend on beside the models.
        overwrite: whether those of other models or other options are replaced.
        slices: whether slices of each scan are kept for a report.

    Returns:
        The folder of each fold's predictions (one for all, or one a fold where folds share cases), and what failed and why.

    Raises:
        MedsegError: the folder holds predictions of other models or other options.
        MachineError: the memory does not hold a case.
    """
    manifests = _manifests(out, parts, options, overwrite)
    failed: dict[Key, str] = {}
    for part in parts:
        failed |= _predict(part, predictor(part), manifests[part.fold], scoring, slices=slices, progress=progress)
    return {fold: manifest.path.parent for fold, manifest in manifests.items()}, failed


def hashes_of(parts: Sequence[Part]) -> dict[str, list[str]]:
    """Fold → hashes of the models that predict it."""
    return {part.fold: [model.sha256 for model in part.models] for part in parts}


def _manifests(out: Path, parts: Sequence[Part], options: Mapping[str, Any], overwrite: bool) -> dict[str, Manifest]:
    """Fold → where it is written: ``predictions``, or a folder a fold below it where folds share cases."""
    ids = [case.id for part in parts for case in part.cases]
    shared = len(set(ids)) < len(ids)
    models = {fold: {"sha256": hashes[0], "members": hashes} for fold, hashes in hashes_of(parts).items()}
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


def _predict(
    part: Part, predictor: Predictor, manifest: Manifest, scoring: Scoring[Any, Any], *, slices: bool, progress: bool
) -> dict[Key, str]:
    """Write the prediction of each case that is not there yet; returns what failed and why."""
    folder, failed = manifest.path.parent, {}
    todo = [case for case in part.cases if not _is_done(case, manifest, scoring)]
    if len(todo) < len(part.cases):
        logger.info("%d of %d cases are predicted already", len(part.cases) - len(todo), len(part.cases))
    runtimes = RuntimeChoice({str(part.fold): predictor}, manifest)
    with manifest.saving():
        for number, case in enumerate(tqdm(todo, desc="predicting", unit="case", disable=not progress)):
            try:
                key = scoring.key(case)
                volume = read_planned(case, predictor.plan)
                runtimes.settle(volume.geometry, len(todo) - number)
                outcome = predictor.outcome(volume, case.id)
                with whole_folder(folder / case_id(case.id)) as place:
                    scoring.write_prediction(outcome, case, place)
                    if slices:
                        write_preview(volume, outcome.prediction, place)
                manifest.record(case.id, Record("done", folder=case_id(case.id), key=key))
            except (MachineError, MemoryError):
                raise
            except Exception as error:
                if isinstance(error, OSError) and error.errno in NO_SPACE:
                    raise
                if not isinstance(error, (MedsegError, OSError)):
                    logger.exception("case %s: this is a bug of medseg", case.id)
                reason = without_paths(error, case)
                manifest.record(case.id, Record("failed", reason=reason))
                failed[part.fold, case.id] = f"case {case.id!r}: {reason}"
    return failed


def _is_done(case: Case, manifest: Manifest, scoring: Scoring[Any, Any]) -> bool:
    record = manifest.cases.get(case.id)
    if record is None or record.status != "done" or not scoring.is_written(manifest.path.parent / record.folder):
        return False
    try:
        return record.key == scoring.key(case)
    except OSError:
        return False  # predicting says what is wrong
