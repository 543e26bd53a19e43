"""Which of nnU-Net's networks a model has: class and arguments as text in its plans, read by an allow-list and never imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_CLASSES = {
    "PlainConvUNet": ("medseg.networks.unet.plain_unet", "n_conv_per_stage"),
    "ResidualEncoderUNet": ("medseg.networks.unet.residual_unet", "n_blocks_per_stage"),
}
_MODULE = "dynamic_network_architectures.architectures."
# Argument → the values under which medseg's networks compute the same. A missing convolution bias is a bias of zero.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "conv_bias": (True, False),
    "norm_op": tuple(f"torch.nn{m}.InstanceNorm{d}d" for m in ("", ".modules.instancenorm") for d in (2, 3)),
    "norm_op_kwargs": ({"eps": 1e-5, "affine": True}, {"affine": True}),
    "dropout_op": (None,),
    "dropout_op_kwargs": (None, {}),
    "nonlin": ("torch.nn.LeakyReLU", "torch.nn.modules.activation.LeakyReLU"),
    "nonlin_kwargs": (
        None,
        {},
        {"inplace": True},
        {"inplace": True, "negative_slope": 0.01},
        {"negative_slope": 0.01},
    ),
    "nonlin_first": (False,),
    "deep_supervision": (True, False),
    "block": (None,),
    "bottleneck_channels": (None,),
}
_SIZES = ("n_stages", "features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage_decoder")
_DIMENSIONS = {f"torch.nn{m}.Conv{d}d": d for m in ("", ".modules.conv") for d in (2, 3)}


@dataclass(frozen=True)
class Network:
    """The numbers of a network along nnU-Net's axes, one entry a stage; ``decoder_blocks`` finest first."""

    target: str
    dimensions: int
    features: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]

    @property
    def spec(self) -> dict[str, Any]:
        """What `build_network` takes; the plan gives the rest."""
        counts = set(self.decoder_blocks)
        return {
            "_target_": self.target,
            "decoder_blocks": counts.pop() if len(counts) == 1 else list(self.decoder_blocks),
        }


def network_of(configuration: Mapping[str, Any], faults: list[str]) -> Network | None:
    """The network of a configuration; what is not supported is added to ``faults``, and None returned."""
    try:
        architecture = configuration.get("architecture") or _of_older_plans(configuration)
    except KeyError as error:
        architecture = None
        faults.append(f"plans.json of an older nnU-Net lacks {error}")
    if not isinstance(architecture, Mapping) or not isinstance(architecture.get("arch_kwargs"), Mapping):
        faults.append("plans.json says no architecture (network_class_name and arch_kwargs)")
        return None
    full, arguments = str(architecture.get("network_class_name")), dict(architecture["arch_kwargs"])
    name = full.rpartition(".")[2]
    if name not in _CLASSES or (full != name and not full.startswith(_MODULE)):
        faults.append(f"network class {full}; supported are {', '.join(_CLASSES)} of dynamic_network_architectures")
        return None
    before = len(faults)
    target, counted = _CLASSES[name]
    dimensions = _DIMENSIONS.get(str(arguments.pop("conv_op", None)), 0)
    if not dimensions:
        faults.append(f"{name}: conv_op; supported are {', '.join(_DIMENSIONS)}")
    lacking = [key for key in (*_SIZES, counted) if key not in arguments]
    if lacking:
        faults.append(f"{name}: lacks {', '.join(lacking)}")
    sizes = {key: arguments.pop(key, None) for key in (*_SIZES, counted)}
    if arguments.pop("stem_channels", None) not in (None, _first(sizes["features_per_stage"])):
        faults.append(f"{name}: stem_channels that differ from the features of the first stage")
    for key, value in arguments.items():
        if key not in _FIXED or value not in _FIXED[key]:
            known = " or ".join(map(repr, _FIXED.get(key, ()))) or "no such argument"
            faults.append(f"{name}: {key}={value!r}; supported is {known}")
    for key in ("norm_op", "nonlin", "norm_op_kwargs"):
        if key not in arguments:
            faults.append(f"{name}: {key} is not said; nnU-Net then leaves it out, which is not supported")
    if len(faults) > before:
        return None
    try:
        stages = int(sizes["n_stages"])
        return Network(
            target,
            dimensions,
            features=tuple(_each(sizes["features_per_stage"], stages)),
            strides=_rows(sizes["strides"], stages, dimensions),
            kernel_sizes=_rows(sizes["kernel_sizes"], stages, dimensions),
            blocks=tuple(_each(sizes[counted], stages)),
            decoder_blocks=tuple(reversed(_each(sizes["n_conv_per_stage_decoder"], stages - 1))),
        )
    except (TypeError, ValueError) as error:
        faults.append(f"{name}: its stages do not fit each other: {error}")
        return None


def _of_older_plans(old: Mapping[str, Any]) -> dict[str, Any] | None:
    """The architecture of plans from before nnU-Net 2.4, which named it in other words."""
    if "UNet_class_name" not in old:
        return None
    stages, dimensions = len(old["n_conv_per_stage_encoder"]), len(old["patch_size"])
    name = str(old["UNet_class_name"])
    arguments = {
        "n_stages": stages,
        "features_per_stage": [
            min(old["UNet_base_num_features"] * 2**stage, old["unet_max_num_features"]) for stage in range(stages)
        ],
        "conv_op": f"torch.nn.Conv{dimensions}d",
        "kernel_sizes": old["conv_kernel_sizes"],
        "strides": old["pool_op_kernel_sizes"],
        _CLASSES.get(name, ("", "n_conv_per_stage"))[1]: old["n_conv_per_stage_encoder"],
        "n_conv_per_stage_decoder": old["n_conv_per_stage_decoder"],
        "conv_bias": True,
        "norm_op": f"torch.nn.InstanceNorm{dimensions}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {"network_class_name": name, "arch_kwargs": arguments}


def _first(values: Any) -> Any:
    return values[0] if isinstance(values, Sequence) and values else values


def _each(values: Any, count: int) -> list[int]:
    """One number a stage; a single one counts for all."""
    found = [int(values)] * count if isinstance(values, int) else [int(v) for v in values]
    if len(found) != count:
        raise ValueError(f"expected {count} numbers, found {len(found)}")
    return found


def _rows(values: Any, stages: int, dimensions: int) -> tuple[tuple[int, ...], ...]:
    """A row of numbers a stage; a single number counts for all axes, or for all stages and axes."""
    rows = [values] * stages if isinstance(values, int) else list(values)
    if len(rows) != stages:
        raise ValueError(f"expected {stages} rows, found {len(rows)}")
    return tuple(tuple(_each(row, dimensions)) for row in rows)
