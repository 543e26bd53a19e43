"""``classes.json``: how likely each class of a case is, ``{"<name>": probability}``. Decides nothing.

The reader is `medseg.evaluation.class_folder`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from medseg.errors import MedsegError
from medseg.evaluation.class_folder import NAME
from medseg.files import write_text
from medseg.structures import Prediction

__all__ = ["NAME", "write_classes"]


def write_classes(prediction: Prediction, folder: Path) -> Path:
    """``classes.json`` of a prediction, in the order of its classes; returns the path.

    Raises:
        MedsegError: the prediction holds no classes, or a probability is none.
    """
    if not prediction.classes:
        raise MedsegError(f"case {prediction.case!r}: the prediction holds no classes to write")
    values = {name: float(value) for name, value in prediction.classes.items()}
    wrong = {name: value for name, value in values.items() if not (math.isfinite(value) and 0 <= value <= 1)}
    if wrong:
        raise MedsegError(f"case {prediction.case!r}: expected probabilities from 0 to 1, found {wrong}")
    path = folder / NAME
    write_text(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    return path
