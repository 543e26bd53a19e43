"""A model folder of nnU-Net 2 as models of medseg, one a fold. Owns what lies where in that folder; runs nothing of it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medseg.errors import MedsegError, all_at_once
from medseg.interop.checkpoint import load_checkpoint, misfits, plain_weights
from medseg.interop.nnunet_plan import Described, described
from medseg.interop.nnunet_weights import renamed, turned
from medseg.model import Model
from medseg.networks import build_network
from medseg.networks.outline import outlined

logger = logging.getLogger(__name__)
Fold = int | str


def read_nnunet(source: Path, *, folds: Sequence[Fold] | None = None, checkpoint: str = "final") -> dict[Fold, Model]:
    """The models of a folder ``<trainer>__<plans>__<configuration>``.

    It holds ``plans.json``, ``dataset.json`` and ``fold_<k>/checkpoint_….pth``.

    Args:
        folds: which; None for all that are there, of which none may be missing (``fold_all`` only where there is no other).
        checkpoint: ``"final"`` or ``"best"``.

    Returns:
        fold → model; all of one plan.

    Raises:
        MedsegError: the folder is no such model, a fold is missing, a checkpoint asks for code to be run, or something of it is
            not supported; all of the latter at once.
    """
    source = Path(source)
    plans, dataset = (_read_json(source, name) for name in ("plans.json", "dataset.json"))
    models: dict[Fold, Model] = {}
    first: Described | None = None
    for fold, file in _checkpoints(source, folds, checkpoint).items():
        held = load_checkpoint(file)
        lacking = [key for key in ("network_weights", "init_args", "trainer_name") if key not in held]
        if lacking or not isinstance(held["init_args"], Mapping) or "configuration" not in held["init_args"]:
            raise MedsegError(
                f"{file}: expected a checkpoint of nnU-Net 2, found one without "
                f"{', '.join(lacking) or 'init_args.configuration'} (it has {', '.join(map(str, held))})"
            )
        found = described(
            plans, dataset, str(held["init_args"]["configuration"]), held.get("inference_allowed_mirroring_axes")
        )
        first = first or found
        if found.plan != first.plan:
            raise MedsegError(
                f"{file}: configuration or mirroring differs from the first fold's; import each by itself"
            )
        models[fold] = _model(found, plain_weights(held["network_weights"], str(file)), held, fold, dataset, file)
    return models


def _model(
    found: Described,
    theirs: Mapping[str, Tensor],
    held: Mapping[str, Any],
    fold: Fold,
    dataset: Mapping[str, Any],
    file: Path,
) -> Model:
    spec, plan = found.network.spec, found.plan
    expected = outlined(lambda: build_network(spec, plan, len(plan.labels.outputs))).state_dict()
    mine, unknown = renamed(theirs, len(plan.features))
    weights = {
        # Without a bias a convolution adds nothing, and a head that was not trained is never looked at.
        name: turned(mine[name], found.axes.order, flat=found.axes.flat) if name in mine else torch.zeros(like.shape)
        for name, like in expected.items()
        if name in mine or re.search(r"(\.conv|^ups\.\d+)\.bias$", name) or re.match(r"heads\.[1-9]", name)
    }
    faults = misfits(expected, weights | {n: w for n, w in mine.items() if n not in expected}, unknown)
    if faults:
        raise all_at_once(
            f"{file}: the weights that trainer {held['trainer_name']} left are not those of {spec['_target_']} as plans.json "
            "says it; a trainer that changes the network cannot be imported",
            faults,
        )
    training = {
        "made_by": "nnU-Net",
        "trainer": str(held["trainer_name"]),
        "configuration": str(held["init_args"]["configuration"]),
        "fold": fold,
        "epochs": int(held.get("current_epoch", 0)),
        "dataset": str(dataset.get("name", dataset.get("dataset_name", ""))),
        "cases": int(dataset.get("numTraining", 0)),
    }
    return Model(plan=plan, task={"name": "segmentation"}, network=spec, weights=weights, training=training)


def _checkpoints(source: Path, folds: Sequence[Fold] | None, checkpoint: str) -> dict[Fold, Path]:
    """Fold → its checkpoint; raises MedsegError that names every one that is missing."""
    if checkpoint not in ("final", "best"):
        raise MedsegError(f"checkpoint={checkpoint}: expected final or best")
    there = {m[1]: path for path in source.glob("fold_*") if (m := re.fullmatch(r"fold_(\d+|all)", path.name))}
    if not there:
        raise MedsegError(f"{source}: expected fold_0, fold_1 … or fold_all with a checkpoint, found no fold")
    if folds is None:
        numbers = sorted(int(name) for name in there if name != "all")
        # Folds count from 0: one that is left out between others was not copied, or is being trained still.
        wanted = [str(n) for n in range(numbers[-1] + 1)] if len(numbers) > 1 else [str(n) for n in numbers] or ["all"]
    else:
        wanted = [str(fold) for fold in folds]
    faults = []
    found: dict[Fold, Path] = {}
    for name in wanted:
        file = source / f"fold_{name}" / f"checkpoint_{checkpoint}.pth"
        if file.is_file():
            found[int(name) if name.isdigit() else name] = file
            continue
        others = sorted(p.name for p in file.parent.glob("checkpoint_*.pth"))
        faults.append(f"fold_{name}/{file.name} is missing" + (f" (there is {', '.join(others)})" if others else ""))
    if faults or not found:
        there_are = [name for name in there if (source / f"fold_{name}" / f"checkpoint_{checkpoint}.pth").is_file()]
        hint = (
            f"folds=[{','.join(sorted(there_are))}] takes those that are there" if there_are else "train it to its end"
        )
        raise all_at_once(f"{source}: folds are missing; {hint}, checkpoint=best the best so far", faults)
    return found


def _read_json(source: Path, name: str) -> dict[str, Any]:
    path = source / name
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise MedsegError(f"{path}: missing; {_instead(source)}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MedsegError(f"{path}: not readable as JSON: {error}. Copy the model folder again") from None
    if not isinstance(found, dict):
        raise MedsegError(f"{path}: expected a mapping, found {type(found).__name__}")
    return found


def _instead(source: Path) -> str:
    """What was given instead of a model folder, as far as it can be told."""
    if any(source.glob("plans.pkl")) or any(source.glob("fold_*/*.model")):
        return "this is a model of nnU-Net 1, expected one of nnU-Net 2: train it again there"
    inside = sorted(path.parent.name for path in source.glob("*/plans.json"))
    if inside:
        return f"expected a model folder, found a folder of them: {', '.join(inside)}; name one of these"
    if (source.parent / "plans.json").is_file():
        return f"expected the folder above the folds: source={source.parent}"
    return "expected a model folder <trainer>__<plans>__<configuration> of nnU-Net 2"
