"""From a case to its heat maps: models, a method, a layer, and the way to the scan's own grid and back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from medseg.data.preprocess import preprocess, restore_values
from medseg.errors import MachineError, MedsegError
from medseg.explain.evidence import CaseScore, Evidence
from medseg.explain.grad_cam import depth_cam, grad_cam, grad_cam_plus_plus, hires_cam, layer_cam
from medseg.explain.gradients import gradient, guided_backprop, integrated_gradients, smooth_grad
from medseg.explain.layers import Ran, default_layer, depths_of, layer_members, run_order
from medseg.explain.occlusion import occlusion
from medseg.explain.stitching import Stitching
from medseg.explain.targets import Target, aims_of, region_on_plan
from medseg.inference.predictor import check_member
from medseg.inference.runtime import Precision
from medseg.model import Model
from medseg.structures import HeatMap, Prediction
from medseg.tasks import build_task
from medseg.tiling.windows import window_starts
from medseg.volume import Array, Volume

METHODS: Mapping[str, Callable[..., Array]] = {
    "depth_cam": depth_cam,
    "hires_cam": hires_cam,
    "layer_cam": layer_cam,
    "grad_cam": grad_cam,
    "grad_cam_plus_plus": grad_cam_plus_plus,
    "integrated_gradients": integrated_gradients,
    "smooth_grad": smooth_grad,
    "guided_backprop": guided_backprop,
    "occlusion": occlusion,
    "gradient": gradient,
}
"""A method takes a `CaseScore`, an array ``(C, *S)``, and its own options by keyword (``layers`` from the explainer), and gives
``(*S)`` float32; so for ``depths``."""
AUTO = "auto"
"""`best_method` of the task."""


def best_method(task: str, layer: str | None = None) -> str:
    """What ``auto`` stands for, where a ``layer`` is asked for or none.

    A label or a box says itself where to look, and one layer behind it shows what it rests on; a class does not, and a place
    counts where all depths agree. One weight a cell keeps a map at what is explained, where one a channel lights up whatever
    looks alike; and a volume costs the windows that see the target, not all of them.
    """
    return "depth_cam" if task == "classification" and layer is None else "hires_cam"


class Explainer:
    """An ensemble of models that share one plan, ready to say what their answers rest on.

    Args:
        models: the members; the map is the mean of theirs.
        method: one of `METHODS`, or ``auto``.
        layer: where a CAM method looks, a module by name (``decoder.1``) or a list of modules (``head.lateral``); by default
            as `default_layer`.
        options: of the method (``steps``, ``samples``, ``size`` …).
        overlap: what neighbouring windows share at least; that of the prediction.
        device, precision: as for `TorchRuntime`.
        trust: targets of networks that are not built in.

    Raises:
        MedsegError: no model; members whose plans preprocess differently; a method, option or layer that does not exist.
    """

    def __init__(
        self,
        models: Sequence[Model],
        *,
        method: str = AUTO,
        layer: str | None = None,
        options: Mapping[str, Any] | None = None,
        overlap: float = 0.5,
        device: str = "auto",
        precision: Precision = "auto",
        trust: Sequence[str] = (),
    ) -> None:
        if not models:
            raise MedsegError("explain: expected at least one model, found none")
        for other in models[1:]:
            check_member(models[0], other)
        self.models, self.plan = tuple(models), models[0].plan
        self.method = method = best_method(str(models[0].task["name"]), layer) if method == AUTO else method
        self._options = _checked(method, layer, options or {})
        window_starts((1,), (1,), overlap)  # an impossible overlap is named before any work
        self._how: dict[str, Any] = {"overlap": overlap, "device": device, "precision": precision, "trust": trust}
        self.task = build_task(models[0].task, self.plan)
        self._members = [
            Evidence(model.network_module(trust), self.task, device=device, precision=precision) for model in models
        ]
        self.layer: str | None = None
        if _has_layers(method):
            self.layer = layer or default_layer(self._ran, self.plan.patch_size, self.task.name)
            self._options["layers"] = layer_members(self._ran, self.layer, self.plan.dimensions)
        elif "depths" in inspect.signature(METHODS[method]).parameters:
            self._options["depths"] = depths_of(self._ran, self.plan.patch_size, self.task.name)

    def explain(self, volume: Volume, prediction: Prediction, targets: Sequence[Target]) -> list[HeatMap]:
        """A heat map of each target on the scan's own grid; 0 in what preprocessing cut away.

        Args:
            volume: the scan as it was predicted.
            prediction: what these models said of it.

        Raises:
            MedsegError: a target that the prediction does not have, or a volume on another grid.
            MachineError: the memory does not hold what the method needs.
        """
        if not volume.geometry.matches(prediction.geometry):
            raise MedsegError(
                f"case {prediction.case!r}: expected the scan of the prediction, {prediction.geometry.describe()}, found "
                f"{volume.geometry.describe()}"
            )
        aims = aims_of(prediction, targets)
        dense = [str(aim.target) for aim in aims if aim.target.kind == "label"]
        if dense and self.task.name == "detection":
            raise MedsegError(
                f"case {prediction.case!r}: cannot explain {', '.join(dense)}: a detector is asked about its boxes, as box-1"
            )
        array, restoration = preprocess(volume, self.plan)
        found = []
        for aim in aims:
            region = None if aim.region is None else region_on_plan(aim.region, restoration, self.plan)
            values = restore_values(self.on_grid(array, aim.output, region), restoration)
            found.append(HeatMap(prediction.case, str(aim.target), self.method, values, prediction.geometry))
        return found

    def on_grid(self, array: Array, name: str, region: Array | None = None) -> Array:
        """The map of a preprocessed case on the plan's grid, ``(*S)`` float32, raw.

        Args:
            array: ``(C, *S)`` float32, as `preprocess` gives it.
            name: of the class or label.
            region: ``(*S)``, above 0 where it is asked for: the voxels of a label or lesion, or of a box; None for a class, or
                for everywhere.

        Raises:
            MedsegError: a name that the model does not have, a region that is empty or lies on another grid, a score that does
                not depend on the layer, or weights whose gradient is not finite.
            MachineError: the memory does not hold what the method needs.
        """
        method = METHODS[self.method]
        total = np.zeros(array.shape[1:], np.float32)
        for score in self._scores(array, name, region):
            try:
                total += method(score, array, **self._options) / len(self._members)
            except (MemoryError, torch.OutOfMemoryError) as error:
                raise MachineError(
                    f"explain: the memory does not hold what {self.method} needs for a window {self.plan.patch_size}; take "
                    f"another method, or another device: {error}"
                ) from None
        if not np.isfinite(total).all():
            raise MedsegError(
                f"explain: {self.method} of {name!r} is NaN or infinite: the weights are broken, or the number format is too "
                "narrow; try runtime.precision=float32"
            )
        return total

    def score(self, array: Array, name: str, region: Array | None = None) -> float:
        """The number that is explained: the score of the case, put together from its windows; the mean of the members."""
        return float(np.mean([score(array) for score in self._scores(array, name, region)]))

    def with_shuffled_weights(self, seed: int) -> Explainer:
        """The same with networks that have forgotten (Adebayo et al. 2018, model parameter randomisation).

        Args:
            seed: of the shuffling: the numbers of each parameter are put in another order, which keeps their spread.
        """
        rng = np.random.default_rng(seed)
        models = []
        for model in self.models:
            network = model.network_module(self._how["trust"]).requires_grad_(False)
            for weight in network.parameters():
                order = torch.from_numpy(rng.permutation(weight.numel()))
                weight.copy_(weight.flatten()[order].reshape(weight.shape))
            models.append(replace(model, weights=network.state_dict()))  # under every name that a weight has
        options = {name: value for name, value in self._options.items() if name not in ("layers", "depths")}
        return Explainer(models, method=self.method, layer=self.layer, options=options, **self._how)

    @cached_property
    def _ran(self) -> list[Ran]:
        member = self._members[0]
        window = torch.zeros(1, len(self.plan.channels), *self.plan.patch_size)
        return run_order(member.network, lambda: member.output(window))

    def _scores(self, array: Array, name: str, region: Array | None) -> list[CaseScore]:
        """The score of the case by each member."""
        stitching = Stitching(self.plan, array.shape[1:], self._how["overlap"])
        shares = tuple(stitching.shares(self.task.name, region))
        scores = [CaseScore(member, stitching, name, shares) for member in self._members]
        if self.task.name == "classification" and self.models[0].task.get("pool") == "max":
            return [_surest(score, array) for score in scores]
        return scores


def _surest(score: CaseScore, array: Array) -> CaseScore:
    """A score that is the highest of its windows', not their mean: on this array, that of one of them."""
    alone = [replace(score, shares=(replace(share, weight=1.0),)) for share in score.shares]
    return alone[int(np.argmax([one(array) for one in alone]))]


def _has_layers(method: str) -> bool:
    return "layers" in inspect.signature(METHODS[method]).parameters


def _checked(method: str, layer: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, each of which the method has. Raises MedsegError for what does not exist."""
    if method not in METHODS:
        raise MedsegError(f"explain: method {method!r}; expected one of {', '.join(METHODS)}")
    if layer is not None and not _has_layers(method):
        cams = ", ".join(name for name in METHODS if _has_layers(name))
        raise MedsegError(f"explain: {method} takes no layer; {cams} take one")
    parameters = inspect.signature(METHODS[method]).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("layers", "depths")]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise MedsegError(f"explain: {method} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
    return dict(options)
