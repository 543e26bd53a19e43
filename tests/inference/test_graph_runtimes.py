"""Whatever runs the network says the same: every runtime is held to PyTorch in float32."""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache

import numpy as np
import pytest
import torch
from scipy import ndimage

from medseg.data.preprocess import preprocess
from medseg.errors import MedsegError
from medseg.inference.predictor import predict_grid
from medseg.inference.runtime import fast_bf16
from medseg.inference.runtimes import RuntimeOptions, build_runtime
from medseg.interop.graph import flatten
from medseg.model import Model
from medseg.structures import LabelTable
from medseg.tasks import build_task
from medseg.tasks.base import first_level
from medseg.testing.phantoms import make_phantom
from tests.tiny import RETINA, UNET, tiny_boxes, tiny_model, tiny_plan

pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
PLAIN = RuntimeOptions(device="cpu", precision="float32")
PATCH = (16, 16, 16)


@lru_cache
def phantom() -> tuple[np.ndarray, np.ndarray]:
    """A phantom's image (1, *S) as a network sees it, and what is bright in it: muscle, bone and organs, not fat or air."""
    made = make_phantom(0, 0, spacing_mm=4.0)
    plan = tiny_plan(orientation="stored", spacing=made.volume.geometry.spacing, patch_size=PATCH)
    array, _ = preprocess(made.volume, plan)
    return array, ndimage.gaussian_filter(array[0], 1.0) > 0.3


@lru_cache
def trained() -> Model:
    """A small U-Net that has learned, in some seconds, what is bright."""
    array, mask = phantom()
    plan = tiny_plan(labels=LabelTable({1: "bright"}), patch_size=PATCH, mirror_axes=())
    model = tiny_model(0, plan, UNET)
    network = model.network_module().train()
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    rng = np.random.default_rng(0)
    for _ in range(80):
        low = [int(rng.integers(0, n - size + 1)) for n, size in zip(mask.shape, PATCH, strict=True)]
        part = tuple(slice(first, first + size) for first, size in zip(low, PATCH, strict=True))
        x, y = torch.from_numpy(array[(slice(None), *part)])[None], torch.from_numpy(mask[part].astype(np.int64))[None]
        loss = torch.nn.functional.cross_entropy(first_level(network(x)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Model(plan=plan, task=model.task, network=model.network, weights=network.state_dict())


def mask_of(name: str, options: RuntimeOptions) -> np.ndarray:
    model = trained()
    runtime = build_runtime(name, model, options, batch_size=2)
    assert runtime.describe()["runtime"] == name
    task = build_task(model.task, model.plan)
    return predict_grid([runtime], phantom()[0], model.plan, task, batch_size=2).argmax(0) > 0


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("torch", "bf16"),
        ("openvino", "float32"),
        ("openvino", "bf16"),
        ("onnx", "float32"),
        pytest.param("compile", "float32", marks=pytest.mark.slow),
        pytest.param("compile", "bf16", marks=pytest.mark.slow),
    ],
)
def test_masks_of_a_phantom_agree_with_float32_of_pytorch(name, precision):
    if precision == "bf16" and not fast_bf16("cpu"):
        pytest.skip("this CPU has no bf16")
    reference = mask_of("torch", PLAIN)
    assert 0.1 < reference.mean() < 0.9, "the network has learned nothing"
    found = mask_of(name, RuntimeOptions(device="cpu", precision=precision))
    assert 2 * (found & reference).sum() / (found.sum() + reference.sum()) >= 0.999


@pytest.mark.parametrize("name", ["openvino", "onnx"])
def test_a_detector_gives_its_levels_and_its_mask(name):
    plan = tiny_plan(2, task="detection", boxes=tiny_boxes(2, masks=True))
    seed = tiny_model(0, plan, RETINA)
    model = Model(plan=plan, task={"name": "detection"}, network=seed.network, weights=seed.weights)
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = dict(flatten(build_runtime("torch", model, PLAIN)(x)))
    found = dict(flatten(build_runtime(name, model, PLAIN)(x)))
    assert set(found) == set(expected) and {"scores.0", "deltas.0", "mask"} <= set(found)
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, expected[key], atol=1e-4, rtol=1e-4)


def test_fewer_windows_are_filled_up_and_other_sizes_are_refused():
    model = tiny_model(0)
    runtime = build_runtime("openvino", model, PLAIN, batch_size=2)
    x = torch.randn(2, 1, 8, 8, 8)
    torch.testing.assert_close(runtime(x[:1]), runtime(x)[:1], atol=1e-5, rtol=1e-5)
    with pytest.raises(MedsegError, match=r"takes up to 2 windows \(1, 8, 8, 8\), found 1 of \(1, 8, 8, 16\)"):
        runtime(torch.zeros(1, 1, 8, 8, 16))
    with pytest.raises(MedsegError, match="found 3 of"):
        runtime(torch.zeros(3, 1, 8, 8, 8))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("openvino", {"device": "cuda"}, "runs on the CPU.*runtime=torch"),
        ("openvino", {"precision": "fp16"}, "expected auto, bf16 or float32"),
        ("onnx", {"precision": "bf16"}, "runtime=onnx.*expected auto, float32"),
    ],
)
def test_what_a_runtime_cannot_do_is_said(name, options, message):
    with pytest.raises(MedsegError, match=message):
        build_runtime(name, tiny_model(0), RuntimeOptions(**options))


@pytest.mark.parametrize(("name", "package"), [("openvino", "openvino"), ("onnx", "onnxruntime")])
def test_a_runtime_that_is_not_installed_names_its_extra(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MedsegError, match=rf"not installed.*pip install 'medseg\[{name}\]'"):
        build_runtime(name, tiny_model(0), PLAIN)


def test_openvino_opens_no_connection():
    """In a process of its own, watched from before the import to after the end; openvino alone would report its import."""
    code = """
import atexit, sys
seen = []
sys.addaudithook(lambda event, args: seen.append(event) if event.startswith("socket.") else None)
atexit.register(lambda: sys.stdout.write(" ".join(sorted(set(seen))) or "none"))
from medseg.inference.runtimes import RuntimeOptions, build_runtime
from tests.tiny import tiny_model
import torch
build_runtime("openvino", tiny_model(0), RuntimeOptions(device="cpu"))(torch.zeros(1, 1, 8, 8, 8))
assert "openvino" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "none"
