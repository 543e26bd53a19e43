"""A MONAI bundle as a model of medseg's: configurations are read as data, never instantiated, and expressions never evaluated.

Owns where things lie in a bundle (``configs/metadata.json``, ``configs/inference.json``, ``models/model.pt``) and what they are
called. A value that is an expression (``$…``) counts as not said; a reference (``@key``) to plain values is followed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from medseg.errors import MedsegError, all_at_once
from medseg.interop.bundle_network import bundle_network, divisor_of_rows
from medseg.interop.bundle_plan import prepared
from medseg.interop.checkpoint import load_checkpoint, misfits, plain_weights
from medseg.model import Model
from medseg.networks import build_network
from medseg.networks.outline import outlined
from medseg.planning.conventions import Conventions
from medseg.planning.plan import Plan
from medseg.structures import LabelTable

logger = logging.getLogger(__name__)
_NETWORK_KEYS = ("network_def", "network", "net", "model")
_PREPROCESSING_KEYS = ("preprocessing", "pre_transforms", "transforms_infer")
_POSTPROCESSING_KEYS = ("postprocessing", "post_transforms")
_STATE_KEYS = ("model", "state_dict", "network")
_UNDERSTOOD_AFTER = {"Activations", "AsDiscrete", "EnsureType", "Invert", "SaveImage", "MapLabelValue", "ToDevice"}


def read_bundle(source: Path) -> Model:
    """The model of a bundle that segments.

    Raises:
        MedsegError: a file is missing or TorchScript, a checkpoint asks for code to be run, the weights do not fit, or something
            has no like in medseg; all of the latter at once.
    """
    source = Path(source)
    metadata = _read_config(source, "metadata")
    config = _read_config(source, "inference")
    faults: list[str] = []
    definition = next((found for key in _NETWORK_KEYS if isinstance(found := _value(config, key), Mapping)), None)
    if definition is None:
        raise MedsegError(f"{source}: the inference configuration defines no network under {', '.join(_NETWORK_KEYS)}")
    network = bundle_network(definition, faults)
    dimensions = network.dimensions if network is not None else 3
    channels = _channel_names(metadata, network.in_channels if network is not None else 1)
    before = prepared(_transforms(config, _PREPROCESSING_KEYS), dimensions, len(channels))
    faults += before.faults
    patch = _patch(config, dimensions, faults)
    labels = _labels(metadata, config, network.out_channels if network is not None else None, faults)
    if network is not None and patch is not None:
        divisor = divisor_of_rows(network.strides)
        if any(n % d for n, d in zip(patch, divisor, strict=True)):
            faults.append(f"roi_size {list(patch)}; this network needs multiples of {list(divisor)}")
    if faults or network is None or labels is None or patch is None:
        raise all_at_once(f"{source}: this bundle cannot be imported", faults)
    plan = Plan(
        task="segmentation",
        orientation=before.orientation if dimensions == 3 else "stored",
        channels=before.channels(channels),
        labels=labels,
        crop=before.crop,
        spacing=before.spacing or (1.0,) * dimensions,
        unit="mm" if dimensions == 3 or before.spacing else "px",
        image_order=(before.order,) * dimensions,
        label_order=(1,) * dimensions,
        patch_size=patch,
        batch_size=1,
        features=network.features,
        strides=network.strides,
        kernel_sizes=network.kernel_sizes,
        blocks=(1,) * len(network.features),
        mirror_axes=(),
        foreground=0.5,
        memory_gb=8.0,
        conventions=Conventions("logits", "after", kept_axes=() if before.spacing else tuple(range(dimensions))),
        why=dict.fromkeys(
            ("spacing", "patch_size", "channels", "conventions"), "as in the bundle's inference configuration"
        ),
    )
    file = source / "models" / "model.pt"
    if not file.is_file():
        scripted = (source / "models" / "model.ts").is_file()
        more = (
            "model.ts is TorchScript, a program that brings its own code, and is not read"
            if scripted
            else "copy it again"
        )
        raise MedsegError(f"{file}: missing; {more}")
    held = load_checkpoint(file)
    held = next((held[key] for key in _STATE_KEYS if isinstance(held.get(key), Mapping)), held)
    weights = {n: w for n, w in plain_weights(held, str(file)).items() if not n.startswith("skip_layers.")}
    expected = outlined(lambda: build_network(network.spec, plan, network.out_channels)).state_dict()
    heads = "deep_supervision_heads."  # of which a prediction asks nothing, and which bundles have in any number
    weights = {name: w.contiguous() for name, w in weights.items() if not name.startswith(heads)}
    weights |= {name: torch.zeros(like.shape) for name, like in expected.items() if name.startswith(heads)}
    wrong = misfits(expected, weights)
    if wrong:
        raise all_at_once(
            f"{file}: not the weights of {definition['_target_']} as the inference configuration says it", wrong
        )
    left_out = [*before.left_out, *_left_out(config)]
    if left_out:
        logger.warning("%s: left out of what the bundle does: %s", source.name, ", ".join(left_out))
    training = {
        "made_by": "MONAI bundle",
        "name": str(metadata.get("name", source.name)),
        "version": str(metadata.get("version", "")),
    }
    return Model(plan=plan, task={"name": "segmentation"}, network=network.spec, weights=weights, training=training)


def _read_config(source: Path, name: str) -> dict[str, Any]:
    for suffix in ("json", "yaml", "yml"):
        path = source / "configs" / f"{name}.{suffix}"
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
            found = json.loads(text) if suffix == "json" else yaml.safe_load(text)
        except (json.JSONDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise MedsegError(f"{path}: not readable as {suffix.upper()}: {error}. Copy the bundle again") from None
        if not isinstance(found, dict):
            raise MedsegError(f"{path}: expected a mapping, found {type(found).__name__}")
        return found
    raise MedsegError(
        f"{source / 'configs' / name}.json: missing; expected the folder of a MONAI bundle (configs, models)"
    )


def _value(config: Mapping[str, Any], key: str) -> Any:
    """An entry with references followed; what is an expression is None."""
    return _followed(config, config.get(key), depth=0)


def _followed(config: Mapping[str, Any], value: Any, depth: int) -> Any:
    if isinstance(value, Mapping):
        return {k: _followed(config, v, depth) for k, v in value.items()}
    if isinstance(value, list):
        return [_followed(config, v, depth) for v in value]
    if not isinstance(value, str) or value[:1] not in ("@", "$", "%"):
        return value
    if value[0] != "@" or depth > 8:
        return None
    node: Any = config
    for part in value[1:].replace("::", "#").split("#"):
        if isinstance(node, Mapping):
            node = node.get(part)
        elif isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        else:
            return None
    return _followed(config, node, depth + 1)


def _transforms(config: Mapping[str, Any], keys: Sequence[str]) -> list[Any]:
    for key in keys:
        found = _value(config, key)
        if isinstance(found, Mapping):
            found = found.get("transforms")
        if isinstance(found, list):
            return found
    return []


def _channel_names(metadata: Mapping[str, Any], count: int) -> list[str]:
    described = _format(metadata, "inputs", "image").get("channel_def", {})
    names = [str(described[key]) for key in sorted(described)] if isinstance(described, Mapping) else []
    return names if len(names) == count else [f"image_{number}" for number in range(count)]


def _format(metadata: Mapping[str, Any], side: str, name: str) -> Mapping[str, Any]:
    """What ``network_data_format`` says of an input or output, by its usual name or the only one there."""
    there = metadata.get("network_data_format", {}).get(side, {})
    found: Any = there.get(name) or next(iter(there.values()), {})
    return found if isinstance(found, Mapping) else {}


def _patch(config: Mapping[str, Any], dimensions: int, faults: list[str]) -> tuple[int, ...] | None:
    inferer = _value(config, "inferer") or {}
    name = str(inferer.get("_target_")).rpartition(".")[2] if isinstance(inferer, Mapping) else ""
    size = inferer.get("roi_size") if isinstance(inferer, Mapping) else None
    row = [size] * dimensions if isinstance(size, int) else size
    if name != "SlidingWindowInferer" or not isinstance(row, list) or len(row) != dimensions or not all(
        isinstance(n, int) and n > 0 for n in row
    ):  # fmt: skip
        faults.append(
            f"inferer {name or 'none'} with roi_size {size!r}; supported is SlidingWindowInferer with {dimensions} numbers"
        )
        return None
    return tuple(row)


def _labels(
    metadata: Mapping[str, Any], config: Mapping[str, Any], outputs: int | None, faults: list[str]
) -> LabelTable | None:
    described = _format(metadata, "outputs", "pred").get("channel_def", {})
    names = (
        {int(key): str(name) for key, name in described.items() if str(key).isdigit()}
        if isinstance(described, Mapping)
        else {}
    )
    after = {_bare(entry): entry for entry in _transforms(config, _POSTPROCESSING_KEYS) if isinstance(entry, Mapping)}
    sigmoid = after.get("Activations", {}).get("sigmoid") is True
    if outputs is None:
        return None
    if sigmoid and outputs > 1:
        faults.append("several sigmoid outputs: the bundle does not say which value of a mask each region has")
        return None
    if sigmoid:
        name = names.get(1, names.get(0, "foreground"))
        return LabelTable({1: name}, regions={name: (1,)}, paint=(1,))
    if outputs < 2:
        faults.append("a single output without sigmoid; expected background and at least one label")
        return None
    values = _mapped(after.get("MapLabelValue", {}), outputs)
    try:
        return LabelTable({values[channel]: names.get(channel, f"label_{channel}") for channel in range(1, outputs)})
    except MedsegError as error:
        faults.append(f"labels: {error}")
        return None


def _mapped(entry: Mapping[str, Any], outputs: int) -> list[int]:
    """Output channel → mask value; the channel itself unless ``MapLabelValued`` says another, in the same order."""
    values = list(range(outputs))
    pairs = zip(entry.get("orig_labels") or [], entry.get("target_labels") or [], strict=False)
    for old, new in pairs:
        if isinstance(old, int) and isinstance(new, int) and old < outputs:
            values[old] = new
    return values


def _left_out(config: Mapping[str, Any]) -> list[str]:
    names = [_bare(entry) for entry in _transforms(config, _POSTPROCESSING_KEYS) if isinstance(entry, Mapping)]
    return [name for name in names if name not in _UNDERSTOOD_AFTER]


def _bare(entry: Mapping[str, Any]) -> str:
    name = str(entry.get("_target_")).rpartition(".")[2]
    return name[:-1] if name[-1:] in ("d", "D") and name != "Identity" else name.removesuffix("Dict")
