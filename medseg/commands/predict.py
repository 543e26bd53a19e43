"""``medseg predict``: scans in, a result folder out. Knows the order of the steps, and nothing of how each is done.

A case appears whole or not at all, a failed one leaves the others unharmed, and the same command goes on where it
stopped.
"""

from __future__ import annotations

import functools
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medseg.errors import MachineError, MedsegError, SomeFailed, all_at_once
from medseg.export.boxes import NAME as BOXES
from medseg.export.boxes import write_boxes
from medseg.export.case_folder import holds_only_results, remove_remains, whole_folder
from medseg.export.dicom import DicomExport, ValueMap, export_dicom, probability_maps
from medseg.export.dicom_source import Algorithm
from medseg.export.manifest import Manifest, Record, read_manifest, records
from medseg.export.nifti import write_mask, write_probabilities
from medseg.export.origin import InputNames, content_key
from medseg.export.overlay import case_overlay
from medseg.export.tables import COMPONENTS, LESIONS, figures, write_predictions
from medseg.files import NO_SPACE, full_disk_is_said
from medseg.inference.ahead import Read, read_ahead, warnings_of_this_thread
from medseg.inference.boxes import BoxOptions
from medseg.inference.combine import combine, combined_labels
from medseg.inference.predictor import Predictor
from medseg.model import current_versions, load_members
from medseg.planning.plan import Plan
from medseg.scans import read_case
from medseg.scans.layouts import input_cases
from medseg.scans.names import case_id, slug
from medseg.structures import Case, Fault, Prediction

logger = logging.getLogger(__name__)
Models = Path | str | Mapping[str, Path | str]
Input = Path | str | Sequence[Path | str]
_TAKEN = ("manifest.json", "predictions.csv", "report.html")


def predict(
    *,
    model: Models,
    input: Input,
    output: Path | str,
    overlap: float = 0.5,
    mirror: bool = True,
    batch_size: int = 1,
    boxes: Mapping[str, Any] | None = None,
    save_probabilities: bool = False,
    overlays: bool = True,
    overwrite: bool = False,
    workers: int = 1,
    runtime: Mapping[str, Any] | None = None,
    trust: Sequence[str] = (),
    select: Mapping[str, Any] | None = None,
    export: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Path:
    """Predict every scan of ``input`` into the result folder ``output``.

    Args:
        model: a model, run or experiment folder (folds are an ensemble). Or name → folder, for several models that see
            the same scans: labels are then called ``<name>/<label>``, mask and boxes are those of
            `medseg.inference.combine`, and the figures of ``predictions.csv`` are of each model's own mask, before a later
            one is painted over it.
        input: a file, a folder, a table, any layout, or a list of these.
        overlap, mirror, batch_size: see `medseg.inference.predictor.predict_grid`.
        boxes: values of `medseg.inference.boxes.BoxOptions`: where boxes come from, which of them are findings, and whether
            the others are written too.
        save_probabilities: whether each label's probability is written beside the mask. A model that finds boxes has none.
        overlays: whether a picture of three slices, with outlines and boxes, is written beside the mask and boxes.
        overwrite: whether results in ``output`` are replaced, whatever made them.
        workers: scans that are read ahead while one is predicted, each in memory.
        runtime: options of `medseg.inference.runtime.TorchRuntime`.
        trust: targets of networks that are not built in.
        select: which volumes are taken (`medseg.scans.select.Selection`); None for all.
        export: ``{"dicom": True}`` writes DICOM objects beside the mask; its other values are those of
            `medseg.export.dicom.DicomExport`. Every scan must then be DICOM.

    Returns:
        The result folder.

    Raises:
        MedsegError: nothing was done because of the request, the data or the model.
        SomeFailed: some cases failed; the others are complete.
        MachineError: the disk or the memory is full; the same command goes on.
    """
    output = Path(output)
    names = InputNames.of(input)
    _check_output(output, names, overwrite)
    box_options = BoxOptions.from_mapping(boxes or {})
    folders = model if isinstance(model, Mapping) else {"": model}
    predictors = {}
    for name, path in folders.items():
        members = load_members(Path(path), trust)
        theirs = box_options if len(folders) == 1 else box_options.for_one_of_several(str(members[0].task["name"]))
        predictors[str(name)] = Predictor(
            members,
            runtime=runtime,
            overlap=overlap,
            mirror=mirror,
            batch_size=batch_size,
            boxes=theirs,
            trust=trust,
        )
    plan = _plan_of_all(predictors)
    if save_probabilities:
        _check_probabilities(predictors)
    objects = _objects(export or {}, predictors, plan)
    cases, faults = input_cases(input, plan, select=select)
    if not cases:
        raise all_at_once(f"input {input}: expected scans, found none that can be read", map(str, faults))
    if objects is not None:
        _check_dicom(cases)
    chosen = {
        "overlap": overlap,
        "mirror": mirror,
        "boxes": asdict(box_options),
        "save_probabilities": save_probabilities,
        "export": dict(export or {}),
    }
    manifest = _manifest(output, predictors, chosen)
    work = _Work(predictors, output, names, box_options.all, save_probabilities, overlays, objects)
    unread = _unread(faults, {case.id for case in cases}, names)
    _check_folders({case.id: work.folder(case) for case in cases})
    with full_disk_is_said(output):
        _open_output(output, manifest, overwrite)
        with manifest.saving():
            for name, record in unread.items():
                manifest.record(name, record)
            todo = [case for case in cases if not work.is_done(case, manifest)]
            if len(todo) < len(cases):
                logger.info("%d of %d cases are done already", len(cases) - len(todo), len(cases))
            with tqdm(total=len(cases), initial=len(cases) - len(todo), unit="case", disable=not progress) as bar:
                for case, read in read_ahead(todo, lambda case: read_case(case, plan.options), workers):
                    manifest.record(case.id, work.do(case, read, _window_progress(bar, case.id)))
                    bar.update()
        write_predictions(manifest.cases, output)
    _raise_for_failures(manifest, [*(case.id for case in cases), *unread], output, work.starved)
    return output


@dataclass(frozen=True)
class _Work:
    """What is done with each case: predict, write, say how it went; ``starved`` are those that memory did not hold."""

    predictors: Mapping[str, Predictor]
    output: Path
    names: InputNames
    every_box: bool
    save_probabilities: bool
    overlays: bool
    write_objects: Callable[..., list[str]] | None
    starved: list[str] = field(default_factory=list)

    def folder(self, case: Case) -> Path:
        """The case's folder: its id, where that is safe in a path."""
        name = case_id(case.id)
        return self.output / (f"{name}_" if name in _TAKEN else name)

    def is_done(self, case: Case, manifest: Manifest) -> bool:
        """Whether the same files were predicted before and the result is still there."""
        record = manifest.cases.get(case.id)
        if record is None or record.status != "done" or not _is_there(self.folder(case), record):
            return False
        try:
            return record.key == content_key(case)
        except OSError:
            return False  # reading it says what is wrong

    def do(self, case: Case, read: Read, on_window: Callable[[int, int], None]) -> Record:
        """Predict and write one case. What is wrong with it ends up in the record; a full disk is raised."""
        started = time.monotonic() - read.seconds
        mended = [self.names.without_paths(warning, case) for warning in read.warnings]
        record = Record("failed", sources=self.names.sources(case), mended=mended)
        try:
            if read.error is not None:
                raise read.error
            key = content_key(case)
            with warnings_of_this_thread("medseg") as notes:
                found, completed = self._predict(case, read, on_window)
            record = replace(record, mended=[*mended, *notes, *completed])
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_SPACE:
                raise
            if isinstance(error, (MachineError, MemoryError)):
                self.starved.append(case.id)
            elif not isinstance(error, (MedsegError, OSError)):
                logger.exception("case %s: this is a bug of medseg", case.id)
            reason = str(error) if isinstance(error, MedsegError) else f"{type(error).__name__}: {error}"
            reason = self.names.without_paths(reason, case).removeprefix(f"case {case.id!r}: ")
            return replace(record, seconds=time.monotonic() - started, reason=reason)
        seconds = time.monotonic() - started
        return replace(record, status="done", seconds=seconds, folder=self.folder(case).name, key=key, figures=found)

    def _predict(
        self, case: Case, read: Read, on_window: Callable[[int, int], None]
    ) -> tuple[dict[str, float], list[str]]:
        """Write the case's folder; returns its figures, and what DICOM objects needed that the source lacks."""
        if read.volume is None:
            raise MedsegError(f"case {case.id!r}: was not read")
        predictions: dict[str, Prediction] = {}
        found: dict[str, float] = {}
        maps: list[Iterator[ValueMap]] = []
        with whole_folder(self.folder(case)) as folder:
            for name, predictor in self.predictors.items():
                outcome = predictor.outcome(read.volume, case.id, on_window)
                predictions[name] = outcome.prediction
                found |= figures(outcome.prediction, f"{name}/" if name else "")
                if self.save_probabilities:
                    place = folder / slug(name) if name else folder
                    place.mkdir(exist_ok=True)
                    merged = (outcome.merged, outcome.restoration, outcome.prediction.labels)
                    write_probabilities(*merged, place)
                    if self.write_objects is not None:
                        maps.append(probability_maps(*merged, folder=slug(name) if name else ""))
            prediction = predictions[""] if "" in predictions else combine(predictions)
            if prediction.mask is not None:
                write_mask(prediction, folder)
            if prediction.boxes is not None:
                write_boxes(prediction, folder, every=self.every_box)
            if self.overlays:
                case_overlay(read.volume, prediction, folder / "overlay.png")
            completed = self.write_objects(prediction, case, folder, maps=chain(*maps)) if self.write_objects else []
        return found, completed


def _is_there(folder: Path, record: Record) -> bool:
    """Whether the mask and the boxes that the figures of a record are made from still lie in the case's folder."""
    of_mask, of_boxes = (any(name.endswith(end) for name in record.figures) for end in (COMPONENTS, LESIONS))
    return (any(folder.glob("mask.*")) or not of_mask) and ((folder / BOXES).is_file() or not of_boxes)


def _objects(
    export: Mapping[str, Any], predictors: Mapping[str, Predictor], plan: Plan
) -> Callable[..., list[str]] | None:
    """What writes the DICOM objects of a case, or None where they are not asked for."""
    chosen = dict(export)
    if not chosen.pop("dicom", False):
        return None
    version = "+".join(predictor.sha256[:12] for predictor in predictors.values())
    return functools.partial(
        export_dicom,
        options=DicomExport.from_mapping(chosen),
        plan_options=plan.options,
        algorithm=Algorithm(f"medseg {plan.task}", version),
    )


def _check_probabilities(predictors: Mapping[str, Predictor]) -> None:
    """Raises MedsegError where a model has no probability of each voxel."""
    without = [name or "this one" for name, predictor in predictors.items() if predictor.task.name == "detection"]
    if without:
        raise MedsegError(
            f"save_probabilities: expected models that label voxels, found one that finds boxes, which have scores: "
            f"{', '.join(without)}. Leave it out; boxes.all=true lists the boxes below the working point too"
        )


def _check_dicom(cases: Sequence[Case]) -> None:
    """Raises MedsegError unless all scans are DICOM: objects belong to the patient and study of one."""
    others = [case.id for case in cases if case.images[0].kind != "dicom"]
    if others:
        raise MedsegError(
            f"export=dicom: expected DICOM series, found {len(others)} scan(s) of other formats: {', '.join(others[:10])}. "
            "Predict them without export=dicom, or take the DICOM series as input"
        )


def _check_output(output: Path, names: InputNames, overwrite: bool) -> None:
    """Raises MedsegError unless results may be written to ``output``."""
    if names.is_folder and output.resolve().is_relative_to(names.folder.resolve()):
        raise MedsegError(
            f"output {output} lies inside the input {names.folder}: its masks would be taken for scans when the command "
            "runs again. Choose an output beside the input"
        )
    if output.exists() and not output.is_dir():
        raise MedsegError(f"output {output}: expected a folder, found a file; choose another output")
    if output.is_dir() and any(output.iterdir()) and read_manifest(output) is None and not overwrite:
        raise MedsegError(
            f"output {output}: expected an empty folder or a result folder, found other files and no manifest.json. "
            "Choose another output, or say overwrite=true to write there all the same"
        )


def _check_folders(folders: Mapping[str, Path]) -> None:
    """Raises MedsegError where a case's folder is another case's too, or holds what no prediction left there."""
    owners: dict[Path, str] = {}
    for case, folder in folders.items():
        other = owners.setdefault(folder, case)
        if other != case:
            raise MedsegError(
                f"cases {other!r} and {case!r} would both be written to {folder.name}; rename one of them"
            )
        if folder.exists() and not holds_only_results(folder):
            raise MedsegError(
                f"output {folder}: expected nothing there, or an older prediction of case {case!r}; found other files, which "
                "would be lost. Choose another output"
            )


def _open_output(output: Path, manifest: Manifest, overwrite: bool) -> None:
    """Take over what is done already or, with ``overwrite``, remove the results that an older manifest lists."""
    if not overwrite:
        manifest.resume()
    elif (body := read_manifest(output)) is not None:
        for record in records(body).values():
            if record.folder and case_id(record.folder) == record.folder:
                shutil.rmtree(output / record.folder, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    remove_remains(output)


def _plan_of_all(predictors: Mapping[str, Predictor]) -> Plan:
    """The plan by which scans are found and read.

    Raises:
        MedsegError: there is no model, or two would have to read the same scans differently.
    """
    if not predictors:
        raise MedsegError("model: expected a folder, or at least one name: folder")
    plans = {name: predictor.plan for name, predictor in predictors.items()}
    first = next(iter(plans))
    for name, plan in plans.items():
        for what, a, b in (
            ("dimensions", plans[first].dimensions, plan.dimensions),
            ("number of channels", len(plans[first].channels), len(plan.channels)),
            ("unit", plans[first].unit, plan.unit),
            ("reader options", dict(plans[first].options), dict(plan.options)),
        ):
            if a != b:
                raise MedsegError(
                    f"models {first!r} and {name!r} cannot read the same scans: their {what} differ ({a} and {b}). "
                    "Predict with each into an output of its own"
                )
    return plans[first]


def _manifest(output: Path, predictors: Mapping[str, Predictor], options: Mapping[str, Any]) -> Manifest:
    tables = {name: predictor.plan.labels for name, predictor in predictors.items()}
    labels = tables[""] if "" in tables else combined_labels(tables)
    return Manifest(
        output,
        models={name: {"sha256": p.sha256, "members": list(p.members)} for name, p in predictors.items()},
        options=options,
        labels=labels.names,
        versions={**current_versions(), **next(iter(predictors.values())).runtime_description()},
    )


def _unread(faults: Sequence[Fault], taken: set[str], names: InputNames) -> dict[str, Record]:
    """A record for what is no case, under a name that no case has."""
    found: dict[str, Record] = {}
    for fault in faults:
        name = fault.case if fault.case and fault.case not in taken else f"{fault.case} ({fault.kind})".lstrip()
        while name in found:
            name += "′"
        found[name] = Record("failed", reason=names.without_paths(fault.message))
    return found


def _window_progress(bar: tqdm, case: str) -> Callable[[int, int], None]:
    """Shows the windows of a case beside the bar of cases, twice a second at most."""
    shown_at = 0.0

    def show(done: int, total: int) -> None:
        nonlocal shown_at
        if total > 1 and time.monotonic() - shown_at > 0.5:
            shown_at = time.monotonic()
            bar.set_postfix_str(f"{case}: {done} of {total} windows")

    bar.set_postfix_str(case)
    return show


def _raise_for_failures(manifest: Manifest, ids: Sequence[str], output: Path, starved: Sequence[str]) -> None:
    """Say what failed: 4 where it was the memory, 2 where nothing came out, 3 where the others did."""
    failed = [f"{name!r}: {manifest.cases[name].reason}" for name in ids if manifest.cases[name].status == "failed"]
    done = len(ids) - len(failed)
    if starved:
        heading = (
            f"the memory did not hold {len(starved)} of {len(ids)} cases; close other programs, take workers=0 or "
        )
        heading += "a machine with more memory, and run the same command again, it goes on:"
        raise MachineError(str(all_at_once(heading, failed)))
    if failed and not done:
        raise all_at_once(f"none of the {len(ids)} cases could be predicted:", failed)
    if failed:
        listed = all_at_once(f"{len(failed)} of {len(ids)} cases failed, the others are in {output}:", failed)
        raise SomeFailed(str(listed))
