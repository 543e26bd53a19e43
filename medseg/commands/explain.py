"""``medseg explain``: a heat map beside every prediction, and sheets of what the model has learned.

Knows the order of the steps. What is not predicted yet is predicted as ``medseg predict`` does, into the same result folder;
what is explained already is skipped, and a case that cannot be explained leaves the others unharmed. Whether the maps deserve
trust is asked in `medseg.commands.judge`.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medseg.commands.failures import Failures
from medseg.commands.feature_sheets import FOLDER, FeatureSheets
from medseg.commands.heat_maps import HeatMaps, Saliency, heat_maps_of
from medseg.commands.predict import Input, Models, predict
from medseg.commands.report import report as write_report
from medseg.commands.stored_prediction import StoredPredictions
from medseg.data.regions import read_planned
from medseg.errors import MedsegError, SomeFailed, all_at_once
from medseg.explain.explainer import AUTO
from medseg.export.case_folder import remove_remains
from medseg.export.dicom import check_dicom
from medseg.export.manifest import Record, read_manifest, records
from medseg.export.origin import InputNames
from medseg.files import full_disk_is_said
from medseg.inference.ahead import Read, read_ahead
from medseg.inference.classes import ClassReader
from medseg.model import Model, load_members
from medseg.scans.layouts import input_cases
from medseg.structures import Case
from medseg.volume import Volume

logger = logging.getLogger(__name__)


def explain(
    *,
    model: Models,
    input: Input,
    output: Path | str,
    saliency: Mapping[str, Any] | None = None,
    features: bool = False,
    overlap: float = 0.5,
    mirror: bool = True,
    batch_size: int = 1,
    boxes: Mapping[str, Any] | None = None,
    report: bool = True,
    overwrite: bool = False,
    workers: int = 1,
    runtime: Mapping[str, Any] | None = None,
    trust: Sequence[str] = (),
    select: Mapping[str, Any] | None = None,
    export: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Path:
    """Explain what a model says of every scan of ``input``, beside its predictions in the result folder ``output``.

    Args:
        model: a model, run or experiment folder; of folds, which are an ensemble, a map is the mean.
        output: where it holds predictions of this model, those are explained; what is missing is predicted as they were.
        saliency: values of `medseg.commands.heat_maps.Saliency`; None for the default method and targets. A method of None is
            for sheets alone.
        features: whether sheets are written to ``output/features``: filters, activations of the first case, exciting inputs;
            of folds, those of the first.
        overlap, mirror, batch_size, boxes, report, workers, runtime, trust, select: as for ``medseg predict``.
        overwrite: whether results of another model, and heat maps made in another way, are replaced.
        export: as for ``medseg predict``; with ``{"dicom": True}`` parametric maps are written beside the plain files.

    Returns:
        The result folder.

    Raises:
        MedsegError: nothing was done because of the request, the data or the model.
        SomeFailed: some cases failed; the others are complete.
        MachineError: the disk or the memory is full; the same command goes on.
    """
    output = Path(output)
    if isinstance(model, Mapping):
        raise MedsegError("explain: expected one model, found several by name; explain each into an output of its own")
    chosen = Saliency.from_mapping({"method": AUTO} if saliency is None else saliency)
    if chosen.method is None and not features:
        raise MedsegError("explain=none: expected a method, such as explain=auto, or features=true")
    members = load_members(Path(model), trust)
    is_mine, begun = _begun(output, members)
    for folder in output.iterdir() if is_mine else ():
        remove_remains(folder)  # of maps that were being written when a run was killed
    how: dict[str, Any] = {"overlap": overlap, "mirror": mirror, "boxes": boxes, "export": export, **begun}
    shared: dict[str, Any] = {"runtime": runtime, "trust": trust}
    maps = None
    if chosen.method is not None:
        maps = heat_maps_of(members, chosen, overlap=how["overlap"], export=export, **shared)
        if is_mine and not overwrite:
            _check_other_ways(maps, output)
    sheets = FeatureSheets(members[0], chosen.layer, **shared) if features else None
    cases, faults = input_cases(input, members[0].plan, select=select)
    if not cases:
        raise all_at_once(f"input {input}: expected scans, found none that can be read", map(str, faults))
    if maps is not None and maps.dicom is not None:
        check_dicom(cases)

    how |= {"select": select, "workers": workers, "batch_size": batch_size, "report": report, "progress": progress}
    with contextlib.suppress(SomeFailed):  # said at the end, with what cannot be explained
        predict(model=model, input=input, output=output, overwrite=overwrite and not is_mine, **shared, **how)
    stored = _records(output)
    failures = Failures(InputNames.of(input))
    failures.reasons.update({name: record.reason for name, record in stored.items() if record.status == "failed"})
    ids = list(dict.fromkeys([*(case.id for case in cases), *failures.reasons]))
    cases = [case for case in cases if case.id not in failures.reasons]
    folders = {case.id: output / stored[case.id].folder for case in cases}
    with full_disk_is_said(output):
        if maps is not None:
            todo = [case for case in cases if not maps.is_done(folders[case.id])]
            if len(todo) < len(cases):
                logger.info("%d of %d cases are explained already", len(cases) - len(todo), len(cases))
            predictions = _stored_predictions(output, members)
            with tqdm(total=len(cases), initial=len(cases) - len(todo), unit="case", disable=not progress) as bar:
                for case, read in read_ahead(todo, lambda case: read_planned(case, members[0].plan), workers):
                    bar.set_postfix_str(case.id)
                    try:
                        _explain_case(case, read, predictions, maps, folders[case.id])
                    except Exception as error:
                        failures.note(case, error)
                    bar.update()
        if sheets is not None and cases and not (is_mine and sheets.is_done(cases[0].id, output / FOLDER)):
            sheets.write(read_planned(cases[0], members[0].plan), cases[0].id, output / FOLDER)
        if report and maps is not None:
            write_report(output, progress=progress)  # now with the heat maps
    failures.raise_if_any(ids, output, "explained")
    return output


def _explain_case(case: Case, read: Read[Volume], predictions: StoredPredictions, maps: HeatMaps, folder: Path) -> None:
    """Write the heat maps of a case; raises whatever is wrong with it."""
    if read.value is None:
        raise read.error or MedsegError("was not read")
    maps.write(read.value, predictions.read(case.id, read.value.geometry), case, folder)


def _begun(output: Path, members: Sequence[Model]) -> tuple[bool, dict[str, Any]]:
    """Whether ``output`` holds results of these members, and the options of ``predict`` that they were made with."""
    body = read_manifest(output)
    if body is None or body.get("models", {}).get("", {}).get("members") != [model.sha256 for model in members]:
        return False, {}
    known = inspect.signature(predict).parameters
    return True, {name: value for name, value in body["options"].items() if name in known}


def _records(output: Path) -> dict[str, Record]:
    """What became of each case that ``predict`` took."""
    return records(read_manifest(output) or {"cases": {}})


def _stored_predictions(output: Path, members: Sequence[Model]) -> StoredPredictions:
    """The results of these members in a result folder."""
    plan, task = members[0].plan, members[0].task
    if plan.classes is None:
        return StoredPredictions(output, plan.labels)
    thresholds = ClassReader.of(members).point.get("thresholds", {})
    return StoredPredictions(output, plan.labels, True, not task.get("multilabel", False), thresholds)


def _check_other_ways(maps: HeatMaps, output: Path) -> None:
    """Raises MedsegError where cases have heat maps that were made in another way, which would be lost."""
    folders = {case: output / record.folder for case, record in _records(output).items() if record.status == "done"}
    others = {case: way for case, folder in folders.items() if (way := maps.other_way(folder))}
    if others:
        ways = ", ".join(sorted(set(others.values())))
        raise MedsegError(
            f"output {output}: {len(others)} case(s) have heat maps made in another way ({ways}). Choose another output, or say "
            "overwrite=true to replace them"
        )
