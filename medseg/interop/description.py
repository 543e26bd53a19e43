"""What an exported graph says about itself: how a scan becomes its input, and what its outputs mean. Knows no file format.

A graph that left medseg carries these entries in its metadata, so that it can be used, and told apart, without its model folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from medseg.interop.graph import INPUT
from medseg.model import Model
from medseg.planning.plan import Plan

PREFIX = "medseg."
_OF_TASK = {
    "segmentation": "logits (B, K, *S) of the channels in medseg.outputs; {merged}. Windows weigh "
    "as a Gaussian of sigma = size / 8, and the result is resampled to the grid of the scan; {decode}",
    "detection": "scores.N (B, anchors x classes, *S) are logits of the classes in medseg.outputs on level N; deltas.N or "
    "faces.N (B, anchors x 2 x D, *S) are codes of boxes, anchors in medseg.plan; mask, where there is one, as in segmentation",
    "classification": "logits (B, K) of the classes in medseg.outputs; {activation}. Windows are pooled as the plan says",
}


def description_of(model: Model) -> dict[str, str]:
    """Names (with `PREFIX`) and texts; everything that is not prose is YAML (the plan) or JSON."""
    plan = model.plan
    task = str(model.task["name"])
    entries = {
        "format": "1",
        "version": version("medseg"),
        "sha256": model.sha256,
        "task": _json(model.task),
        "network": _json(model.network),
        "labels": _json({str(value): name for value, name in plan.labels.names.items()}),
        "outputs": _json(_outputs(plan, task)),
        "plan": plan.to_yaml(),
        "working_point": _json(model.working_point),
        "postprocessing": _json(model.postprocessing),
        "preprocess": _preprocess(plan),
        "postprocess": _postprocess(plan, task),
    }
    return {f"{PREFIX}{name}": text for name, text in entries.items()}


def _outputs(plan: Plan, task: str) -> list[str]:
    return list(plan.labels.outputs) if task == "segmentation" else list(plan.labels.names.values())


def _preprocess(plan: Plan) -> str:
    steps = [
        f"{INPUT}: float32 (B, {len(plan.channels)}, {', '.join(map(str, plan.patch_size))}), one window of the scan",
        f"channels in this order: {', '.join(channel.name for channel in plan.channels)}",
        f"axes turned to {plan.orientation}",
    ]
    if plan.crop == "nonzero":
        steps.append("cropped to the box of what is not zero")
    each = "; ".join(f"{channel.name} by {channel.normalisation}" for channel in plan.channels)
    steps.append(f"normalised, {each}, with the figures in medseg.plan")
    if plan.unit == "mm":
        spacing = " x ".join(f"{value:.6g}" for value in plan.spacing)
        steps.append(f"resampled to {spacing} mm, spline orders {list(plan.image_order)}")
    steps.append("what lies beyond the scan is 0")
    if plan.conventions is not None:
        steps.append("with what medseg.plan says under conventions")
    return "; ".join(steps)


def _postprocess(plan: Plan, task: str) -> str:
    exclusive = plan.labels.exclusive if plan.classes is None else not plan.classes.multilabel
    activation = "softmax over K" if exclusive else "sigmoid of each channel"
    logits = plan.conventions is not None and plan.conventions.averaged == "logits"
    return _OF_TASK[task].format(
        activation=activation,
        merged=f"windows are averaged, then {activation}" if logits else f"{activation}, then windows are averaged",
        decode="the channel with the largest probability gives the label"
        if exclusive
        else f"regions above 0.5 are painted one after another with {list(plan.labels.paint)}",
    )


def _json(value: Any) -> str:
    """Mappings of any kind and numbers of numpy are written as JSON's own."""
    return json.dumps(value, default=lambda v: dict(v) if isinstance(v, Mapping) else v.item(), ensure_ascii=False)
