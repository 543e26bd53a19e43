"""What a result says of the files it was made from: names relative to the input, and a key of their content."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.structures import Case

_SAMPLES = 8
_SAMPLE_BYTES = 4096


@dataclass(frozen=True)
class InputNames:
    """How files of the input are called in a manifest: never by a path of the machine.

    Args:
        folder: what names are relative to: the input itself, or the folder that a file or several inputs lie in.
        is_folder: whether the input is one folder.
    """

    folder: Path
    is_folder: bool

    @classmethod
    def of(cls, given: Path | str | Sequence[Path | str]) -> InputNames:
        """The names of what ``predict`` was given: a file, a folder, or a list of these."""
        paths = [Path(given)] if isinstance(given, (str, Path)) else [Path(path) for path in given]
        absolute = [path.absolute() for path in paths]
        if len(absolute) == 1 and absolute[0].is_dir():
            return cls(absolute[0], True)
        return cls(Path(os.path.commonpath([path.parent for path in absolute] or [Path.cwd()])), False)

    def relative(self, file: Path) -> str:
        """The name of one file: its path below the folder, with ``/``; what lies elsewhere keeps its last part only."""
        absolute = file.absolute()
        return absolute.relative_to(self.folder).as_posix() if absolute.is_relative_to(self.folder) else file.name

    def sources(self, case: Case) -> tuple[str, ...]:
        """What was read: each file, or the folder and number of files of a long series."""
        found = []
        for source in case.images:
            files = source.distinct_files
            if len(files) <= 2:
                found += [self.relative(file) for file in files]
            else:
                found.append(f"{self.relative(files[0].parent)} ({len(files)} files)")
        return tuple(found)

    def without_paths(self, text: str, case: Case | None = None) -> str:
        """A message in which files of the input bear their relative names."""
        files = [file for source in case.images for file in source.distinct_files] if case is not None else []
        for file in files:
            text = text.replace(str(file), self.relative(file))
        given = os.path.relpath(self.folder)
        for folder in (str(self.folder), given):
            if folder != ".":
                text = re.sub(rf"(?<![\w./-]){re.escape(folder)}/", "", text)
        return text.replace(str(self.folder), ".")


def content_key(case: Case, *, with_label: bool = False) -> str:
    """A key that changes when the files of a case do: their sizes and samples spread over each, not all of their bytes.

    The head of a file holds its identity, its tail the checksum of compressed data.

    Args:
        with_label: whether the label counts too, as where it says which part of a scan is looked at.

    Raises:
        OSError: a file is not there.
    """
    digest = hashlib.sha256()
    for source in (*case.images, *([case.label] if with_label and case.label is not None else ())):
        digest.update(f"{source.key} {source.frames}".encode())
        for path in source.distinct_files:
            size = path.stat().st_size
            digest.update(str(size).encode())
            with path.open("rb") as file:
                for i in range(_SAMPLES):
                    file.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
                    digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]
