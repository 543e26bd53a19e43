"""What the user sets of a plan, checked before it is used and once more when the plan is whole.

Owns the forms that values may have and the contradictions that a Plan alone cannot know. Derives nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from medseg.errors import MedsegError
from medseg.planning.fingerprint import Fingerprint
from medseg.planning.plan import Plan


def checked_overrides(overrides: Mapping[str, Any], fingerprint: Fingerprint) -> dict[str, Any]:
    """The user's values in a Plan's types; what is None is left to the planner.

    Raises:
        MedsegError: a name that a plan does not have, a value of the wrong form, or one that the data contradict.
    """
    known = {f.name for f in fields(Plan)} - {"why"}
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise MedsegError(f"plan has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    given = {name: value for name, value in overrides.items() if value is not None}
    for name, (cast, axes, least) in _ROWS.items():
        if name in given:
            given[name] = _row(f"plan.{name}", given[name], cast, fingerprint.dimensions if axes else None, least)
    for name in ("strides", "kernel_sizes"):
        if name in given:
            stages = _row(f"plan.{name}", given[name], lambda _, row: row, None, 1)
            given[name] = tuple(_row(f"plan.{name}", row, whole, fingerprint.dimensions, 1) for row in stages)
    if "batch_size" in given:
        given["batch_size"] = whole("plan.batch_size", given["batch_size"])
    if "memory_gb" in given:
        given["memory_gb"] = positive("plan.memory_gb", given["memory_gb"])
    for name, fact in (("unit", fingerprint.unit), ("options", dict(fingerprint.options))):
        if given.get(name, fact) != fact:
            raise MedsegError(f"plan.{name}={given[name]!r}: the cases were measured with {fact!r}; leave it out")
    if given.get("crop", "none") not in ("none", "nonzero"):
        raise MedsegError(f"plan.crop={given['crop']!r}: expected nonzero or none")
    return given


def check_whole(plan: Plan, divisor: Sequence[int], fingerprint: Fingerprint) -> None:
    """What a plan with the user's values in it may still get wrong.

    Args:
        divisor: of the network's input size, along each axis.

    Raises:
        MedsegError: values that contradict each other, the network or the data.
    """
    axes = range(plan.dimensions)
    if any(n % d for n, d in zip(plan.patch_size, divisor, strict=True)):
        raise MedsegError(f"plan.patch_size={list(plan.patch_size)}: this network needs multiples of {list(divisor)}")
    if any(stride != 1 for stride in plan.strides[0]):
        raise MedsegError(
            f"plan.strides: the first stage keeps the resolution; expected ones, found {list(plan.strides[0])}"
        )
    if any(kernel % 2 == 0 for row in plan.kernel_sizes for kernel in row):
        raise MedsegError(f"plan.kernel_sizes: expected odd numbers, found {[list(row) for row in plan.kernel_sizes]}")
    if not set(plan.mirror_axes) <= set(axes) or len(set(plan.mirror_axes)) < len(plan.mirror_axes):
        raise MedsegError(
            f"plan.mirror_axes={list(plan.mirror_axes)}: expected some of the axes {list(axes)}, each once"
        )
    if not {*plan.image_order, *plan.label_order} <= {0, 1, 3}:
        raise MedsegError(
            "plan.image_order, plan.label_order: expected 0 (nearest), 1 (linear) or 3 (cubic) for each axis"
        )
    if len(plan.channels) != len(fingerprint.channels):
        raise MedsegError(f"plan.channels: the images have {len(fingerprint.channels)}, found {len(plan.channels)}")
    for channel in plan.channels:
        if channel.normalisation in ("ct", "rescale") and not (channel.low < channel.high and channel.std > 0):
            raise MedsegError(
                f"plan.channels: {channel.name!r} is normalised by {channel.normalisation}, which needs low < high and std > 0; "
                f"found {channel.low}, {channel.high} and {channel.std}"
            )


def whole(name: str, value: Any) -> int:
    """``value`` as an int. Raises MedsegError unless it is a whole number."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value != int(value)
    ):
        raise MedsegError(f"{name}: expected whole numbers, found {value!r}")
    return int(value)


def positive(name: str, value: Any) -> float:
    """``value`` as a float. Raises MedsegError unless it is a number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise MedsegError(f"{name}: expected positive numbers, found {value!r}")
    return float(value)


_ROWS: Mapping[str, tuple[Callable[[str, Any], Any], bool, int]] = {
    # name: what an entry is, whether there is one an axis, the least entry
    "spacing": (positive, True, 0),
    "patch_size": (whole, True, 1),
    "image_order": (whole, True, 0),
    "label_order": (whole, True, 0),
    "features": (whole, False, 1),
    "blocks": (whole, False, 1),
    "mirror_axes": (whole, False, 0),
}


def _row(name: str, value: Any, cast: Callable[[str, Any], Any], length: int | None, least: int) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)) or (length is not None and len(value) != length):
        expected = f"a list of {length} numbers, one an axis" if length else "a list"
        raise MedsegError(f"{name}: expected {expected}, found {value!r}")
    if not value and least:
        raise MedsegError(f"{name}: expected one entry a stage, found none")
    entries = tuple(cast(name, entry) for entry in value)
    if any(isinstance(entry, (int, float)) and entry < least for entry in entries):
        raise MedsegError(f"{name}: expected numbers from {least} up, found {list(entries)}")
    return entries
