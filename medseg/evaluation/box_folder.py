"""Finds the boxes of a case in a folder that any system may have written, and reads those that can be scored.

A box that is none on the scan's grid (no extent, outside it) is left out and said; one that cannot be ranked or has no class
makes its case unusable, as nobody can say what it would have been. Nothing is compared or counted here.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from pathlib import Path

from medseg.evaluation.json_folder import JsonFolder
from medseg.scans import box_json
from medseg.scans.boxes import checked, is_usable
from medseg.scans.reading import ScanError
from medseg.structures import Boxes, LabelTable
from medseg.volume import Geometry

logger = logging.getLogger(__name__)
NAME = "boxes.json"
_HARMLESS = ("zero_area_box", "inverted_box", "outside_image", "beyond_image")
"""Faults of single found boxes that find no lesion whatever they mean: the others of their case can be scored."""


class BoxFolder(JsonFolder):
    """A result folder (``<case id>/boxes.json``), or a folder of files ``<case id>.json``, anywhere below it.

    Raises:
        MedsegError: there is no such folder.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, NAME, "boxes")

    def read(self, case: str, geometry: Geometry, labels: LabelTable) -> tuple[Boxes, dict[str, float]]:
        """The boxes of ``case`` on its scan's grid, each with a score, and the working point that the file states, if any.

        Raises:
            MedsegError: as `file`.
            ScanError: ``no_scores``, ``nan_score``; the kinds of `medseg.scans.boxes` where a box is of no known class, has an
                edge that is no number, or no box of some can be used; and as `medseg.scans.box_json.read`.
        """
        file = self.file(case)
        try:
            marked, stated = box_json.read(file, geometry), box_json.read_working_point(file)
        except ScanError as error:
            raise ScanError(str(error).replace(str(file), self.relative(file)), error.kind) from None
        without = sum(box.score is None for box in marked)
        if without:
            reason = f"{without} of its {len(marked)} found boxes have no score and cannot be ranked; give each one"
            raise ScanError(reason, "no_scores")
        broken = sum(box.score is not None and not math.isfinite(box.score) for box in marked)
        if broken:
            reason = f"{broken} of its {len(marked)} found boxes have a score that is NaN or infinite"
            raise ScanError(f"{reason}; mend what made them", "nan_score")
        boxes, faults = checked(marked, geometry, labels, case)
        serious = faults if not is_usable(faults) else [fault for fault in faults if fault.kind not in _HARMLESS]
        if serious:
            raise ScanError(f"its found boxes: {serious[-1].message}", serious[-1].kind)
        if faults:
            kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(fault.kind for fault in faults).items())
            logger.warning("case %r: found boxes that do not lie on its grid (%s): %s", case, kinds, faults[0].message)
        return boxes, stated
