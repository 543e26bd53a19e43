"""The run folder: which command it belongs to, whether it is finished, and its log. The same command goes on with it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medseg.errors import MedsegError, all_at_once
from medseg.files import write_text

OF_THIS_CALL = {"run.new", "run.dir", "trainer.workers", "trainer.pictures"}
"""Settings that may differ between two calls of one run: they change neither weights nor figures."""


@dataclass(frozen=True)
class RunFolder:
    """``config.yaml plan.yaml splits.json training.csv checkpoints/ model/ log.txt`` under ``path``."""

    path: Path

    @classmethod
    def open(cls, path: Path, config: Mapping[str, Any], *, new: bool = False) -> RunFolder:
        """The folder of the run that ``config`` asks for: made, or found as an earlier call left it.

        Args:
            new: start another run beside an existing one, in ``<path>.2``, ``<path>.3`` …; the same call again goes on with it.

        Raises:
            MedsegError: the folder holds a run of another configuration (every difference is named), or something else.
        """
        path = _another(Path(path), config) if new else Path(path)
        kept = path / "config.yaml"
        if path.exists() and any(path.iterdir()) and not kept.exists():
            raise MedsegError(
                f"{path}: expected a new folder or a run folder, found other files; set run.dir to another"
            )
        path.mkdir(parents=True, exist_ok=True)
        differences = compare(_read(kept), config) if kept.exists() else []
        if differences and (path / "checkpoints" / "last.ckpt").exists():
            heading = f"{path}: holds a run with another configuration; set run.new=true or another run.dir, or undo"
            raise all_at_once(heading, differences)
        if differences:  # the earlier call never got as far as training: there is nothing to lose
            for name in ("plan.yaml", "splits.json"):
                (path / name).unlink(missing_ok=True)
        if differences or not kept.exists():
            write_text(kept, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
        return cls(path)

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def finished(self) -> bool:
        return (self.model / "model.yaml").exists()

    @contextmanager
    def log(self) -> Iterator[None]:
        """Everything that medseg logs meanwhile also goes to ``log.txt``."""
        handler = logging.FileHandler(self.path / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        root = logging.getLogger("medseg")
        root.addHandler(handler)
        try:
            yield
        finally:
            root.removeHandler(handler)
            handler.close()


def _another(path: Path, config: Mapping[str, Any]) -> Path:
    """``path`` if it is free; else the last of ``<path>.2`` … if this very run is unfinished there; else the next."""
    taken = [path, *(p for n in range(2, 10_000) if (p := path.with_name(f"{path.name}.{n}")).exists())]
    last = taken[-1]
    if not path.exists():
        return path
    unfinished = len(taken) > 1 and not RunFolder(last).finished and (last / "config.yaml").exists()
    if unfinished and not compare(_read(last / "config.yaml"), config):
        return last
    number = int(last.name.rpartition(".")[2]) + 1 if len(taken) > 1 else 2
    return path.with_name(f"{path.name}.{number}")


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A line for every setting that differs, beside those that a call may change."""
    a, b = dict(flatten(old)), dict(flatten(new))
    names = sorted((set(a) | set(b)) - OF_THIS_CALL)
    return [f"{n}: was {a.get(n)!r}, now {b.get(n)!r}" for n in names if a.get(n) != b.get(n)]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``{"a": {"b": 1}}`` → ``("a.b", 1)``."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
