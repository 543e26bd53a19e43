"""`check_network`: whether a network keeps the contract of `medseg.networks`, told to its author in words.

It builds the network in each dimension from a small plan with anisotropic strides and looks at shapes, levels, gradients,
determinism, weights and number formats. A network that returns a dictionary is held to the contract of detectors
(`medseg.networks.retina`), one that returns ``(B, K)`` to that of classifiers (`medseg.networks.classifier`). It trains nothing
and says nothing about quality.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from medseg.errors import MedsegError
from medseg.networks import Builder, construct, divisor_of, resolve_builder
from medseg.networks.layout import channels_last
from medseg.planning.plan import Channel, Plan
from medseg.structures import LabelTable

_BATCH = 2
_MAPS, _BOXES, _CLASSES = "a map (or levels)", "a dictionary of boxes", "a logit a class"
_LEVELS = (0, 1)
_ANCHORS = (((2.0, 3.0, 3.0), (3.0, 4.0, 2.0)), ((4.0, 8.0, 8.0),))


def check_network(
    network: Builder | Mapping[str, Any] | str,
    *,
    dimensions: Sequence[int] = (2, 3),
    channels: tuple[int, int] = (2, 3),
    options: Mapping[str, Any] | None = None,
) -> None:
    """Prove that a network can be planned, trained, saved and used for prediction.

    Args:
        network: a builder, a target (``"mynet.Net"``), or a spec ``{"_target_": "mynet.Net", **options}``. Naming a target
            here means trusting it.
        dimensions: those that the network has.
        channels: of input and output; of a detector or a classifier, the number of classes.
        options: further options of the builder; small ones make the check fast. A builder that names ``classes``,
            ``levels``, ``anchors`` or ``mask_channels`` is handed small ones.

    Raises:
        MedsegError: what the contract expects, what was found, and in which dimension.
    """
    spec = {"_target_": network} if isinstance(network, str) else network
    if isinstance(spec, Mapping):
        target = str(spec.get("_target_"))
        divisor_of(spec, trust=(target,))  # refuses a spec without a target
        own = {str(name): value for name, value in spec.items() if name != "_target_"}
        name, builder, options = target, resolve_builder(target, trust=(target,)), own | dict(options or {})
    else:
        name, builder, options = getattr(spec, "__name__", str(spec)), spec, dict(options or {})
    with torch.random.fork_rng(devices=[]):
        for dimension in dimensions:
            _Check(name, builder, options, dimension, channels).run()


class _Check:
    """One network in one dimension."""

    def __init__(
        self, name: str, builder: Builder, options: Mapping[str, Any], dimensions: int, channels: tuple[int, int]
    ) -> None:
        self.name, self.builder = name, builder
        self.dimensions, self.channels = dimensions, channels
        self.kind = ""
        self.options = self._box_options() | dict(options)
        self.plan = _plan(dimensions, getattr(builder, "divisor", None))
        self.sizes = [self.plan.patch_size, tuple(reversed(self.plan.patch_size))]
        if any(n % d for n, d in zip(self.sizes[1], self._divisor(), strict=True)):
            self.sizes.pop()

    def run(self) -> None:
        network = self._build()
        self._check_levels(network)
        self._check_gradients(network, torch.float32)
        self._check_gradients(network, torch.bfloat16)
        self._check_prediction(network)
        self._check_weights(network)

    def _box_options(self) -> dict[str, Any]:
        """What the plan of a detector says beyond that of a segmentation, as far as the builder asks for it."""
        anchors = [[list(size[-self.dimensions :]) for size in level] for level in _ANCHORS]
        known = {
            "classes": self.channels[1],
            "levels": list(_LEVELS),
            "anchors": anchors,
            "mask_channels": self.channels[1],
        }
        return {name: value for name, value in known.items() if name in inspect.signature(self.builder).parameters}

    def _divisor(self) -> tuple[int, ...]:
        divisor = getattr(self.builder, "divisor", self.plan.divisor)
        return (divisor,) * self.dimensions if isinstance(divisor, int) else tuple(divisor)

    def _build(self, deep_supervision: bool = True, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        inputs, outputs = self.channels
        return construct(
            self.builder,
            self.plan,
            outputs,
            self.options,
            name=self.name,
            in_channels=inputs,
            deep_supervision=deep_supervision,
        )

    def _input(self, size: Sequence[int], seed: int = 1) -> Tensor:
        torch.manual_seed(seed)
        return torch.randn(_BATCH, self.channels[0], *size)

    def _expect(self, kept: bool, expected: str, found: object) -> None:
        if not kept:
            raise MedsegError(f"network {self.name} in {self.dimensions}D: expected that {expected}; found {found}")

    def _check_levels(self, network: nn.Module) -> None:
        """Shapes of all outputs; a list in training mode only, and only where levels were asked for."""
        network.train()
        for size in self.sizes:
            with torch.no_grad():
                output = network(self._input(size))
            dense = self._dense(output, size)
            if dense is None:
                continue
            levels = dense if isinstance(dense, list) else [dense]
            tensors = all(isinstance(level, Tensor) for level in levels)
            kinds = [type(level).__name__ for level in levels]
            self._expect(bool(levels) and tensors, "training returns a tensor or a list of tensors", kinds)
            self._expect_shape(levels[0], size, "the first level in training mode")
            shapes = [tuple(level.shape) for level in levels]
            heads = all(shape[:2] == (_BATCH, self._dense_channels) for shape in shapes)
            falling = all(math.prod(b[2:]) < math.prod(a[2:]) for a, b in itertools.pairwise(shapes))
            self._expect(heads and falling, f"levels (B, {self._dense_channels}, *S) come finest first", shapes)
        parameters = inspect.signature(self.builder).parameters.values()
        if any(p.name == "deep_supervision" or p.kind is p.VAR_KEYWORD for p in parameters):
            single = self._build(deep_supervision=False).train()
            with torch.no_grad():
                dense = self._dense(single(self._input(self.sizes[0])), self.sizes[0])
            kept = dense is None or isinstance(dense, Tensor)
            self._expect(kept, "without deep supervision training returns one tensor", type(dense).__name__)

    def _expect_shape(self, output: Tensor, size: Sequence[int], what: str) -> None:
        shape = (_BATCH, self._dense_channels, *size)
        self._expect(tuple(output.shape) == shape, f"{what} has shape {shape}", tuple(output.shape))

    @property
    def _dense_channels(self) -> int:
        return int(self.options.get("mask_channels", self.channels[1]))

    def _dense(self, output: Any, size: Sequence[int]) -> Any:
        """What is left to be checked as a segmentation: the mask of a detector (None without one), or the output itself.

        Nothing is left of a classifier.
        """
        kind = _kind(output)
        self.kind = self.kind or kind
        self._expect(kind == self.kind, f"every output is {self.kind}, as the first one in training mode", kind)
        if kind == _CLASSES:
            self._expect(
                output.shape == (_BATCH, self.channels[1]), f"logits are (B, {self.channels[1]})", output.shape
            )
            return None
        if kind == _MAPS:
            return output
        named = set(output) - {"mask"} in ({"scores", "deltas"}, {"scores", "faces"})
        self._expect(named, "a dictionary holds 'scores' and 'deltas' (or 'faces'), and perhaps a 'mask'", list(output))
        scores, deltas = output["scores"], output["deltas" if "deltas" in output else "faces"]
        kinds = [type(value).__name__ for value in (scores, deltas)]
        self._expect(kinds == ["list", "list"] and bool(scores), "scores and deltas are lists of levels", kinds)
        shapes = [tuple(level.shape) for level in scores], [tuple(level.shape) for level in deltas]
        cells = [shape[2:] for shape in shapes[0]]
        self._expect(cells == [shape[2:] for shape in shapes[1]], "scores and deltas have the same levels", shapes)
        even = all(len(s) == len(size) and not any(n % m for n, m in zip(size, s, strict=True)) for s in cells)
        falling = all(math.prod(b) < math.prod(a) for a, b in itertools.pairwise(cells))
        self._expect(even and falling, f"levels divide {tuple(size)} evenly and come finest first", cells)
        classes, numbers = int(self.options.get("classes", self.channels[1])), 2 * self.dimensions
        fitting = [
            (_BATCH, d[1] // numbers * classes) == s[:2] and not d[1] % numbers for s, d in zip(*shapes, strict=True)
        ]
        self._expect(all(fitting), f"scores are (B, A·{classes}, *S) and deltas (B, A·{numbers}, *S)", shapes)
        return output.get("mask")

    def _check_gradients(self, network: nn.Module, dtype: torch.dtype) -> None:
        """A finite gradient reaches every parameter, in float32 and within bfloat16 autocast; the input stays as it is."""
        network.train()
        network.zero_grad(set_to_none=True)
        x = self._input(self.sizes[0])
        before = x.clone()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            output = network(x)
        levels = _tensors(output)
        finite = all(bool(level.isfinite().all()) for level in levels)
        self._expect(finite, f"the output in {dtype} is finite", "NaN or infinite values")
        self._expect(torch.equal(x, before), "the input is left as it is", "an input that was overwritten")
        # A random direction: the plain sum of what a norm returns has no gradient.
        torch.stack([(level.float() * torch.randn(level.shape)).mean() for level in levels]).sum().backward()
        parameters = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        self._expect(bool(parameters), "the network has parameters", "none")
        without = [name for name, p in parameters if p.grad is None]
        self._expect(not without, "a gradient reaches every parameter", f"none at {_few(without)}")
        broken = [name for name, p in parameters if p.grad is not None and not p.grad.isfinite().all()]
        self._expect(not broken, f"gradients in {dtype} are finite", f"NaN or infinite values at {_few(broken)}")
        network.zero_grad(set_to_none=True)

    def _check_prediction(self, network: nn.Module) -> None:
        """Evaluation: one tensor, the same each time, each sample by itself, whatever the layout in memory."""
        network.eval()
        for size in self.sizes:
            x = self._input(size)
            with torch.no_grad():
                output = network(x)
                dense = self._dense(output, size)
                if dense is not None:
                    kept = isinstance(dense, Tensor)
                    self._expect(kept, "evaluation mode returns one tensor", type(dense).__name__)
                    self._expect_shape(dense, size, "the output in evaluation mode")
                expected, again = _tensors(output), _tensors(network(x))
                same = all(map(torch.equal, again, expected))
                self._expect(same, "evaluation is deterministic", "two different outputs")
                alone = _tensors(network(x[:1]))
                turned = _tensors(network(channels_last(x)))
            told = all(float((whole[0] - whole[1]).abs().max()) > 0 for whole in expected)
            self._expect(told, "the output depends on the input", "the same for two different inputs")
            for whole, one, other in zip(expected, alone, turned, strict=True):
                tolerance = 1e-3 * max(float(whole.abs().max()), 1e-3)
                apart = float((one - whole[:1]).abs().max())
                self._expect(
                    apart <= tolerance, "a sample's output does not depend on its batch", f"a difference of {apart:.3g}"
                )
                apart = float((other - whole).abs().max())
                self._expect(apart <= tolerance, "channels-last input changes nothing", f"a difference of {apart:.3g}")

    def _check_weights(self, network: nn.Module) -> None:
        """Weights survive safetensors, fit a network built again, and follow from the seed."""
        weights = {name: weight.contiguous() for name, weight in network.state_dict().items()}
        try:
            stored = save(weights)
        except (RuntimeError, ValueError) as error:
            raise MedsegError(
                f"network {self.name} in {self.dimensions}D: expected weights that safetensors stores (tensors that share "
                f"no memory; a module registered twice does); found: {error}"
            ) from error
        other = self._build(seed=7)
        try:
            other.load_state_dict(load(stored))
        except RuntimeError as error:
            raise MedsegError(
                f"network {self.name} in {self.dimensions}D: expected the same weights each time it is built; found: {error}"
            ) from error
        x = self._input(self.sizes[0])
        with torch.no_grad():
            same = all(map(torch.equal, _tensors(other.eval()(x)), _tensors(network.eval()(x))))
        self._expect(same, "a network with loaded weights does the same", "another output (state outside state_dict?)")
        again, first = self._build().state_dict(), self._build().state_dict()
        differ = [name for name, weight in first.items() if not torch.equal(weight, again[name])]
        self._expect(not differ, "initial weights follow from torch.manual_seed", f"others at {_few(differ)}")


def _tensors(output: Any) -> list[Tensor]:
    """All tensors of an output, whether it is one, a list of levels, or a dictionary of either."""
    if isinstance(output, dict):
        return [tensor for value in output.values() for tensor in _tensors(value)]
    return list(output) if isinstance(output, (list, tuple)) else [output]


def _kind(output: Any) -> str:
    if isinstance(output, dict):
        return _BOXES
    return _CLASSES if isinstance(output, Tensor) and output.ndim == 2 else _MAPS


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _plan(dimensions: int, divisor: int | Sequence[int] | None) -> Plan:
    """Three stages, the last of which keeps the first axis; a patch of two multiples along one axis, one along others."""
    if dimensions not in (2, 3):
        raise MedsegError(f"expected dimensions of 2 and 3, found {dimensions}")
    ones, twos, flat = (1,) * dimensions, (2,) * dimensions, (1,) + (2,) * (dimensions - 1)
    planned = (2,) + (4,) * (dimensions - 1)
    rows = planned if divisor is None else (divisor,) * dimensions if isinstance(divisor, int) else tuple(divisor)
    multiples = [d * math.ceil(8 / d) for d in rows]
    common = [math.lcm(n, p) for n, p in zip(multiples, planned, strict=True)]
    return Plan(
        task="segmentation",
        orientation="RAS" if dimensions == 3 else "stored",
        channels=(Channel("MRI", "zscore"),),
        labels=LabelTable({1: "organ", 2: "lesion"}),
        crop="none",
        spacing=(1.0,) * dimensions,
        unit="mm",
        image_order=(1,) * dimensions,
        label_order=(1,) * dimensions,
        patch_size=(2 * common[0], *common[1:]),
        batch_size=_BATCH,
        features=(8, 16, 24),
        strides=(ones, twos, flat),
        kernel_sizes=((1,) + (3,) * (dimensions - 1), (3,) * dimensions, (3,) * dimensions),
        blocks=(1, 2, 2),
        mirror_axes=tuple(range(dimensions)),
        foreground=0.5,
        memory_gb=1.0,
    )
