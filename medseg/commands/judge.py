"""``medseg explain judge=true``: whether the heat maps of a model deserve trust, measured on cases that it has not seen.

Of each case the first target is asked about (the surest box, the class that is called, a label of the mask, or what
``explain.targets`` says), with every method and beside maps that know nothing of the model. What a mask or boxes mark is where
a map should point. A case that is judged is kept at once, so that the same command goes on where it stopped. How trust is
measured is in `medseg.explain.trust`, how it is judged in `trust_table`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from medseg.commands.evaluation_parts import SPLITS, Part, parts_of_model
from medseg.commands.failures import Failures
from medseg.commands.heat_maps import Saliency, explainer_of
from medseg.commands.judged_cases import JudgedCases
from medseg.data.preprocess import preprocess
from medseg.data.regions import read_planned
from medseg.errors import MachineError, MedsegError, SomeFailed, all_at_once
from medseg.evaluation.lesions import components
from medseg.explain.explainer import AUTO, Explainer, best_method
from medseg.explain.stability import shifted
from medseg.explain.targets import Aim, Target, aims_of, region_on_plan, targets_of, voxels_of
from medseg.explain.trust import Method, TrustCase, measure
from medseg.explain.trust_figures import draw_curves, draw_trust
from medseg.explain.trust_table import TrustTable, format_trust, gather, write_trust
from medseg.export.origin import InputNames
from medseg.files import full_disk_is_said
from medseg.inference.boxes import BoxOptions
from medseg.inference.predictor import Predictor
from medseg.planning.plan import Plan
from medseg.scans import read_geometry, read_mask
from medseg.scans.boxes import boxes_of_case
from medseg.structures import Case, Cohort, LabelTable
from medseg.tiling.windows import cut_window
from medseg.volume import Array, Geometry

logger = logging.getLogger(__name__)
SHUFFLES = 3
"""Networks with shuffled weights that each method is asked to explain too, at the cost of a map a case."""


def judge(
    *,
    model: Path | str,
    cohort: Cohort,
    output: Path | str,
    saliency: Mapping[str, Any] | None = None,
    methods: Sequence[str] = (),
    split: str = "test",
    fold: int | None = None,
    splits: Path | None = None,
    cases: int | None = None,
    bootstrap: int = 1000,
    overlap: float = 0.5,
    mirror: bool = True,
    boxes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    runtime: Mapping[str, Any] | None = None,
    trust: Sequence[str] = (),
    progress: bool = True,
) -> TrustTable:
    """Measure how far heat maps can be trusted; ``trust.csv``, ``trust.json``, ``trust_verdict.json`` and figures in ``output``.

    Args:
        model: a run or experiment folder, whose cases are known, or a model folder with ``splits``.
        cohort: a data set; where a case has a mask or boxes, pointing is measured too.
        saliency: values of `Saliency`; None for the default method. Its layer and options are those of its method alone.
        methods: that are judged; empty for that of ``saliency``. The verdict is about the first.
        split, fold, splits: as for ``medseg evaluate``.
        cases: at most so many of them, spread evenly; None for all.
        bootstrap: draws of the intervals; 0 for none, and so no verdict.
        overlap, mirror, boxes, runtime, trust: as for ``medseg predict``.
        overwrite: whether a trust table in ``output`` is replaced, and what was begun there for another request.

    Raises:
        MedsegError: nothing was done because of the request, the data or the model, or no case can be judged.
        SomeFailed: some cases failed, or some methods in some cases; all other figures are in ``output``.
        MachineError: the disk or the memory is full; the same command goes on.
    """
    output = Path(output)
    chosen = Saliency.from_mapping({"method": AUTO} if saliency is None else saliency)
    if split not in (*SPLITS, "all"):
        raise MedsegError(f"split={split}: expected one of {', '.join(SPLITS)} or all")
    if cases is not None and cases < 1:
        raise MedsegError(f"cases={cases}: expected at least 1, or null for all")
    parts = [_thinned(part, cases) for part in parts_of_model(cohort, Path(model), split, fold, splits, trust)]
    best = best_method(str(parts[0].models[0].task["name"]), chosen.layer)
    own = best if chosen.method in (AUTO, None) else str(chosen.method)
    chosen = replace(chosen, method=own)
    names = list(dict.fromkeys(best if name == AUTO else name for name in methods or [own]))
    ways = {name: _for(name, chosen) for name in names}
    asked = {
        "methods": [[name, way.layer, dict(way.options)] for name, way in ways.items()],
        "targets": [str(target) for target in chosen.targets],
        "prediction": {"overlap": overlap, "mirror": mirror, "boxes": asdict(BoxOptions.from_mapping(boxes or {}))},
        "labels": None if cohort.labels is None else {n: list(v) for n, v in cohort.labels.targets.items()},
        "shuffles": SHUFFLES,
    }
    kept = [JudgedCases(output, {"models": [m.sha256 for m in part.models], **asked}) for part in parts]
    listed = [case for part in parts for case in part.cases]
    if not overwrite:
        _check_output(output, [way for p, one in zip(parts, kept, strict=True) for way in map(one.other_way, p.cases)])
    how: dict[str, Any] = {"overlap": overlap, "runtime": runtime, "trust": trust}
    files = InputNames.of([file for case in listed for source in case.images for file in source.files[:1]])
    failures = Failures(files)
    found: list[TrustCase] = []
    with full_disk_is_said(output):
        with tqdm(total=len(listed), desc="judging", unit="case", disable=not progress) as bar:
            for part, judged in zip(parts, kept, strict=True):
                done = {case.id: judged.read(case) for case in part.cases}
                if begun := sum(figures is not None for figures in done.values()):
                    logger.info("%d of %d cases are judged already", begun, len(done))
                known = None
                if None in done.values():
                    explainers = {name: explainer_of(part.models, way, **how) for name, way in ways.items()}
                    predictor = Predictor(part.models, mirror=mirror, boxes=boxes, **how)
                    known = _Part(explainers, predictor, chosen.targets, cohort.labels, files)
                for case in part.cases:
                    try:
                        figures = done[case.id]
                        if known is not None and figures is None:
                            figures = list(known.judged(case))
                            judged.write(case, figures)
                        found += figures or []
                    except Exception as error:
                        failures.note(case, error)
                    bar.update()
        _check_found(found, names[0], [case.id for case in listed], failures, output)
        table = gather(found, names[0], samples=bootstrap)
        write_trust(output, found, table)
        title = f"{table.cases} cases of {table.patients} patients, split {split}"
        draw_trust(table, output / "figures" / "trust.png", title=title)
        if any(case.curves for case in found):
            draw_curves(found, output / "figures" / "trust_curves.png", title=title)
        if not failures.reasons:
            kept[0].remove()  # the table holds all of it
    logger.info("%s\ntrust.csv, trust.json and figures are in %s", format_trust(table), output)
    failures.raise_if_any([case.id for case in listed], output, "judged")
    if failed := _failed_methods(found):
        heading = f"some methods failed in some cases, all other figures are in {output}:"
        raise SomeFailed(str(all_at_once(heading, failed)))
    return table


def _check_output(output: Path, ways: Sequence[str | None]) -> None:
    """Raises MedsegError where ``output`` holds a trust table, or what was begun for another request.

    Args:
        ways: of each case, as `JudgedCases.other_way`.
    """
    others = sorted({way for way in ways if way})
    if others:
        raise MedsegError(
            f"output {output}: it holds cases that were judged for another request (other {'; '.join(others)}). Choose another "
            "output, or say overwrite=true to replace them"
        )
    if (output / "trust.json").exists() and "" not in ways:
        raise MedsegError(f"output {output}: it holds a trust table. Choose another folder, or say overwrite=true")


def _check_found(found: Sequence[TrustCase], method: str, ids: Sequence[str], failures: Failures, output: Path) -> None:
    """Raises MedsegError where no case has figures of ``method``, which the table is about."""
    if any(method in case.values for case in found):
        return
    failures.raise_if_any(ids, output, "judged")
    if found:
        raise all_at_once(f"judge: {method} could not be judged in any case:", _failed_methods(found))
    raise MedsegError(f"judge: the model found nothing in any of {len(ids)} cases, so there is nothing to explain")


def _failed_methods(found: Sequence[TrustCase]) -> list[str]:
    """A line a method and reason: in which cases it has no figures."""
    cases: dict[str, list[str]] = {}
    for case in found:
        for method, why in case.failed.items():
            cases.setdefault(f"{method}: {why}", []).append(repr(case.id))
    return [
        f"{line} ({len(ids)} of {len(found)} cases: {', '.join(ids[:5])}{' …' if len(ids) > 5 else ''})"
        for line, ids in cases.items()
    ]


class _Part:
    """Models of one fold, ready to be judged case by case.

    Args:
        targets: that are asked about; empty for the first that a prediction has.
        labels: of the cohort.
        files: how files are called in messages.
    """

    def __init__(
        self,
        explainers: Mapping[str, Explainer],
        predictor: Predictor,
        targets: Sequence[Target],
        labels: LabelTable | None,
        files: InputNames,
    ) -> None:
        self._explainers, self._predictor = explainers, predictor
        self._targets, self._labels, self._files = targets, labels, files
        self._shuffled = {
            name: [one.with_shuffled_weights(seed) for seed in range(SHUFFLES)] for name, one in explainers.items()
        }

    def judged(self, case: Case) -> Iterator[TrustCase]:
        """What was measured of each target of a case that is asked about; nothing where nothing was found.

        Raises:
            MedsegError: a target that the case does not have, a file that cannot be read, or no method that works on it.
        """
        plan = self._predictor.plan
        volume = read_planned(case, plan)
        prediction = self._predictor.predict_volume(volume, case.id)
        array, restoration = preprocess(volume, plan)
        first = next(iter(self._explainers.values()))
        for aim in aims_of(prediction, self._targets or targets_of(prediction)[:1]):
            region = None if aim.region is None else region_on_plan(aim.region, restoration, plan)
            truth = true_region(case, volume.geometry, self._labels, plan, aim)
            methods = {
                name: Method(
                    _asked(one, aim.output, region),
                    [_asked(other, aim.output, region) for other in self._shuffled[name]],
                    moved=partial(_moved, one, aim.output, region),
                )
                for name, one in self._explainers.items()
            }
            yield measure(
                array,
                methods,
                lambda image, name=aim.output, region=region: first.score(image, name, region),  # type: ignore[misc]
                id=case.id,
                patient=case.patient,
                target=str(aim.target),
                truth=region_on_plan(truth, restoration, plan) if truth is not None and truth.any() else None,
                spacing=restoration.geometry.spacing,
                why=partial(self._why, case),
            )

    def _why(self, case: Case, method: str, error: Exception) -> str:
        """Why a method failed on a case; what the machine lacks is raised, as then the case is tried again."""
        if isinstance(error, (MachineError, MemoryError)):
            raise error
        reason = Failures(self._files).note(case, error)
        logger.warning("case %s: %s has no figures: %s", case.id, method, reason)
        return reason


def true_region(case: Case, geometry: Geometry, labels: LabelTable | None, plan: Plan, aim: Aim) -> Array | None:
    """Where a map should point, ``geometry.shape`` bool: of a label all of it, of a class all that is marked; of a box or lesion
    the true lesions of its label that it touches, which are none where it is a false positive.

    Args:
        geometry: the scan's own grid, or a part of it that may reach beyond; that of ``aim``.
        labels: of the cohort.

    Returns:
        None where nobody has marked anything.

    Raises:
        ScanError: a mask that cannot be read, or lies on another grid.
    """
    if labels is None or (case.label is None and case.boxes is None):
        return None
    whole = read_geometry(case.images[0], plan.options)
    values = labels.targets.get(aim.output) or tuple(labels.names)
    lower = [int(at) for at in np.rint(whole.to_index(geometry.to_world([0] * geometry.dimensions)))]
    place = aim.region if aim.target.kind in ("box", "lesion") else None
    if case.label is not None:
        mask, _ = read_mask(case.label, whole, labels)
        marked = cut_window(np.isin(mask, values)[None], lower, geometry.shape)[0]
        if place is None:
            return marked
        lesions, _ = components(marked)
        return np.isin(lesions, np.setdiff1d(lesions[place], 0))
    found, _ = boxes_of_case(case, whole, labels)
    marked = np.zeros(geometry.shape, bool)
    for edges in found.boxes[np.isin(found.labels, values)]:
        lesion = cut_window(voxels_of(edges, whole.shape)[None], lower, geometry.shape)[0]
        if place is None or (lesion & place).any():
            marked |= lesion
    return marked


def _asked(explainer: Explainer, name: str, region: Array | None) -> Any:
    """An image → its heat map."""
    return lambda image: explainer.on_grid(image, name, region)


def _moved(explainer: Explainer, name: str, region: Array | None, shift: list[int]) -> Any:
    """The same about a target that lies ``shift`` voxels further on, or where it was if it has left the image."""
    there = None if region is None else shifted(region, shift)
    return _asked(explainer, name, there if there is not None and there.any() else region)


def _for(method: str, saliency: Saliency) -> Saliency:
    """What is asked of a method: layer and options belong to the one that they were chosen for."""
    return saliency if method == saliency.method else Saliency(method, targets=saliency.targets)


def _thinned(part: Part, most: int | None) -> Part:
    """At most so many of its cases, spread evenly."""
    if most is None or len(part.cases) <= most:
        return part
    return replace(part, cases=tuple(part.cases[int(at)] for at in np.linspace(0, len(part.cases) - 1, most).round()))
