"""nnU-Net's plans as a Plan of medseg's: what it says is read by an allow-list, and what it cannot say here is named.

nnU-Net reads arrays (k, j, i), turns them by ``transpose_forward`` and never reorients them. Here scans stay (i, j, k) and all
that is said of axes is turned instead. A 2D network of volumes becomes a 3D one whose kernels and patches are one voxel thick,
which computes the same. Every fault is listed, not only the first. Nothing here knows weights or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from medseg.errors import MedsegError, all_at_once
from medseg.interop.nnunet_network import Network, network_of
from medseg.planning.conventions import Conventions
from medseg.planning.plan import Channel, Normalisation, Plan
from medseg.scans.labels import label_table
from medseg.structures import LabelTable

_READERS: Mapping[str, Literal["stored", "RAS"]] = {
    "SimpleITKIO": "stored",
    "SimpleITKIOWithReorient": "RAS",
    "NibabelIO": "stored",
    "NibabelIOWithReorient": "RAS",
    "NaturalImage2DIO": "stored",
}
_PICTURES = "NaturalImage2DIO"
_NORMALISATIONS: Mapping[str, Normalisation] = {
    "ZScoreNormalization": "zscore",
    "CTNormalization": "ct",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "minmax",
    "RGBTo01Normalization": "rescale",
}
_RESAMPLING = "resample_data_or_seg_to_shape"
ANISOTROPIC = 3.0
"""nnU-Net's ``ANISO_THRESHOLD``."""


@dataclass(frozen=True)
class Axes:
    """How nnU-Net's axes become medseg's.

    Args:
        order: medseg's axis m is axis ``order[m]`` of nnU-Net's network, after ``flat`` has given it three.
        flat: whether a 2D network is brought to volumes.
    """

    order: tuple[int, ...]
    flat: bool

    def row(self, values: Sequence[Any], thin: Any) -> tuple[Any, ...]:
        """A number an axis along medseg's axes; ``thin`` is that of the slices of a flat network."""
        full = [thin, *values] if self.flat else list(values)
        return tuple(full[axis] for axis in self.order)


@dataclass(frozen=True)
class Described:
    """What plans and ``dataset.json`` say of a model: a plan, a network, and the way of its weights."""

    plan: Plan
    network: Network
    axes: Axes


def described(
    plans: Mapping[str, Any], dataset: Mapping[str, Any], configuration: str, mirror_axes: Sequence[int] | None
) -> Described:
    """The plan of one configuration.

    Args:
        plans, dataset: ``plans.json`` and ``dataset.json``.
        configuration: ``"3d_fullres"``, ``"2d"`` …
        mirror_axes: ``inference_allowed_mirroring_axes`` of the checkpoint.

    Raises:
        MedsegError: lists all that is not supported or not there.
    """
    chosen = resolved(plans, configuration)
    faults: list[str] = []
    lacking = [f"plans.json lacks {key!r}" for key in ("transpose_forward", "image_reader_writer") if key not in plans]
    lacking += [f"configuration {configuration!r} lacks {key!r}" for key in _NEEDED if key not in chosen]
    lacking += ["dataset.json lacks 'labels'"] * ("labels" not in dataset)
    if lacking:
        raise all_at_once("nnU-Net: not a model of nnU-Net 2 as it is known here", lacking)
    if chosen.get("previous_stage") is not None:
        faults.append(
            f"configuration {configuration!r} is a cascade, which needs the masks of {chosen['previous_stage']!r}"
        )
    reader = str(plans["image_reader_writer"])
    if reader not in _READERS:
        faults.append(f"image_reader_writer {reader}; supported are {', '.join(_READERS)}")
    network = network_of(chosen, faults)
    faults += _resampling_faults(chosen)
    channels = _channels(plans, dataset, chosen, faults)
    labels = _labels(dataset, faults)
    forward = [int(axis) for axis in plans["transpose_forward"]]
    if sorted(forward) != [0, 1, 2]:
        faults.append(f"transpose_forward {forward}; expected an order of three axes")
    if faults or network is None or labels is None:
        raise all_at_once(f"nnU-Net: configuration {configuration!r} cannot be imported", faults)
    axes = _axes(forward, network.dimensions, pictures=reader == _PICTURES)
    median = [float(s) for s in plans.get("original_median_spacing_after_transp", (1, 1, 1))]
    mirrored = [int(a) + axes.flat for a in mirror_axes or ()]
    slices = axes.order.index(0) if axes.flat else None
    count = len(axes.order)
    plan = Plan(
        task="segmentation",
        orientation=_READERS[reader],
        channels=tuple(channels),
        labels=labels,
        crop="nonzero",
        spacing=axes.row([float(s) for s in chosen["spacing"]], median[0]),
        unit="px" if reader == _PICTURES else "mm",
        image_order=(3,) * count,
        label_order=(1,) * count,
        patch_size=axes.row([int(n) for n in chosen["patch_size"]], 1),
        batch_size=int(chosen.get("batch_size", 2)),
        features=network.features,
        strides=tuple(axes.row(row, 1) for row in network.strides),
        kernel_sizes=tuple(axes.row(row, 1) for row in network.kernel_sizes),
        blocks=network.blocks,
        mirror_axes=tuple(sorted(axes.order.index(axis) for axis in mirrored)),
        foreground=0.33,
        memory_gb=8.0,
        conventions=Conventions("logits", "after", "after", ANISOTROPIC, () if slices is None else (slices,), True),
        why=dict.fromkeys(("orientation", "spacing", "patch_size", "conventions"), "as in nnU-Net's plans"),
    )
    return Described(plan, network, axes)


_NEEDED = ("spacing", "patch_size", "normalization_schemes", "use_mask_for_norm")


def resolved(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """A configuration with what it inherits.

    Raises:
        MedsegError: it is not among the plans, or inherits from itself.
    """
    configurations = plans.get("configurations")
    if not isinstance(configurations, Mapping):
        raise MedsegError(
            "nnU-Net: plans.json has no 'configurations'; expected plans of nnU-Net 2 (models of nnU-Net 1 cannot be imported)"
        )
    found: dict[str, Any] = {}
    seen: list[str] = []
    name: Any = configuration
    while name is not None:
        if name in seen or name not in configurations:
            raise MedsegError(
                f"nnU-Net: plans.json has no usable configuration {name!r}; it has {', '.join(configurations)}"
            )
        seen.append(name)
        found = {**configurations[name], **found}
        name = configurations[name].get("inherits_from")
    return found


def _axes(forward: Sequence[int], dimensions: int, *, pictures: bool) -> Axes:
    """Axis a of nnU-Net's network lies along the file's axis ``2 − forward[a]``."""
    order = tuple(forward.index(2 - axis) for axis in range(3))
    if dimensions == 3:
        return Axes(order, flat=False)
    if pictures:  # (1, rows, columns): the first axis is none of the picture's
        return Axes(tuple(axis - 1 for axis in order if axis > 0), flat=False)
    return Axes(order, flat=True)


def _resampling_faults(chosen: Mapping[str, Any]) -> list[str]:
    wanted = {
        "data": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "probabilities": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
    }
    faults = []
    for part, expected in wanted.items():
        name = chosen.get(f"resampling_fn_{part}", _RESAMPLING)
        options = {**expected, **chosen.get(f"resampling_fn_{part}_kwargs", {})}
        if name != _RESAMPLING or options != expected:
            faults.append(f"resampling of {part} by {name} {options}; supported is {_RESAMPLING} {expected}")
    return faults


def _channels(
    plans: Mapping[str, Any], dataset: Mapping[str, Any], chosen: Mapping[str, Any], faults: list[str]
) -> list[Channel]:
    names = dataset.get("channel_names", dataset.get("modality")) or {}
    named = [str(names[key]) for key in sorted(names, key=int)] if isinstance(names, Mapping) else list(map(str, names))
    schemes, masked = list(chosen["normalization_schemes"]), list(chosen["use_mask_for_norm"])
    if not named or len({len(named), len(schemes), len(masked)}) != 1:
        faults.append(
            f"channels: {len(named)} names, {len(schemes)} normalisations and {len(masked)} of use_mask_for_norm"
        )
        return []
    properties = plans.get("foreground_intensity_properties_per_channel") or plans.get(
        "foreground_intensity_properties_by_modality", {}
    )
    channels = []
    for number, (name, scheme, in_mask) in enumerate(zip(named, schemes, masked, strict=True)):
        kind = _NORMALISATIONS.get(scheme)
        if kind is None:
            faults.append(f"channel {name!r}: normalisation {scheme}; supported are {', '.join(_NORMALISATIONS)}")
            continue
        values: dict[str, Any] = {}
        if kind == "ct":
            found = properties.get(str(number), {})
            keys = {"mean": "mean", "std": "std", "low": "percentile_00_5", "high": "percentile_99_5"}
            if not set(keys.values()) <= set(found):
                faults.append(f"channel {name!r}: CTNormalization needs {', '.join(keys.values())} in plans.json")
                continue
            values = {mine: float(found[theirs]) for mine, theirs in keys.items()}
        elif kind == "rescale":
            values = {"low": 0.0, "high": 255.0}
        channels.append(Channel(name, "zscore_all" if kind == "zscore" and not in_mask else kind, **values))
    return channels


def _labels(dataset: Mapping[str, Any], faults: list[str]) -> LabelTable | None:
    order = dataset.get("regions_class_order")
    try:
        several = any(isinstance(v, list) and len(v) > 1 for v in dataset["labels"].values())
        return label_table(dataset["labels"], paint=[int(v) for v in order] if several and order else None)
    except (MedsegError, TypeError, ValueError, AttributeError) as error:
        faults.append(f"dataset.json: {error}")
        return None
