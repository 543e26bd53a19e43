"""Which of MONAI's networks medseg has, and what its arguments are called on either side; no other class is ever imported."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medseg.networks import resolve_builder
from medseg.planning.plan import Plan

_OWN = "medseg.networks.monai_nets."


@dataclass(frozen=True)
class Known:
    """A network of MONAI that medseg builds.

    Args:
        module: of MONAI, in which the class lies.
        builder: medseg's.
        options: MONAI's argument → the builder's option of the same meaning.
        shape: MONAI's arguments → features and strides of the stages, the finest first, one number or row a stage.
        ignored: arguments that change nothing of what is computed (or are of older versions).
    """

    module: str
    builder: str
    options: Mapping[str, str]
    shape: Callable[[Mapping[str, Any]], tuple[Sequence[int], Sequence[Any], Sequence[Any]]]
    ignored: tuple[str, ...] = ()


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _of_stages(a: Mapping[str, Any]) -> tuple[Sequence[int], Sequence[Any], Sequence[Any]]:
    return a["channels"], [1, *a["strides"]], [a["kernel_size"]] * len(a["channels"])


def _of_dynunet(a: Mapping[str, Any]) -> tuple[Sequence[int], Sequence[Any], Sequence[Any]]:
    widest = 320 if a["spatial_dims"] == 3 else 512  # what MONAI takes where no filters are said
    features = a["filters"] or [min(2 ** (5 + i), widest) for i in range(len(a["strides"]))]
    return features, a["strides"], a["kernel_size"]


def _of_segresnet(a: Mapping[str, Any]) -> tuple[Sequence[int], Sequence[Any], Sequence[Any]]:
    stages = len(a["blocks_down"])
    return [a["init_filters"] * 2**i for i in range(stages)], [1] + [2] * (stages - 1), [3] * stages


def _of_swin(a: Mapping[str, Any]) -> tuple[Sequence[int], Sequence[Any], Sequence[Any]]:
    return [a["feature_size"] * 2 ** max(i - 1, 0) for i in range(6)], [1] + [2] * 5, [3] * 6


NETWORKS: Mapping[str, Known] = {
    "UNet": Known(
        "monai.networks.nets.unet",
        _OWN + "unet",
        _same("kernel_size", "num_res_units", "act", "norm", "dropout"),
        _of_stages,
    ),
    "AttentionUnet": Known(
        "monai.networks.nets.attentionunet", _OWN + "attention_unet", _same("kernel_size", "dropout"), _of_stages
    ),
    "DynUNet": Known(
        "monai.networks.nets.dynunet",
        _OWN + "dynunet",
        _same("res_block", "trans_bias", "dropout", "norm_name", "act_name"),
        _of_dynunet,
        ("deep_supervision", "deep_supr_num"),
    ),
    "SegResNet": Known(
        "monai.networks.nets.segresnet",
        _OWN + "segresnet",
        {**_same("init_filters", "blocks_down", "blocks_up", "num_groups", "upsample_mode"), "dropout_prob": "dropout"},
        _of_segresnet,
    ),
    "SwinUNETR": Known(
        "monai.networks.nets.swin_unetr",
        _OWN + "swin_unetr",
        _same(
            "feature_size", "depths", "num_heads", "window_size", "drop_rate", "attn_drop_rate", "dropout_path_rate",
            "use_checkpoint", "use_v2",
        ),
        _of_swin,
        ("img_size",),
    ),
}  # fmt: skip
_STRUCTURE = (
    "spatial_dims", "in_channels", "out_channels", "channels", "strides", "filters", "kernel_size", "upsample_kernel_size",
    "up_kernel_size",
)  # fmt: skip


@dataclass(frozen=True)
class BundleNetwork:
    """A network as a plan and a spec of medseg's say it; rows are one number an axis."""

    spec: dict[str, Any]
    dimensions: int
    in_channels: int
    out_channels: int
    features: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]


def bundle_network(definition: Mapping[str, Any], faults: list[str]) -> BundleNetwork | None:
    """The network that ``{"_target_": "UNet", …}`` names; what is not supported is added to ``faults``, and None returned."""
    target = str(definition.get("_target_"))
    name = target.rpartition(".")[2]
    if name not in NETWORKS or (target != name and not target.startswith("monai.networks.nets.")):
        faults.append(f"network {target}; supported are {', '.join(NETWORKS)} of monai.networks.nets")
        return None
    known, before = NETWORKS[name], len(faults)
    defaults = default_arguments(name)
    given = {str(k): v for k, v in definition.items() if not str(k).startswith("_")}
    unknown = [key for key in given if key not in defaults and key not in known.ignored]
    faults += [f"network {name}: there is no argument {key}" for key in unknown]
    arguments = {**defaults, **given}
    empty = inspect.Parameter.empty
    lacking = [k for k, v in arguments.items() if v is empty or (v is None and defaults.get(k) is not None)]
    faults += [f"network {name}: {key} is not given, or not as a plain value" for key in lacking]
    for key, value in given.items():
        taken = key in known.options or key in _STRUCTURE or key in known.ignored
        if not taken and key in defaults and not _alike(value, defaults[key]):
            faults.append(f"network {name}: {key}={value!r}; supported is {defaults[key]!r}")
    if len(faults) > before:
        return None
    try:
        dimensions = int(arguments["spatial_dims"])
        features, strides, kernels = known.shape(arguments)
        rows = [tuple(tuple(_row(row, dimensions)) for row in values) for values in (strides, kernels)]
        wanted: Any = arguments.get("kernel_size")
        up: Any = arguments.get("up_kernel_size", wanted)
        if name == "DynUNet":
            wanted, up = list(rows[0][1:]), [tuple(_row(row, dimensions)) for row in arguments["upsample_kernel_size"]]
        if up != wanted:
            faults.append(f"network {name}: kernels {up} on the way up; supported is {wanted}")
            return None
        options = {mine: arguments[key] for key, mine in known.options.items()}
        if options.get("dropout", 0.0) is None:
            options["dropout"] = 0.0
        return BundleNetwork(
            {"_target_": known.builder, **{key: _plain(value) for key, value in options.items()}},
            dimensions,
            int(arguments["in_channels"]),
            int(arguments["out_channels"]),
            tuple(int(f) for f in features),
            rows[0],
            rows[1],
        )
    except (TypeError, ValueError) as error:
        faults.append(f"network {name}: its arguments do not fit each other: {error}")
        return None


def bundle_definition(spec: Mapping[str, Any], plan: Plan, out_channels: int) -> dict[str, Any]:
    """The network of a model as a bundle names it: MONAI's class where it is the same, else medseg's builder with all numbers."""
    target = str(spec["_target_"])
    builder = inspect.signature(resolve_builder(target)).parameters
    sizes = {"in_channels": len(plan.channels), "out_channels": out_channels}
    for name, known in NETWORKS.items():
        if known.builder != target or name == "DynUNet":  # medseg's DynUNet has its own names of weights
            continue
        options = {theirs: spec.get(mine, builder[mine].default) for theirs, mine in known.options.items()}
        if "channels" in default_arguments(name):
            options |= {
                "channels": plan.features,
                "strides": plan.strides[1:],
                "up_kernel_size": options["kernel_size"],
            }
        return _plain({"_target_": f"{known.module}.{name}", "spatial_dims": plan.dimensions, **sizes, **options})  # type: ignore[no-any-return]
    numbers = {
        name: getattr(plan, name) for name in ("features", "strides", "kernel_sizes", "blocks") if name in builder
    }
    return _plain({"_target_": target, "dimensions": plan.dimensions, **sizes, **numbers, **spec})  # type: ignore[no-any-return]


def default_arguments(name: str) -> dict[str, Any]:
    """Arguments of a class in `NETWORKS` and their defaults in the MONAI that is installed."""
    found = getattr(importlib.import_module(NETWORKS[name].module), name)
    return {key: p.default for key, p in inspect.signature(found).parameters.items()}


def divisor_of_rows(strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """What sizes must be a multiple of, along each axis."""
    return tuple(math.prod(column) for column in zip(*strides, strict=True))


def _row(value: Any, dimensions: int) -> list[int]:
    found = [int(value)] * dimensions if isinstance(value, (int, float)) else [int(v) for v in value]
    if len(found) != dimensions:
        raise ValueError(f"expected {dimensions} numbers, found {value}")
    return found


def _alike(value: Any, default: Any) -> bool:
    """Whether a value is the default, a layer perhaps said by its name alone."""
    plain, wanted = _plain(value), _plain(default)
    if isinstance(plain, str) and isinstance(wanted, list) and wanted:
        wanted = wanted[0]
    if isinstance(plain, str) and isinstance(wanted, str):
        return plain.lower() == wanted.lower()
    return bool(plain == wanted)


def _plain(value: Any) -> Any:
    """Tuples and mappings as YAML has them; enumerations by their value."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return str(getattr(value, "value", value)) if isinstance(value, str) else value
