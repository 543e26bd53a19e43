"""An exported graph stands for itself: it says how to feed it and what it means, and a format says what it cannot hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from medseg.errors import MedsegError
from medseg.interop.description import description_of
from medseg.interop.formats import write_as
from medseg.interop.graph import FlatNetwork, example_of
from medseg.interop.onnx import export_onnx
from medseg.interop.openvino import openvino_graph, openvino_library
from medseg.planning.conventions import Conventions
from medseg.planning.plan import Plan
from tests.tiny import LABELS, tiny_model, tiny_plan

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


class Special(nn.Module):
    """Uses a function that neither format has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)


def answer_of_onnx(folder: Path, example: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": example})[0], session.get_modelmeta().custom_metadata_map


def answer_of_openvino(folder: Path, example: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
    library = openvino_library()
    graph = library.Core().read_model(folder / "model.xml")
    said = {f"medseg.{name}": graph.get_rt_info(["medseg", name]).astype(str) for name in ("plan", "labels", "task")}
    said |= {
        f"medseg.{name}": graph.get_rt_info(["medseg", name]).astype(str) for name in ("preprocess", "postprocess")
    }
    answer = library.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({"image": example})
    return answer["logits"], said


@pytest.mark.parametrize(("kind", "answer_of"), [("onnx", answer_of_onnx), ("openvino", answer_of_openvino)])
def test_a_graph_answers_like_the_model_and_says_how_it_is_used(kind, answer_of, tmp_path):
    model = tiny_model(0)
    folder = tmp_path / "graph"
    folder.mkdir()
    write_as(kind, model, folder)
    example = example_of(1, (8, 8, 8))
    found, said = answer_of(folder, example.numpy())
    with torch.no_grad():
        expected = model.network_module()(example).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    (tmp_path / "plan.yaml").write_text(said["medseg.plan"], encoding="utf-8")
    assert Plan.load(tmp_path / "plan.yaml") == model.plan == Plan.load(folder / "plan.yaml")
    assert json.loads(said["medseg.labels"]) == {str(value): name for value, name in LABELS.names.items()}
    assert json.loads(said["medseg.task"]) == {"name": "segmentation"}
    assert (
        "image: float32 (B, 1, 8, 8, 8)" in said["medseg.preprocess"] and "MRI by zscore" in said["medseg.preprocess"]
    )
    assert "softmax over K" in said["medseg.postprocess"]


def test_a_graph_says_whether_logits_or_probabilities_are_averaged():
    own, imported = (
        description_of(tiny_model(0, tiny_plan(conventions=conventions)))
        for conventions in (None, Conventions(averaged="logits"))
    )
    assert "softmax over K, then windows are averaged" in own["medseg.postprocess"]
    assert "windows are averaged, then softmax over K" in imported["medseg.postprocess"]
    assert "conventions" in imported["medseg.preprocess"] and "conventions" not in own["medseg.preprocess"]


@pytest.mark.parametrize(("export", "kind"), [(export_onnx, "ONNX"), (openvino_graph, "OpenVINO")])
def test_an_operator_that_a_format_lacks_is_one_clear_message(export, kind):
    example = torch.ones(1, 1, 4)
    with pytest.raises(MedsegError) as caught:
        export(FlatNetwork(Special()), example)
    said = str(caught.value)
    assert f"{kind} cannot express the network Special" in said and "bessel_j0" in said and "runtime=torch" in said
    assert len(said) < 400 and caught.value.__cause__ is None


@pytest.mark.parametrize(("name", "kind"), [("onnxscript", "onnx"), ("openvino", "openvino")])
def test_what_is_not_installed_names_the_extra(name, kind, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MedsegError, match=rf"pip install 'medseg\[{kind}\]'"):
        write_as(kind, tiny_model(0), tmp_path)
    assert list(tmp_path.iterdir()) == []
