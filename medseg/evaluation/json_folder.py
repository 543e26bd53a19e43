"""Finds the JSON file of a case in a folder that any system may have written. Reads nothing of what is in it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from medseg.errors import MedsegError
from medseg.scans.names import case_id


class JsonFolder:
    """A result folder (``<case id>/<name>``), or a folder of files ``<case id>.json``, anywhere below it.

    Args:
        name: of the file in a result folder.
        what: it holds, for messages.

    Raises:
        MedsegError: there is no such folder.
    """

    def __init__(self, path: Path, name: str, what: str) -> None:
        self.path, self._name, self._what = Path(path), name, what
        if not self.path.is_dir():
            found = "a file" if self.path.exists() else "nothing"
            raise MedsegError(f"predictions {path}: expected a folder of {what}, found {found}")

    def holds(self, case: str) -> bool:
        """Whether there is a file for ``case``."""
        return bool(self._files(case))

    def file(self, case: str) -> Path:
        """The file of ``case``.

        Raises:
            MedsegError: there is none, or several may be meant.
        """
        found = self._files(case)
        if len(found) > 1:
            names = ", ".join(map(self.relative, found[:5]))
            raise MedsegError(
                f"the predictions hold several files of {self._what} that may be its own: {names}; keep one"
            )
        if not found:
            name = case_id(case)
            raise MedsegError(
                f"the predictions hold no {self._what} of it; expected {name}/{self._name} or {name}.json"
            )
        return found[0]

    def relative(self, file: Path) -> str:
        """How a file is called in messages."""
        return file.relative_to(self.path).as_posix()

    def _files(self, case: str) -> list[Path]:
        own = self.path / case_id(case) / self._name
        if own.is_file():
            return [own]
        return sorted({path for name in (case, case_id(case)) for path in self._plain.get(name, ())})

    @cached_property
    def _plain(self) -> dict[str, list[Path]]:
        """Case → its files: called like it, or lying in a folder that is."""
        found: dict[str, list[Path]] = {}
        for path in sorted(self.path.rglob("*.json")):
            found.setdefault(path.parent.name if path.name == self._name else path.stem, []).append(path)
        return found
