"""``medseg plan``: measure a data set once, derive the plan from it, and write both down. Knows no configuration system."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg.errors import MedsegError
from medseg.files import write_text
from medseg.networks import divisor_of, encoder_of
from medseg.planning.annotated import annotated_cohort
from medseg.planning.classification import (
    CLASSIFICATION,
    class_cohort,
    class_labels,
    plan_classes,
    seen_by_classifier,
    with_classes,
)
from medseg.planning.detection import with_boxes
from medseg.planning.fingerprint import Fingerprint, content_key, fingerprint
from medseg.planning.plan import Plan
from medseg.planning.planner import make_plan
from medseg.structures import Cohort, LabelTable, LesionRule

logger = logging.getLogger(__name__)

PLANNER = ("file", "memory_gb", "orientation", "batch_size", "width", "normalisation", "match")


def plan(
    cohort: Cohort,
    *,
    planner: Mapping[str, Any],
    overrides: Mapping[str, Any],
    out: Path,
    network: Mapping[str, Any],
    task: Mapping[str, Any] | None = None,
    workers: int = 2,
    trust: Sequence[str] = (),
    progress: bool = True,
) -> Plan:
    """Write ``out`` (a YAML file, or the folder of a ``plan.yaml``), and ``fingerprint.json`` beside it.

    The fingerprint is measured again only if a file, a label or a reader option changed. The same data give the same plan.

    Args:
        planner: options of `make_plan`, those of ``PLANNER``; ``file`` is a plan to take, edited perhaps, instead of measuring.
        overrides: values of the plan that the user sets.
        network: spec of the builder; its ``divisor`` and ``encoder`` (``plain`` or ``residual``) are obeyed where it has them.
        task: spec of the task; of a detector also how a mask becomes lesions (``instances``, ``smallest_mm3``).
        trust: foreign builders that the user vouches for.

    Raises:
        MedsegError: cases that cannot be read, options that do not exist or contradict each other.
    """
    task = task or {"name": "segmentation"}
    (cohort, labels), rule = usable_cohort(cohort, task), lesion_rule(task)
    unknown = sorted(set(planner) - set(PLANNER))
    if unknown:
        raise MedsegError(f"plan: the planner has no option {', '.join(unknown)}; it has {', '.join(PLANNER)}")
    path = out if out.suffix in (".yaml", ".yml") else out / "plan.yaml"
    if planner.get("file") is not None:
        made = _given(Path(planner["file"]), cohort, labels, overrides, task)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, made.to_yaml())
        logger.info("%s", describe(made))
        return made
    divisor, encoder = divisor_of(network, trust), encoder_of(network, trust)
    path.parent.mkdir(parents=True, exist_ok=True)
    options, kept = overrides.get("options") or {}, path.with_name("fingerprint.json")
    measured = _fingerprint(cohort, options, kept, lesions=rule, workers=workers, progress=progress)
    chosen = {name: value for name, value in planner.items() if value is not None}
    turned = overrides.get("orientation") or chosen.get("orientation")
    classes = plan_classes(cohort, measured, task, turned) if task["name"] == CLASSIFICATION else None
    made = make_plan(
        measured if classes is None else seen_by_classifier(measured, classes.region, turned),
        cohort.channels,
        labels,
        task=str(task["name"]),
        divisor=divisor,
        encoder=encoder,
        whole_cases=classes is not None,
        overrides={name: value for name, value in overrides.items() if name not in ("boxes", "classes")},
        **chosen,
    )
    if classes is not None:
        made = with_classes(made, classes)
    elif rule is not None:
        masks = all(case.label is not None and case.boxes is None for case in cohort.cases)
        made = with_boxes(made, measured, rule, masks=masks, overrides=overrides.get("boxes"))
    write_text(path, made.to_yaml())
    logger.info("%s", describe(made))
    logger.info("the plan is in %s", path)
    return made


def usable_cohort(cohort: Cohort, task: Mapping[str, Any]) -> tuple[Cohort, LabelTable]:
    """The cases that the task can learn from or be scored on, and what it says of them: labels, or classes.

    Raises:
        MedsegError: there are none, as nobody says what the images show.
    """
    if task["name"] == CLASSIFICATION:
        cohort = class_cohort(cohort, task)
        return cohort, class_labels(cohort.classes)
    return annotated_cohort(cohort, str(task["name"]))


def lesion_rule(task: Mapping[str, Any]) -> LesionRule | None:
    """How a mask becomes lesions, as the spec of a detector (or of a classifier of regions) says; None for other tasks."""
    if task["name"] == CLASSIFICATION:
        return LesionRule() if task.get("region") else None
    if task["name"] != "detection":
        return None
    return LesionRule(bool(task.get("instances", False)), float(task.get("smallest_mm3", 0.0)))


def _given(
    file: Path, cohort: Cohort, labels: LabelTable, overrides: Mapping[str, Any], task: Mapping[str, Any]
) -> Plan:
    """A plan that the user brings, with what the command line changes. Raises MedsegError where the data is not its kind."""
    made = Plan.load(file)
    name = str(task["name"])
    if made.task != name:
        raise MedsegError(f"{file}: is a plan for {made.task}, not for {name}. Make one with medseg plan task={name}")
    if made.labels != labels or len(made.scan_channels) != len(cohort.channels):
        raise MedsegError(
            f"{file}: is a plan for labels {dict(made.labels.names)} and {len(made.scan_channels)} channels; the data set has "
            f"{dict(labels.names)} and {len(cohort.channels)}. Make one with medseg plan"
        )
    if made.classes is not None:
        region = made.classes.region
        holds = {
            "region": region is not None, "multilabel": made.classes.multilabel,
            "mask_channel": region is not None and region.mask_channel,
        }  # fmt: skip
        asked = {option: bool(task.get(option)) for option in holds}
        odd = [option for option in asked if asked[option] != holds[option]]
        if odd:
            raise MedsegError(
                f"{file}: was made with another task.{' and task.'.join(odd)}; set it as there, or make a plan with medseg plan"
            )
    values = {name: value for name, value in overrides.items() if value is not None}
    return made.changed(**values) if values else made


def describe(made: Plan) -> str:
    """The plan in a few lines, as a person wants to see it first."""
    lines = [
        f"grid       {_by(made.spacing)} {made.unit}, {made.orientation}; crop {made.crop}",
        f"channels   {', '.join(f'{channel.name} ({channel.normalisation})' for channel in made.channels)}",
        f"labels     {', '.join(made.labels.targets)}",
        f"patch      {_by(made.patch_size)}, {made.batch_size} a batch",
        f"network    {len(made.features)} stages of {', '.join(map(str, made.features))} features, divisor {_by(made.divisor)}",
    ]
    if made.classes is not None:
        shares = zip(made.labels.names.values(), made.classes.shares, strict=True)
        lines[2] = f"classes    {', '.join(f'{name} {share:.0%}' for name, share in shares)}"
        if made.classes.region is not None:
            lines.append(f"region     {_by(made.classes.region.field)} {made.unit} around what the mask marks")
    if made.boxes is not None:
        anchors = "; ".join(
            f"level {level}: {', '.join(map(_by, sizes))}"
            for level, sizes in zip(made.boxes.levels, made.boxes.anchors, strict=True)
        )
        lines.append(f"anchors    {anchors}; they reach {made.boxes.reach:.1%} of the lesions")
    return "\n".join([f"plan for {made.task}", *(f"  {line}" for line in lines)])


def _fingerprint(cohort: Cohort, options: Mapping[str, Any], path: Path, **how: Any) -> Fingerprint:
    """What was measured before, if it was of the same content; else measure and keep it."""
    key = content_key(cohort, options, **how)
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return Fingerprint.from_json(json.dumps(kept["fingerprint"]), str(path))
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError, MedsegError):
        logger.info("%s is not readable and is made again", path)
    measured = fingerprint(cohort, options, **how)
    write_text(path, f'{{"key": "{key}",\n"fingerprint": {measured.to_json()}}}\n')
    return measured


def _by(values: Sequence[float]) -> str:
    return "×".join(f"{value:g}" for value in values)
