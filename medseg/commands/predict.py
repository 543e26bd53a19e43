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
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medseg.commands.case_work import CaseWork, Wanted
from medseg.commands.failures import Failures
from medseg.commands.foresight import foresee
from medseg.commands.heat_maps import HeatMaps, Saliency, heat_maps_of
from medseg.commands.report import report as write_report
from medseg.commands.runtime_choice import RuntimeChoice
from medseg.errors import MedsegError, all_at_once
from medseg.export.case_folder import holds_only_results, remove_remains
from medseg.export.dicom import DicomExport, check_dicom, export_dicom
from medseg.export.dicom_source import Algorithm
from medseg.export.manifest import Manifest, Record, read_manifest, records
from medseg.export.origin import InputNames
from medseg.export.tables import write_predictions
from medseg.files import full_disk_is_said
from medseg.inference.ahead import finish_behind, read_ahead
from medseg.inference.boxes import BoxOptions
from medseg.inference.combine import combined_labels
from medseg.inference.memory import Memory
from medseg.inference.predictor import Predictor
from medseg.model import current_versions, load_members
from medseg.planning.plan import Plan
from medseg.scans.layouts import input_cases
from medseg.scans.names import case_id
from medseg.structures import Case, Fault

logger = logging.getLogger(__name__)
Models = Path | str | Mapping[str, Path | str]
Input = Path | str | Sequence[Path | str]


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
    uncertainty: bool = False,
    saliency: Mapping[str, Any] | None = None,
    overlays: bool = True,
    report: bool = True,
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
        uncertainty: whether a map of how unsure the mask is (`medseg.inference.uncertainty`) is written beside it, and its mean
            over each label into ``predictions.csv``. Boxes always say how far mirrorings and folds disagree (``spread``).
        saliency: values of `medseg.commands.heat_maps.Saliency`: heat maps that are written beside each prediction of a single
            model; None, or a method of None, for none.
        overlays: whether a picture of three slices, with outlines and boxes, is written beside the mask and boxes.
        report: whether slices of each scan are kept for ``report.html``, which is then written at the end.
        overwrite: whether results in ``output`` are replaced, whatever made them.
        workers: scans that are read ahead while one is predicted, each in memory; the one before it is then written meanwhile
            too. 0: they are read, predicted and written one after another.
        runtime: values of `medseg.inference.runtimes.RuntimeOptions`; what ``auto`` chose stands in the manifest, and is kept
            when the run goes on. And ``memory_gb``: what the process may take of the main memory, None for what is free. What
            the largest case will take is said before the run.
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
    runtime = dict(runtime or {})
    memory_gb = runtime.pop("memory_gb", None)
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
            memory_gb=memory_gb,
            trust=trust,
        )
    plan = _plan_of_all(predictors)
    for option, asked in (("save_probabilities", save_probabilities), ("uncertainty", uncertainty)):
        if asked:
            _check_probabilities(predictors, option)
    maps = _heat_maps(folders, saliency, overlap=overlap, runtime=runtime, trust=trust, export=export)
    objects = _objects(export or {}, predictors, plan)
    cases, faults = input_cases(input, plan, select=select)
    if not cases:
        raise all_at_once(f"input {input}: expected scans, found none that can be read", map(str, faults))
    if objects is not None:
        check_dicom(cases)
    chosen = {
        "overlap": overlap,
        "mirror": mirror,
        "boxes": asdict(box_options),
        "save_probabilities": save_probabilities,
        "uncertainty": uncertainty,
        "export": dict(export or {}),
    }
    manifest = _manifest(output, predictors, chosen)
    wanted = Wanted(box_options.all, save_probabilities, uncertainty, overlays, report)
    failures = Failures(names)
    work = CaseWork(predictors, output, names, wanted, objects, maps, failures)
    unread = _unread(faults, {case.id for case in cases}, names)
    _check_folders({case.id: work.folder(case) for case in cases})
    memory = foresee(predictors, cases, Memory.here(memory_gb), scores=wanted.scores, workers=workers)
    for predictor in predictors.values():
        predictor.memory = memory
    overlapped = memory.beside > 0
    with full_disk_is_said(output):
        _open_output(output, manifest, overwrite)
        runtimes = RuntimeChoice(predictors, manifest)
        with manifest.saving():
            for name, record in unread.items():
                manifest.record(name, record)
            todo = [case for case in cases if not work.is_done(case, manifest)]
            if len(todo) < len(cases):
                logger.info("%d of %d cases are done already", len(cases) - len(todo), len(cases))
            with tqdm(total=len(cases), initial=len(cases) - len(todo), unit="case", disable=not progress) as bar:

                def note(done: tuple[str, Record]) -> None:
                    manifest.record(*done)
                    bar.update()

                jobs = _jobs(work, todo, runtimes, workers if overlapped else 0, bar)
                # Explaining runs the network again, which would then be in use twice.
                finish_behind(jobs, note, behind=overlapped and maps is None)
        _say_spared([manifest.cases[case.id] for case in todo])
        write_predictions(manifest.cases, output)
        if report:
            write_report(output, progress=progress)
    failures.reasons |= {n: r.reason for n, r in manifest.cases.items() if r.status == "failed"}
    failures.raise_if_any([*(case.id for case in cases), *unread], output, "predicted")
    return output


def _jobs(
    work: CaseWork, todo: Sequence[Case], runtimes: RuntimeChoice, ahead: int, bar: tqdm
) -> Iterator[Callable[[], tuple[str, Record]]]:
    """What is left to do of each case when it is predicted; no scan is held here while the next is waited for."""
    for number, (case, read) in enumerate(read_ahead(todo, work.read, ahead)):
        if read.value is not None:
            runtimes.settle(read.value.volume.geometry, len(todo) - number)
        job = work.predict(case, read, _window_progress(bar, case.id))
        del read
        yield job
        del job


def _say_spared(done: Sequence[Record]) -> None:
    """How much of the network's work fell away."""
    spared, asked = (sum(record.windows.get(kind, 0) for record in done) for kind in ("spared", "asked"))
    if spared:
        logger.info("%d of %d windows hold one value, such as air, and were answered once", spared, spared + asked)


def _heat_maps(
    folders: Mapping[str, Any],
    saliency: Mapping[str, Any] | None,
    *,
    overlap: float,
    runtime: Mapping[str, Any] | None,
    trust: Sequence[str],
    export: Mapping[str, Any] | None,
) -> HeatMaps | None:
    """What explains each prediction, or None where that is not asked for."""
    chosen = Saliency.from_mapping(saliency or {})
    if chosen.method is None:
        return None
    if len(folders) > 1:
        raise MedsegError("explain: one model is explained at a time; predict with each into an output of its own")
    members = load_members(Path(next(iter(folders.values()))), trust)
    return heat_maps_of(members, chosen, overlap=overlap, runtime=runtime, trust=trust, export=export)


def _objects(
    export: Mapping[str, Any], predictors: Mapping[str, Predictor], plan: Plan
) -> Callable[..., list[str]] | None:
    """What writes the DICOM objects of a case, or None where they are not asked for."""
    chosen = dict(export)
    if not chosen.pop("dicom", False):
        return None
    if plan.classes is not None and plan.classes.region is not None:
        raise MedsegError(
            "export=dicom: this model looks at a part of each scan, and DICOM objects lie on whole ones; leave export=dicom out"
        )
    version = "+".join(predictor.sha256[:12] for predictor in predictors.values())
    return functools.partial(
        export_dicom,
        options=DicomExport.from_mapping(chosen),
        plan_options=plan.options,
        algorithm=Algorithm(f"medseg {plan.task}", version),
    )


def _check_probabilities(predictors: Mapping[str, Predictor], option: str) -> None:
    """Raises MedsegError where a model has no probability of each voxel."""
    without = [name or "this one" for name, predictor in predictors.items() if predictor.task.name != "segmentation"]
    if without:
        raise MedsegError(
            f"{option}: expected models that label voxels, found one whose boxes or classes have scores anyway: "
            f"{', '.join(without)}. Leave it out; boxes.all=true lists the boxes below the working point too"
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
            ("region of a scan", *(p.classes.region if p.classes else None for p in (plans[first], plan))),
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
        versions=current_versions(),
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
