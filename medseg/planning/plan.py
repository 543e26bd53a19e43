"""A Plan says how every case is oriented, cropped, resampled, normalised and cut into patches, and how large the network is.

It is computed once from the training cases, shared by all folds and travels with the weights; preprocessing, training and
prediction obey it and nothing else. It is YAML in which every choice stands with its reason. Nothing here loads pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from medseg.errors import MedsegError
from medseg.planning.anchors import BoxPlan
from medseg.planning.classes import ClassPlan
from medseg.planning.conventions import Conventions, Peak, Side
from medseg.structures import LabelTable
from medseg.volume import Unit, are_axis_codes

FORMAT = 1
Normalisation = Literal["zscore", "zscore_all", "ct", "rescale", "minmax", "none"]
_OPTIONAL = ("boxes", "classes", "conventions")


@dataclass(frozen=True)
class Channel:
    """One input channel: how its values are normalised, and how its series is recognised among a patient's.

    ``zscore``: mean and deviation of the case itself (of its non-zero voxels where the plan crops to them); ``zscore_all``: of
    all voxels that are kept, zeros among them. ``ct``: clip to ``low``…``high``, then ``mean`` and ``std`` of the foreground of
    the training cases. ``rescale``: ``low``…``high`` → 0…1. ``minmax``: the case's own range → 0…1.
    ``match`` is a regular expression over modality and series description, for DICOM input with several channels.
    """

    name: str
    normalisation: Normalisation
    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 0.0
    match: str = ""

    def __post_init__(self) -> None:
        if self.normalisation not in get_args(Normalisation):
            raise MedsegError(
                f"channel {self.name!r}: normalisation {self.normalisation!r}; expected one of {get_args(Normalisation)}"
            )


@dataclass(frozen=True)
class Plan:
    """Every choice that preprocessing, training and prediction share; ``why`` gives the reason of each by its name.

    Lengths are in ``unit`` (mm, or px for pictures without spacing) and shapes in voxels of the plan's grid, along the axes
    of ``orientation`` (``"RAS"`` or other axis codes, or ``"stored"``: as the file has them, the rule for pictures).

    Args:
        features: channels of each stage of a planned network, finest first.
        strides: downsampling into each stage, along each axis; the first is all ones.
        kernel_sizes: convolution kernel of each stage, along each axis.
        blocks: blocks a stage of the encoder (a residual block or a convolution, as the network says).
        image_order, label_order: resampling orders along each axis (0 nearest, 1 linear, 3 cubic).
        mirror_axes: axes along which mirrored copies are as plausible as the original.
        foreground: share of the crops of a batch that are centred on a labelled voxel.
        options: reader choices that change values or grid (SUV, uneven, inversion), so that prediction reads as training did.
        boxes: where a detector looks for lesions; None for other tasks.
        classes: what a classifier needs beside the grid; None for other tasks.
        conventions: what a model from elsewhere does its own way; None for medseg's.
    """

    task: str
    orientation: str
    channels: tuple[Channel, ...]
    labels: LabelTable
    crop: Literal["nonzero", "none"]
    spacing: tuple[float, ...]
    unit: Unit
    image_order: tuple[int, ...]
    label_order: tuple[int, ...]
    patch_size: tuple[int, ...]
    batch_size: int
    features: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    blocks: tuple[int, ...]
    mirror_axes: tuple[int, ...]
    foreground: float
    memory_gb: float
    options: Mapping[str, Any] = field(default_factory=dict)
    boxes: BoxPlan | None = None
    classes: ClassPlan | None = None
    conventions: Conventions | None = None
    why: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        dimensions = len(self.spacing)
        if self.orientation != "stored" and not are_axis_codes(self.orientation):
            raise MedsegError(
                f"plan.orientation {self.orientation!r}: expected stored, or axis codes such as RAS or LPS"
            )
        for name in ("image_order", "label_order", "patch_size", *(["strides", "kernel_sizes"])):
            value = getattr(self, name)
            for row in value if name in ("strides", "kernel_sizes") else (value,):
                if len(row) != dimensions:
                    raise MedsegError(f"plan.{name}: expected {dimensions} numbers an axis each, found {list(row)}")
        stages = len(self.features)
        if {len(self.strides), len(self.kernel_sizes), len(self.blocks)} != {stages}:
            raise MedsegError(
                f"plan: features, strides, kernel_sizes and blocks must have one entry a stage; found {stages}, "
                f"{len(self.strides)}, {len(self.kernel_sizes)}, {len(self.blocks)}"
            )
        bad = [n for n, d in zip(self.patch_size, self.divisor, strict=True) if n < 1 or n % d]
        if bad:
            raise MedsegError(f"plan.patch_size {list(self.patch_size)} must be multiples of {list(self.divisor)}")
        if self.batch_size < 1 or min(self.spacing) <= 0 or not 0 <= self.foreground <= 1:
            raise MedsegError("plan: expected batch_size ≥ 1, spacing > 0 and foreground between 0 and 1")

    @property
    def dimensions(self) -> int:
        return len(self.spacing)

    @property
    def odd_padding(self) -> Side:
        """On which side of a case that is smaller than the patch the odd voxel of padding lies."""
        return "before" if self.conventions is None else self.conventions.odd_padding

    @property
    def peak(self) -> Peak:
        """Where the Gaussian that windows are weighed by has its top."""
        return "middle" if self.conventions is None else self.conventions.peak

    @property
    def scan_channels(self) -> tuple[Channel, ...]:
        """Those that a scan brings: all but the mask, where a classifier sees it as a channel."""
        drawn = self.classes is not None and self.classes.region is not None and self.classes.region.mask_channel
        return self.channels[:-1] if drawn else self.channels

    @property
    def divisor(self) -> tuple[int, ...]:
        """What the size of a planned network's input must be a multiple of, along each axis."""
        product = [1] * self.dimensions
        for stride in self.strides:
            product = [p * s for p, s in zip(product, stride, strict=True)]
        return tuple(product)

    def changed(self, why: str = "as configured", **values: Any) -> Plan:
        """The plan with other values, whose reason is ``why``. Raises MedsegError for a name that a plan does not have."""
        known = {f.name for f in fields(self)} - {"why"}
        unknown = sorted(set(values) - known)
        if unknown:
            raise MedsegError(f"plan has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        mine = _to_plain(self)
        plain = mine | {name: _plain(value) for name, value in values.items()}
        for part in _OPTIONAL:
            if isinstance(values.get(part), Mapping):  # some of its values
                plain[part] = {**mine.get(part, {}), **plain[part]}
        return replace(_from_plain(plain), why={**self.why, **dict.fromkeys(values, why)})

    def preprocessing_key(self) -> str:
        """A hash of what a preprocessed case depends on: changing the network or the patch keeps the cache."""
        names = (
            "orientation",
            "channels",
            "labels",
            "crop",
            "spacing",
            "unit",
            "image_order",
            "label_order",
            "options",
        )
        plain = _to_plain(self)
        chosen = {name: plain[name] for name in names}
        if self.boxes is not None:
            chosen["lesions"] = plain["boxes"]["rule"]
        if self.classes is not None:  # what is called a class changes no pixel
            del chosen["labels"]
            chosen["region"] = plain["classes"]["region"]
        if self.conventions is not None:
            chosen["conventions"] = plain["conventions"]
        text = json.dumps(chosen, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """The plan as people read it: ``name: {value, why}``, where ``why`` is left out if there is none."""
        head = "# How every case is brought onto one grid and how large the network is. Edit a value, or set plan.<name>=… .\n"
        body: dict[str, Any] = {"format": FORMAT}
        for name, value in _to_plain(self).items():
            body[name] = {"value": value} | ({"why": self.why[name]} if name in self.why else {})
        return head + yaml.dump(body, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=118)

    @classmethod
    def from_yaml(cls, text: str, origin: str = "plan.yaml") -> Plan:
        """Read what `to_yaml` wrote. Raises MedsegError that names ``origin`` and the key at fault."""
        try:
            body = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise MedsegError(f"{origin}: not readable as YAML: {error}") from None
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            found = body.get("format") if isinstance(body, dict) else type(body).__name__
            raise MedsegError(
                f"{origin}: expected a plan of format {FORMAT}, found {found}; make it again with medseg plan"
            )
        entries = {k: v for k, v in body.items() if k != "format"}
        expected = {f.name for f in fields(cls)} - {"why", *_OPTIONAL}
        found = set(entries) - set(_OPTIONAL)
        if found != expected or not all(isinstance(v, dict) and "value" in v for v in entries.values()):
            odd = sorted(found ^ expected)
            raise MedsegError(f"{origin}: expected {{value, why}} under each of {sorted(expected)}; look at {odd}")
        try:
            plan = _from_plain({name: entry["value"] for name, entry in entries.items()})
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise MedsegError(f"{origin}: a value has the wrong type: {error}") from None
        return replace(plan, why={name: str(entry["why"]) for name, entry in entries.items() if "why" in entry})

    @classmethod
    def load(cls, path: Path) -> Plan:
        try:
            return cls.from_yaml(path.read_text(encoding="utf-8"), str(path))
        except FileNotFoundError:
            raise MedsegError(f"{path}: no plan there; make one with medseg plan") from None


class _Dumper(yaml.SafeDumper):
    """Block style for mappings, one line for lists of numbers."""


_Dumper.add_representer(
    list,
    lambda dumper, value: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", value, flow_style=not any(isinstance(v, dict) for v in value)
    ),
)


def _plain(value: Any) -> Any:
    """Tuples → lists, values → mappings: what YAML and JSON hold."""
    if isinstance(value, LabelTable):
        return {
            "names": dict(value.names),
            "ignore": value.ignore,
            "regions": {name: list(values) for name, values in value.regions.items()},
            "paint": list(value.paint),
        }
    if isinstance(value, (BoxPlan, ClassPlan, Conventions)):
        return value.to_plain()
    if isinstance(value, Channel):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value


def _to_plain(plan: Plan) -> dict[str, Any]:
    """What YAML holds, without ``why``, and without what only other tasks or models from elsewhere need."""
    return {
        f.name: _plain(getattr(plan, f.name))
        for f in fields(plan)
        if f.name != "why" and not (f.name in _OPTIONAL and getattr(plan, f.name) is None)
    }


def _from_plain(values: Mapping[str, Any]) -> Plan:
    def ints(row: Any) -> tuple[int, ...]:
        return tuple(int(v) for v in row)

    v = dict(values)
    return Plan(
        task=str(v["task"]),
        orientation=v["orientation"],
        channels=tuple(Channel(**channel) for channel in v["channels"]),
        labels=LabelTable(
            v["labels"]["names"], v["labels"]["ignore"], v["labels"]["regions"], tuple(v["labels"]["paint"])
        ),
        crop=v["crop"],
        spacing=tuple(float(s) for s in v["spacing"]),
        unit=v["unit"],
        image_order=ints(v["image_order"]),
        label_order=ints(v["label_order"]),
        patch_size=ints(v["patch_size"]),
        batch_size=int(v["batch_size"]),
        features=ints(v["features"]),
        strides=tuple(ints(row) for row in v["strides"]),
        kernel_sizes=tuple(ints(row) for row in v["kernel_sizes"]),
        blocks=ints(v["blocks"]),
        mirror_axes=ints(v["mirror_axes"]),
        foreground=float(v["foreground"]),
        memory_gb=float(v["memory_gb"]),
        options=dict(v["options"]),
        boxes=None if v.get("boxes") is None else BoxPlan.from_plain(v["boxes"]),
        classes=None if v.get("classes") is None else ClassPlan.from_plain(v["classes"]),
        conventions=None if v.get("conventions") is None else Conventions.from_plain(v["conventions"]),
    )
