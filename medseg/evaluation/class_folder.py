"""Reads the class probabilities of a case from a folder that any system may have written: ``{"<name>": probability}``.

Probabilities that cannot be what they should make their case unusable. Nothing is compared or counted here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from medseg.evaluation.json_folder import JsonFolder
from medseg.scans.reading import ScanError, decoding

NAME = "classes.json"
_ROUNDING = 0.01
"""By how much probabilities that should sum to 1 may miss it: they may be written with two digits."""


class ClassFolder(JsonFolder):
    """A result folder (``<case id>/classes.json``), or a folder of files ``<case id>.json``, anywhere below it.

    Raises:
        MedsegError: there is no such folder.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, NAME, "class probabilities")

    def read(self, case: str, classes: Sequence[str], *, exclusive: bool) -> dict[str, float]:
        """Class → probability of ``case``, in the order of ``classes``.

        Args:
            exclusive: whether a case shows one class and no other, so that they sum to 1.

        Raises:
            MedsegError: there is no file, or several may be meant.
            ScanError: ``unreadable``; ``malformed_classes`` where a class is missing or not known, or something is no
                probability; ``no_distribution`` where they do not sum to 1.
        """
        file = self.file(case)
        with decoding(file, NAME, self.relative(file)):
            body = json.loads(file.read_text(encoding="utf-8"))
        name = self.relative(file)
        if not isinstance(body, dict):
            raise ScanError(f"{name}: expected a probability a class, found {repr(body)[:60]}", "malformed_classes")
        missing, unknown = ([n for n in one if n not in other] for one, other in ((classes, body), (body, classes)))
        if missing or unknown:
            reason = f"no probability of {', '.join(missing)}" if missing else f"the classes {', '.join(unknown)}"
            raise ScanError(
                f"{name}: expected the classes {', '.join(classes)}, found {reason}; name them as the data do",
                "malformed_classes",
            )
        wrong = {n: value for n, value in body.items() if not _is_probability(value)}
        if wrong:
            raise ScanError(
                f"{name}: expected probabilities from 0 to 1, found {wrong}; apply a softmax or sigmoid to logits",
                "malformed_classes",
            )
        total = sum(body.values())
        if exclusive and abs(total - 1) > _ROUNDING:
            raise ScanError(
                f"{name}: expected probabilities of classes that exclude each other, which sum to 1, found {total:.4g}; divide "
                "them by their sum",
                "no_distribution",
            )
        return {n: float(body[n]) for n in classes}


def _is_probability(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value <= 1
