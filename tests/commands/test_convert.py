"""A model becomes a graph by one command; a mistake leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.cli import main
from medseg.commands.convert import convert
from medseg.errors import MedsegError
from medseg.model import save_model
from tests.tiny import tiny_model

pytest.importorskip("openvino")


def test_the_command_writes_the_graph(tmp_path: Path) -> None:
    save_model(tiny_model(0), tmp_path / "model")
    assert main(["convert", f"model={tmp_path / 'model'}", "to=openvino", f"output={tmp_path / 'graph'}"]) == 0
    assert {path.name for path in (tmp_path / "graph").iterdir()} == {"model.xml", "model.bin", "plan.yaml"}


def test_a_format_that_does_not_exist_is_named_before_the_model_is_read(tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match="to=tensorrt: expected one of onnx, openvino"):
        convert(model=tmp_path / "none", to="tensorrt", output=tmp_path / "graph")
    assert list(tmp_path.iterdir()) == []
