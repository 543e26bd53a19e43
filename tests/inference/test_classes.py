"""From logits to honest probabilities, by what the working points of models say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medseg.inference.classes import ClassReader
from medseg.structures import LabelTable, Prediction
from medseg.volume import Geometry

NAMES = LabelTable({1: "no", 2: "yes"})
GRID = Geometry.from_spacing((2, 2), (1.0, 1.0))


def model(*, several: bool = False, **point: Any) -> Any:
    return SimpleNamespace(working_point=point, task={"name": "classification", "multilabel": several})


def read(models: list[Any], *logits: float) -> Prediction:
    said = Prediction("a", GRID, NAMES, classes={"no": 0.5, "yes": 0.5})
    return ClassReader.of(models).read(said, np.array(logits))


def test_logits_are_divided_by_the_temperature() -> None:
    found = read([model(temperature=2.0)], 0.0, 2 * np.log(3.0))
    assert found.classes == pytest.approx({"no": 0.25, "yes": 0.75})
    assert found.class_set is None and found.thresholds == {}


def test_a_model_without_working_point_says_what_the_network_says() -> None:
    assert read([model()], 0.0, np.log(3.0)).classes["yes"] == pytest.approx(0.75)


def test_folds_are_averaged_and_what_one_lacks_falls_out() -> None:
    one = model(temperature=1.0, thresholds={"yes": 0.2}, conformal={"alpha": 0.1, "kind": "lac", "level": 0.3})
    two = model(temperature=3.0, thresholds={"yes": 0.4})
    found = read([one, two], 0.0, 2 * np.log(3.0))
    assert found.classes["yes"] == pytest.approx(0.75)
    assert found.thresholds == pytest.approx({"yes": 0.3})
    assert found.class_set is None


def test_the_set_holds_the_classes_that_cannot_be_excluded() -> None:
    sets = {"alpha": 0.1, "kind": "lac", "level": 0.8}  # 1 − p of the truth is 0.8 at most
    assert read([model(conformal=sets)], 0.0, np.log(3.0)).class_set == ("no", "yes")
    assert read([model(conformal=sets)], 0.0, np.log(9.0)).class_set == ("yes",)


def test_levels_of_several_classes_are_averaged_one_by_one() -> None:
    first = {"alpha": 0.1, "kind": "lac", "level": [0.2, 0.6]}
    second = {"alpha": 0.1, "kind": "lac", "level": [0.4, 0.8]}
    point = ClassReader.of([model(several=True, conformal=first), model(several=True, conformal=second)]).point
    assert point["conformal"]["level"] == pytest.approx([0.3, 0.7])
