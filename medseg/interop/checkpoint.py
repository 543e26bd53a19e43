"""Checkpoints that others wrote, opened as data: a pickle may name tensors and numpy's numbers, and nothing that runs.

Owns what is allowed in a pickle. What a checkpoint means is not known here.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medseg.errors import MedsegError

_SCALAR = np.float64(0).__reduce__()[0]
_ALLOWED: list[Any] = [
    np.dtype,
    # Pickles of numpy 1 and numpy 2 name the same function differently.
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(getattr(np.dtypes, f"{kind}DType") for kind in ("Bool", "Float16", "Float32", "Float64")),
    *(getattr(np.dtypes, f"{sign}Int{bits}DType") for sign in ("", "U") for bits in (8, 16, 32, 64)),
]
_PREFIXES = ("module.", "_orig_mod.")  # of networks that were trained on several GPUs, or compiled


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ``torch.save``; tensors stay on the disk until they are used.

    Raises:
        MedsegError: it is not there, damaged, TorchScript, no mapping, or asks for something to be run.
    """
    try:
        if _is_torchscript(path):
            raise MedsegError(
                f"{path}: is TorchScript, a program that brings its own code; expected weights alone (a state_dict, "
                "as torch.save writes it). Take the weights from where the model was made"
            )
        with warnings.catch_warnings(), torch.serialization.safe_globals(_ALLOWED):
            warnings.simplefilter("ignore", UserWarning)  # of pickle protocols beyond 2, which it then refuses
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise MedsegError(f"{path}: there is no such file") from None
    except pickle.UnpicklingError as error:
        names = re.findall(r"GLOBAL ([\w.]+)|global ([\w.]+)", str(error))
        asked = ", ".join(dict.fromkeys(a or b for a, b in names)) or "more than that"
        raise MedsegError(
            f"{path}: refused, and nothing of it was run: expected tensors, numbers and text, found a pickle that asks for "
            f"{asked}. If you trust its maker, have it saved again with plain values only"
        ) from None
    except (RuntimeError, EOFError, zipfile.BadZipFile, ValueError, KeyError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise MedsegError(f"{path}: not a whole checkpoint of torch.save: {reason}. Copy it again") from None
    if not isinstance(found, Mapping):
        raise MedsegError(f"{path}: expected a mapping of names, found {type(found).__name__}")
    return dict(found)


def plain_weights(weights: Any, where: str) -> dict[str, Tensor]:
    """Name → tensor of a state_dict, without the prefixes that wrappers add.

    Raises:
        MedsegError: it is no mapping of names to tensors.
    """
    if not isinstance(weights, Mapping) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise MedsegError(f"{where}: expected a state_dict, names and their tensors; found something else")
    plain = {}
    for name, weight in weights.items():
        for prefix in _PREFIXES:
            name = str(name).removeprefix(prefix)
        plain[name] = weight
    return plain


def misfits(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], unknown: Sequence[str] = ()) -> list[str]:
    """What keeps weights from fitting a network, a line each, the first five and how many more.

    Args:
        expected: the network's own weights, of the meta device perhaps.
        unknown: names that could not even be translated.
    """
    lines = [f"{name} is missing" for name in expected if name not in found]
    lines += [f"{name} is not in the network" for name in (*unknown, *(n for n in found if n not in expected))]
    lines += [
        f"{name}: expected {tuple(expected[name].shape)}, found {tuple(weight.shape)}"
        for name, weight in found.items()
        if name in expected and weight.shape != expected[name].shape
    ]
    return [*lines[:5], *([f"and {len(lines) - 5} more"] if len(lines) > 5 else [])]


def _is_torchscript(path: Path) -> bool:
    """TorchScript is a zip archive that holds code beside its tensors."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
    return "constants.pkl" in names or any(name.startswith("code/") for name in names)
