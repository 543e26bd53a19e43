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
from medseg.interop.graph import FlatNetwork, example_of
from medseg.interop.onnx import convert_to_onnx, export_onnx
from medseg.interop.openvino import convert_to_openvino, openvino_graph, openvino_library
from medseg.planning.plan import Plan
from tests.tiny import LABELS, tiny_model

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


@pytest.mark.parametrize(
    ("convert", "answer_of"), [(convert_to_onnx, answer_of_onnx), (convert_to_openvino, answer_of_openvino)]
)
def test_a_graph_answers_like_the_model_and_says_how_it_is_used(convert, answer_of, tmp_path):
    model = tiny_model(0)
    folder = convert([model], tmp_path / "graph")
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


def test_the_members_of_an_ensemble_are_a_graph_each_and_nothing_is_replaced_unasked(tmp_path):
    models = [tiny_model(0), tiny_model(1)]
    folder = convert_to_openvino(models, tmp_path / "graphs", batch_size=2)
    assert {path.name for path in folder.glob("*.xml")} == {"model_0.xml", "model_1.xml"}
    graph = openvino_library().Core().read_model(folder / "model_1.xml")
    assert list(graph.inputs[0].shape) == [2, 1, 8, 8, 8]
    with pytest.raises(MedsegError, match="is there already.*overwrite=true"):
        convert_to_openvino(models, folder)
    (tmp_path / "mine").mkdir()
    with pytest.raises(MedsegError, match="expected a folder of graphs to replace"):
        convert_to_openvino(models, tmp_path / "mine", overwrite=True)
    with pytest.raises(MedsegError, match="batch_size of 1 or more"):
        convert_to_openvino(models, tmp_path / "none", batch_size=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graphs", "mine"]


@pytest.mark.parametrize(("export", "kind"), [(export_onnx, "ONNX"), (openvino_graph, "OpenVINO")])
def test_an_operator_that_a_format_lacks_is_one_clear_message(export, kind):
    example = torch.ones(1, 1, 4)
    with pytest.raises(MedsegError) as caught:
        export(FlatNetwork(Special(), example), example)
    said = str(caught.value)
    assert f"{kind} cannot express the network Special" in said and "bessel_j0" in said and "runtime=torch" in said
    assert len(said) < 400 and caught.value.__cause__ is None


@pytest.mark.parametrize(("name", "convert"), [("onnxscript", convert_to_onnx), ("openvino", convert_to_openvino)])
def test_what_is_not_installed_names_the_extra(name, convert, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    extra = "onnx" if convert is convert_to_onnx else "openvino"
    with pytest.raises(MedsegError, match=rf"pip install 'medseg\[{extra}\]'"):
        convert([tiny_model(0)], tmp_path / "graph")
    assert not (tmp_path / "graph").exists()
