"""``medseg explain judge=true``: whether the heat maps of a model deserve trust, measured on cases that it has not seen.

Of each case the first target is asked about (the surest box, the class that is called, a label of the mask, or what
``explain.targets`` says), with every method and beside maps that know nothing of the model. What a mask or boxes mark is where
a map should point. How trust is measured is in `medseg.explain.trust`, how it is judged in `trust_table`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from medseg.commands.evaluation_parts import SPLITS, Part, parts_of_model
from medseg.commands.failures import Failures
from medseg.commands.heat_maps import Saliency, explainer_of
from medseg.data.preprocess import preprocess
from medseg.data.regions import read_planned
from medseg.errors import MedsegError
from medseg.explain.explainer import DEFAULT, Explainer
from medseg.explain.stability import shifted
from medseg.explain.targets import aims_of, region_on_plan, targets_of, voxels_of
from medseg.explain.trust import Method, TrustCase, measure
from medseg.explain.trust_figures import draw_curves, draw_trust
from medseg.explain.trust_table import TrustTable, format_trust, gather, write_trust
from medseg.export.origin import InputNames
from medseg.files import full_disk_is_said
from medseg.inference.predictor import Predictor
from medseg.planning.plan import Plan
from medseg.scans import read_geometry, read_mask
from medseg.scans.boxes import boxes_of_case
from medseg.structures import Case, Cohort, LabelTable
from medseg.tiling.windows import cut_window
from medseg.volume import Array, Geometry

logger = logging.getLogger(__name__)
_SEED = 0


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
        overwrite: whether a trust table in ``output`` is replaced.

    Raises:
        MedsegError: nothing was done because of the request, the data or the model, or no case can be judged.
        SomeFailed: some cases failed; the figures of the others are in ``output``.
        MachineError: the disk or the memory is full.
    """
    output = Path(output)
    chosen = Saliency.from_mapping({"method": DEFAULT} if saliency is None else saliency)
    names = list(dict.fromkeys(methods or [chosen.method or DEFAULT]))
    if split not in (*SPLITS, "all"):
        raise MedsegError(f"split={split}: expected one of {', '.join(SPLITS)} or all")
    if cases is not None and cases < 1:
        raise MedsegError(f"cases={cases}: expected at least 1, or null for all")
    if (output / "trust.json").exists() and not overwrite:
        raise MedsegError(f"output {output}: it holds a trust table. Choose another folder, or say overwrite=true")
    parts = [_thinned(part, cases) for part in parts_of_model(cohort, Path(model), split, fold, splits, trust)]
    how: dict[str, Any] = {"overlap": overlap, "runtime": runtime, "trust": trust}
    ids = [case.id for part in parts for case in part.cases]
    failures = Failures(InputNames.of([file for p in parts for c in p.cases for s in c.images for file in s.files[:1]]))
    found: list[TrustCase] = []
    with full_disk_is_said(output):
        with tqdm(total=len(ids), desc="judging", unit="case", disable=not progress) as bar:
            for part in parts:
                explainers = {name: explainer_of(part.models, _for(name, chosen), **how) for name in names}
                predictor = Predictor(part.models, mirror=mirror, boxes=boxes, **how)
                known = _Part(explainers, predictor, chosen, cohort.labels)
                for case in part.cases:
                    try:
                        found += known.judged(case)
                    except Exception as error:
                        failures.note(case, error)
                    bar.update()
        if not found:
            failures.raise_if_any(ids, output, "judged")
            raise MedsegError(
                f"judge: the model found nothing in any of {len(ids)} cases, so there is nothing to explain"
            )
        table = gather(found, names[0], samples=bootstrap)
        write_trust(output, found, table)
        title = f"{table.cases} cases of {table.patients} patients, split {split}"
        draw_trust(table, output / "figures" / "trust.png", title=title)
        if any(case.curves for case in found):
            draw_curves(found, output / "figures" / "trust_curves.png", title=title)
    logger.info("%s\ntrust.csv, trust.json and figures are in %s", format_trust(table), output)
    failures.raise_if_any(ids, output, "judged")
    return table


class _Part:
    """Models of one fold, ready to be judged case by case."""

    def __init__(
        self,
        explainers: Mapping[str, Explainer],
        predictor: Predictor,
        saliency: Saliency,
        labels: LabelTable | None,
    ) -> None:
        self._predictor, self._saliency, self._labels = predictor, saliency, labels
        self._explainers = explainers
        self._shuffled = {name: one.with_shuffled_weights(_SEED) for name, one in explainers.items()}

    def judged(self, case: Case) -> Iterator[TrustCase]:
        """What was measured of each target of a case that is asked about; nothing where nothing was found.

        Raises:
            MedsegError: a target that the case does not have, or a file that cannot be read.
        """
        plan = self._predictor.plan
        volume = read_planned(case, plan)
        prediction = self._predictor.predict_volume(volume, case.id)
        array, restoration = preprocess(volume, plan)
        first = next(iter(self._explainers.values()))
        for aim in aims_of(prediction, self._saliency.targets or targets_of(prediction)[:1]):
            region = None if aim.region is None else region_on_plan(aim.region, restoration, plan)
            truth = true_region(case, volume.geometry, self._labels, plan, aim.output)
            methods = {
                name: Method(
                    _asked(one, aim.output, region),
                    {"all": _asked(self._shuffled[name], aim.output, region)},
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
            )


def true_region(case: Case, geometry: Geometry, labels: LabelTable | None, plan: Plan, output: str) -> Array | None:
    """Where a map should point, ``geometry.shape`` bool: all of the label ``output`` or, of a class, of any label.

    Args:
        geometry: the scan's own grid, or a part of it that may reach beyond.
        labels: of the cohort.

    Returns:
        None where nobody has marked anything.

    Raises:
        ScanError: a mask that cannot be read, or lies on another grid.
    """
    if labels is None or (case.label is None and case.boxes is None):
        return None
    whole = read_geometry(case.images[0], plan.options)
    values = labels.targets.get(output) or tuple(labels.names)
    if case.label is not None:
        mask, _ = read_mask(case.label, whole, labels)
        marked = np.isin(mask, values)
    else:
        found, _ = boxes_of_case(case, whole, labels)
        marked = np.zeros(whole.shape, bool)
        for edges in found.boxes[np.isin(found.labels, values)]:
            marked |= voxels_of(edges, whole.shape)
    lower = np.rint(whole.to_index(geometry.to_world([0] * geometry.dimensions))).astype(int)
    return cut_window(marked[None], [int(at) for at in lower], geometry.shape)[0]


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
