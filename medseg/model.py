"""A trained model is a folder, and a model folder is data: it opens without Lightning and runs nothing that it names.

``model.yaml`` holds format, task, network, labels, working point, post-processing, training summary, versions and the
SHA-256 of the other files: ``plan.yaml``, ``weights.safetensors`` and ``card.md``, which is for people and may be
edited. What does not fit is refused before memory is taken for weights. How a model is trained is not known here.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import platform
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import yaml
from torch import Tensor, nn

from medseg.errors import MachineError, MedsegError
from medseg.networks import build_network
from medseg.networks.outline import outlined
from medseg.planning.plan import Plan
from medseg.tasks import build_task

logger = logging.getLogger(__name__)

FORMAT = 1
_CHECKED = ("plan.yaml", "weights.safetensors")
_PARTS: dict[str, type] = {
    "task": dict, "network": dict, "working_point": dict, "postprocessing": dict, "training": dict, "versions": dict
}  # fmt: skip


def current_versions() -> dict[str, str]:
    """Versions of medseg, Python and the libraries that decide numbers."""
    found = {"python": platform.python_version()}
    for name in ("medseg", "torch", "numpy", "monai"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


@dataclass(frozen=True, eq=False)
class Model:
    """A plan, a network and what was learned.

    Args:
        task: spec of the task, ``{"name": "segmentation"}``.
        network: spec of the network, ``{"_target_": …, **options}``, as `build_network` takes it.
        weights: parameter and buffer name → tensor, on the CPU.
        working_point: thresholds and the like, chosen on ``tune``.
        postprocessing: options of `medseg.evaluation.postprocess`, chosen on ``tune``.
        training: a summary for people (cases, steps, figures): plain values.
        versions: of the libraries it was trained with.
    """

    plan: Plan
    task: Mapping[str, Any]
    network: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    working_point: Mapping[str, Any] = field(default_factory=dict)
    postprocessing: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=current_versions)

    @cached_property
    def sha256(self) -> str:
        """One hash of what predictions depend on: plan, task, network, decisions, weights; not the training summary."""
        parts = (self.task, self.network, self.working_point, self.postprocessing)
        digest = hashlib.sha256(self.plan.to_yaml().encode())
        digest.update(json.dumps([_plain(part) for part in parts], sort_keys=True).encode())
        for name in sorted(self.weights):
            tensor = self.weights[name].detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
        return digest.hexdigest()

    def network_module(self, trust: Sequence[str] = ()) -> nn.Module:
        """The network with its weights, in evaluation mode, float32 on the CPU; every call makes another.

        Raises:
            MedsegError: the network's target is foreign and not in ``trust``, or the weights do not fit it.
        """
        with torch.random.fork_rng(devices=[]):  # initial weights are random; the caller's random numbers are not spent
            network = build_network(self.network, self.plan, _out_channels(self), trust=trust)
        found = {name: tuple(weight.shape) for name, weight in self.weights.items()}
        _check_shapes(self.network, _shapes(network), found, "the weights")
        network.load_state_dict(dict(self.weights))
        return network.float().eval()


def save_model(model: Model, folder: Path) -> None:
    """Write the model folder: it appears whole, in the place of an older one.

    Raises:
        MedsegError: a part of the model is not plain data.
        MachineError: the disk is full.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        # Through bytes and not save_file, as shared tensors are then refused alike and a full disk is an OSError.
        weights = {name: w.detach().cpu().contiguous() for name, w in model.weights.items()}
        (new / "weights.safetensors").write_bytes(safetensors.torch.save(weights))
        (new / "plan.yaml").write_text(model.plan.to_yaml(), encoding="utf-8")
        (new / "card.md").write_text(_card(model), encoding="utf-8")
        files = {path.name: _sha256(path) for path in sorted(new.iterdir())}
        (new / "model.yaml").write_text(_to_yaml(model, files), encoding="utf-8")
        new.chmod(0o755)
        old = folder.parent / f"{new.name}.old"
        if folder.exists():
            folder.replace(old)
        new.replace(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MachineError(f"{folder}: the disk is full, the model was not saved; free space and go on") from None
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def load_model(folder: Path, trust: Sequence[str] = ()) -> Model:
    """Read and verify a model folder.

    Args:
        folder: what `save_model` wrote.
        trust: targets of networks that are not built in and that the caller vouches for.

    Raises:
        MedsegError: a file is missing, changed or not understood; the network is foreign; the weights do not fit it.
    """
    folder = Path(folder)
    body = _read_body(folder)
    _check_files(folder, body["files"])
    plan = Plan.load(folder / "plan.yaml")
    model = Model(plan=plan, weights={}, **{name: body[name] for name in _PARTS})
    stored = _stored_shapes(folder / "weights.safetensors")
    _check_shapes(model.network, _expected_shapes(model, trust), stored, str(folder / "weights.safetensors"))
    weights = safetensors.torch.load_file(folder / "weights.safetensors")
    return Model(plan=plan, weights=weights, **{name: body[name] for name in _PARTS})


def load_members(path: Path, trust: Sequence[str] = ()) -> list[Model]:
    """The models at ``path``: a model folder, a run folder, or an experiment folder, whose folds are an ensemble.

    Raises:
        MedsegError: there is no model, or one cannot be loaded.
    """
    path = Path(path)
    if (path / "model.yaml").is_file():
        return [load_model(path, trust)]
    if (path / "model" / "model.yaml").is_file():
        return [load_model(path / "model", trust)]
    runs = fold_folders(path)
    done = [run for run in runs if (run / "model" / "model.yaml").is_file()]
    if done:
        if len(done) < len(runs):
            missing = ", ".join(run.name for run in runs if run not in done)
            logger.warning("%s: %s has no model yet; predicting with the other %d", path, missing, len(done))
        return [load_model(run / "model", trust) for run in done]
    if not path.exists():
        found = "there is no such folder"
    elif runs:
        found = (
            f"found {', '.join(run.name for run in runs)} without a finished model; go on with the same medseg train"
        )
    else:
        found = "found neither model.yaml, model/model.yaml nor fold_*/model/model.yaml"
    raise MedsegError(f"model {path}: expected a model folder, a run folder or an experiment folder; {found}")


def fold_folders(experiment: Path) -> list[Path]:
    """The run folders ``fold_0``, ``fold_1`` … of an experiment, by number; ``fold_0.2``, another run beside, is none."""
    found = {int(match[1]): p for p in experiment.glob("fold_*") if (match := re.fullmatch(r"fold_(\d+)", p.name))}
    return [found[number] for number in sorted(found)]


def _to_yaml(model: Model, files: Mapping[str, str]) -> str:
    body: dict[str, Any] = {"format": FORMAT}
    for name in _PARTS:
        body[name] = _plain(getattr(model, name))
    body["labels"] = dict(model.plan.labels.names)
    body["files"] = dict(files)
    head = "# A medseg model: data, nothing of it is run. plan.yaml says how scans are prepared, card.md is for you.\n"
    return head + yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=118)


def _read_body(folder: Path) -> dict[str, Any]:
    path = folder / "model.yaml"
    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise MedsegError(
            f"{path}: no model there; expected a folder that medseg train or medseg import wrote"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MedsegError(f"{path}: not readable as plain YAML: {error}. Copy the model folder again") from None
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        found = body.get("format") if isinstance(body, dict) else type(body).__name__
        raise MedsegError(f"{path}: expected a model of format {FORMAT}, found {found}; use the medseg that wrote it")
    for name, kind in {**_PARTS, "files": dict}.items():
        if not isinstance(body.get(name), kind):
            raise MedsegError(f"{path}: expected a mapping under {name!r}, found {type(body.get(name)).__name__}")
    return body


def _check_files(folder: Path, expected: Mapping[str, Any]) -> None:
    for name in _CHECKED:
        path = folder / name
        if not path.is_file():
            raise MedsegError(f"{path}: missing; the model folder is not whole. Copy it again")
        found = _sha256(path)
        if found != expected.get(name):
            raise MedsegError(
                f"{path}: changed since the model was saved (expected SHA-256 {expected.get(name)}, found {found}). "
                "Copy the model folder again, or train again; a changed file is not used"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _out_channels(model: Model) -> int:
    return build_task(model.task, model.plan).out_channels


def _stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes from the header of a safetensors file; no weights are read."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise MedsegError(f"{path}: not a whole safetensors file: {error}. Copy the model folder again") from None


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def _expected_shapes(model: Model, trust: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the network that the model names, built without memory for its weights."""
    out_channels = _out_channels(model)
    try:
        return _shapes(outlined(lambda: build_network(model.network, model.plan, out_channels, trust=trust)))
    except (NotImplementedError, RuntimeError) as error:
        # Some networks compute with their own weights while they are built, which the meta device cannot.
        logger.debug("network %s on the meta device: %s", model.network.get("_target_"), error)
        with torch.random.fork_rng(devices=[]):
            return _shapes(build_network(model.network, model.plan, out_channels, trust=trust))


def _check_shapes(
    spec: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str
) -> None:
    lines = [f"{name} is missing" for name in expected if name not in found]
    lines += [f"{name} is not in the network" for name in found if name not in expected]
    both = [name for name in expected if name in found]
    lines += [f"{n}: expected {expected[n]}, found {found[n]}" for n in both if expected[n] != found[n]]
    if lines:
        more = f"; and {len(lines) - 5} more" if len(lines) > 5 else ""
        raise MedsegError(
            f"{where}: not the weights of {spec.get('_target_')} with this plan ({'; '.join(lines[:5])}{more}). "
            "Plan, network and weights belong together: copy the model folder again"
        )


def _plain(value: Any) -> Any:
    """What YAML and JSON hold; raises MedsegError for anything else, as a model folder holds data only."""
    if isinstance(value, Mapping):
        return {key if isinstance(key, (str, int)) else str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:  # a number of numpy or torch
        return _plain(value.item())
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise MedsegError(
        f"a model holds plain values (numbers, strings, lists, mappings); found {type(value).__name__}: {value!r}"
    )


def _card(model: Model) -> str:
    plan = model.plan
    labels = "\n".join(f"| {value} | {name} |" for value, name in plan.labels.names.items())
    training = yaml.safe_dump(_plain(model.training), sort_keys=False, allow_unicode=True).strip()
    return f"""# Model card

This page may be edited; medseg does not read it.

- Task: {model.task.get("name")}, {plan.dimensions}D
- Input: {", ".join(channel.name for channel in plan.channels)}
- Resampled to: {" × ".join(f"{s:.4g}" for s in plan.spacing)} {plan.unit}
- Network: {model.network.get("_target_")}, {sum(w.numel() for w in model.weights.values()):,} numbers
- Made with medseg {model.versions.get("medseg")}, torch {model.versions.get("torch")}

| value | label |
|---|---|
{labels}

## Training

```yaml
{training}
```

## Use

A research model, no medical device. It saw only data like that described above: check it on your own scans first.
"""
