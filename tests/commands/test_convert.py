"""A model becomes what another program reads by one command; a mistake leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.cli import main
from medseg.commands.convert import convert
from medseg.errors import MedsegError
from medseg.interop.formats import WRITERS
from medseg.interop.openvino import openvino_library
from medseg.model import save_model
from tests.tiny import tiny_model

pytest.importorskip("onnx")
pytest.importorskip("openvino")


def test_the_command_writes_the_graph(tmp_path: Path) -> None:
    save_model(tiny_model(0), tmp_path / "model")
    assert main(["convert", f"model={tmp_path / 'model'}", "to=openvino", f"output={tmp_path / 'graph'}"]) == 0
    assert {path.name for path in (tmp_path / "graph").iterdir()} == {"model.xml", "model.bin", "plan.yaml"}


def test_the_members_of_an_ensemble_lie_side_by_side_in_every_format(tmp_path: Path) -> None:
    for fold in (0, 1):
        save_model(tiny_model(fold), tmp_path / "model" / f"fold_{fold}" / "model")
    for kind, writer in WRITERS.items():
        output = convert(model=tmp_path / "model", to=kind, output=tmp_path / kind, batch_size=2)
        assert {path.name for path in output.iterdir()} == {"fold_0", "fold_1"}
        assert (output / "fold_1" / writer.sign).is_file()
    graph = openvino_library().Core().read_model(tmp_path / "openvino" / "fold_1" / "model.xml")
    assert list(graph.inputs[0].shape) == [2, 1, 8, 8, 8]


def test_only_a_converted_model_is_replaced_and_only_where_that_is_asked_for(tmp_path: Path) -> None:
    save_model(tiny_model(0), tmp_path / "model")
    output = convert(model=tmp_path / "model", to="bundle", output=tmp_path / "out")
    with pytest.raises(MedsegError, match="exists already.*overwrite=true"):
        convert(model=tmp_path / "model", to="openvino", output=output)
    convert(model=tmp_path / "model", to="openvino", output=output, overwrite=True)
    assert {path.name for path in output.iterdir()} == {"model.xml", "model.bin", "plan.yaml"}
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "mine", tmp_path / "model"):
        with pytest.raises(MedsegError, match="holds no converted model"):
            convert(model=tmp_path / "model", to="openvino", output=folder, overwrite=True)
    with pytest.raises(MedsegError, match="batch_size of 1 or more"):
        convert(model=tmp_path / "model", to="openvino", output=tmp_path / "none", batch_size=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "model", "out"]


def test_a_format_that_does_not_exist_is_named_before_the_model_is_read(tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match="to=tensorrt; expected one of onnx, openvino, bundle"):
        convert(model=tmp_path / "none", to="tensorrt", output=tmp_path / "graph")
    assert list(tmp_path.iterdir()) == []
