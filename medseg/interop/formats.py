"""What ``medseg convert`` can write: a name, and the function that is imported when it is asked for.

A writer takes a model and a folder that exists and is empty, and writes what it makes there. Another format is a line here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medseg.errors import MedsegError
from medseg.model import Model

Writer = Callable[..., None]
WRITERS: dict[str, str] = {
    "bundle": "medseg.interop.bundle_out.write_bundle",
}


def write_as(kind: str, model: Model, folder: Path, **options: Any) -> None:
    """Write ``model`` as ``kind`` into the empty ``folder``.

    Raises:
        MedsegError: there is no such kind, or the model cannot be written so.
    """
    if kind not in WRITERS:
        raise MedsegError(f"convert: to={kind}; expected one of {', '.join(WRITERS)}")
    module, _, name = WRITERS[kind].rpartition(".")
    writer: Writer = getattr(importlib.import_module(module), name)
    writer(model, folder, **options)
