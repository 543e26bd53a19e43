"""``manifest.json`` of a result folder: with what it was made, and what became of each case. Predicts nothing.

It is the memory of ``medseg predict``: what is done is skipped, and what another model or other options made is
refused. No path of the machine stands in it: files are named relative to the input.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from medseg.errors import MedsegError
from medseg.files import write_text

NAME = "manifest.json"
FORMAT = 1
SAVE_EVERY_S = 5.0


@dataclass(frozen=True)
class Record:
    """What became of one case.

    Args:
        status: ``done`` (its folder is whole) or ``failed``.
        seconds: from reading to writing; 0 where nothing was read.
        folder: name of the case's folder in the result folder.
        sources: what was read, relative to the input.
        key: of the content of the sources, so that another scan of the same name is predicted anew.
        mended: what was wrong with the files and put right while reading.
        reason: why it failed.
        figures: what ``predictions.csv`` says of it, column → number.
        windows: how many the networks were ``asked``, and how many were ``spared`` as they hold nothing but air.
    """

    status: Literal["done", "failed"]
    seconds: float = 0.0
    folder: str = ""
    sources: Sequence[str] = ()
    key: str = ""
    mended: Sequence[str] = ()
    reason: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    windows: Mapping[str, int] = field(default_factory=dict)


class Manifest:
    """The manifest of a result folder, in memory and on disk.

    Args:
        folder: the result folder; it need not exist.
        models: name → description of each model with its ``sha256``; one model that has no name is ``""``.
        options: whatever else the results depend on.
        labels: mask value → name.
        versions: of the libraries.

    ``runtimes`` says by name of the model what ran it; it may change while results are made, and no result is refused for it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        models: Mapping[str, Mapping[str, Any]],
        options: Mapping[str, Any],
        labels: Mapping[int, str],
        versions: Mapping[str, str],
    ) -> None:
        self.path = folder / NAME
        self.cases: dict[str, Record] = {}
        self._head: dict[str, Any] = {
            "format": FORMAT,
            "versions": dict(versions),
            "models": {name: dict(model) for name, model in models.items()},
            "options": dict(options),
            "labels": {str(value): name for value, name in labels.items()},
        }
        self.runtimes: dict[str, dict[str, str]] = {}
        self._saved_at = -math.inf

    def resume(self) -> None:
        """Take over what a manifest that is there already says is done; what failed is tried again.

        Raises:
            MedsegError: it was made with another model or other options, or is not readable.
        """
        body = read_manifest(self.path.parent)
        if body is None:
            return
        mine = json.loads(json.dumps(self._head))
        differs = [name for name in ("models", "options", "labels") if body.get(name) != mine[name]]
        if differs:
            was, now = body.get(differs[0]), mine[differs[0]]
            raise MedsegError(
                f"{self.path.parent}: holds results of other {' and '.join(differs)} ({_difference(was, now)}). "
                "Choose another output, or say overwrite=true to replace them"
            )
        self.cases = {case: record for case, record in records(body).items() if record.status == "done"}
        self.runtimes = dict(body.get("runtimes", {}))

    def record(self, case: str, record: Record) -> None:
        """Note a case; written to disk at once or, where many are short, within some seconds and by `saving`."""
        self.cases[case] = record
        if time.monotonic() - self._saved_at > SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write ``manifest.json``: whole or not at all."""
        cases = {case: _compact(record) for case, record in sorted(self.cases.items())}
        body = {**self._head, "runtimes": self.runtimes, "cases": cases}
        text = json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False)
        write_text(self.path, text + "\n")
        self._saved_at = time.monotonic()

    @contextmanager
    def saving(self) -> Iterator[Manifest]:
        """Save at the end of the block, however it ends."""
        try:
            yield self
        finally:
            self.save()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a result folder as it stands on disk; None if there is none.

    Raises:
        MedsegError: it is not one of medseg's.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MedsegError(f"{path}: not readable as JSON: {error}; choose another output, or remove it") from None
    if not isinstance(body, dict) or body.get("format") != FORMAT or not isinstance(body.get("cases"), dict):
        found = body.get("format") if isinstance(body, dict) else type(body).__name__
        raise MedsegError(f"{path}: expected a manifest of format {FORMAT}, found {found}; choose another output")
    return body


def records(body: Mapping[str, Any]) -> dict[str, Record]:
    """The cases of a manifest that `read_manifest` read. Raises MedsegError for entries that are none."""
    try:
        return {case: Record(**entry) for case, entry in body["cases"].items()}
    except TypeError as error:
        raise MedsegError(f"{NAME}: a case is not understood ({error}); choose another output, or remove it") from None


def _compact(record: Record) -> dict[str, Any]:
    """The record without what is empty; a figure that is no number is left out, as JSON has none."""
    plain = {**asdict(record), "seconds": round(record.seconds, 3)}
    plain["figures"] = {name: value for name, value in record.figures.items() if math.isfinite(value)}
    return {name: value for name, value in plain.items() if name == "status" or value}


def _difference(was: Any, now: Any, where: str = "") -> str:
    """The first entry in which two plain values differ, as ``where: was → now``."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in sorted({*was, *now}):
            if was.get(key) != now.get(key):
                return _difference(was.get(key), now.get(key), f"{where}.{key}" if where else key)
    short = [text if len(text) <= 60 else f"{text[:57]}…" for text in (json.dumps(was), json.dumps(now))]
    return f"{where or 'entry'}: there {short[0]}, now {short[1]}"
