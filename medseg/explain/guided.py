"""The rule of guided backpropagation for whatever rectifier a network has, in modules or as plain functions.

Of ReLU, which Springenberg et al. 2015 had, the rule passes a gradient back where it is positive and the input was. In general:
where it is positive and the function rises, times its slope (of LeakyReLU the small one below 0; of SiLU and GELU none where they
fall). Rectifiers are caught where PyTorch is called, so that neither names nor classes of modules matter. What may hide one, such
as an operation with a backward pass of its own, is refused by name.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from monai.networks.blocks.activation import Swish
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode

from medseg.errors import MedsegError
from medseg.explain.evidence import Evidence
from medseg.networks import layers
from medseg.volume import Array

RECTIFIERS = (
    *("relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "celu", "selu", "silu", "gelu", "mish", "hardswish"),
    *("softplus", "threshold", "hardtanh"),
)
"""Names of PyTorch's functions; those that work in place have ``_`` behind. ReLU6 is a hardtanh."""


class GuidedEvidence(Evidence):
    """An `Evidence` whose gradients obey the rule; it shares the weights of the one it is made of, which stays as it is."""

    def __init__(self, plain: Evidence) -> None:
        super().__init__(_unfused(plain.network), plain.task, device=plain.device, precision=plain.precision)
        # MONAI writes this one as a product, which no call of a rectifier tells.
        self._products = {type(module).__name__ for module in plain.network.modules() if isinstance(module, Swish)}

    def score(self, batch: Tensor, name: str, region: Array | None = None) -> Tensor:
        with _GuidedRule() as rule:
            score = super().score(batch, name, region)
        hidden = _foreign_operations(score) | self._products
        if hidden:
            raise MedsegError(
                f"guided_backprop: the rule cannot be applied to {', '.join(sorted(hidden))} of this network; take another "
                "method, such as gradient"
            )
        if not rule.applied:
            raise MedsegError(
                f"guided_backprop: the network calls none of {', '.join(RECTIFIERS)}, so that there is nothing to guide; "
                "take method=gradient"
            )
        return score


class _GuidedRule(TorchFunctionMode):
    """While it is entered, gradients obey the rule at every call of a rectifier; results are the same, but never in place."""

    applied = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "").removesuffix("_") not in RECTIFIERS:
            return func(*args, **kwargs)
        x, *options = args or (kwargs.pop("input"),)
        self.applied += 1
        x = x.clone()
        y = func(x.clone(), *options, **kwargs)  # in place, perhaps
        if y.requires_grad:
            y.register_hook(torch.relu)
            x.register_hook(torch.relu)
        return y


def _unfused(network: nn.Module) -> nn.Module:
    """A copy with the same weights, whose rectifiers are all calls of PyTorch's functions."""
    kept = [*network.parameters(), *network.buffers()]
    network = copy.deepcopy(network, {id(tensor): tensor for tensor in kept})
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, layers.InstanceNorm) and child.slope != 1:
                setattr(parent, name, nn.Sequential(child, nn.LeakyReLU(child.slope)))
                child.slope = 1.0
    return network


def _foreign_operations(score: Tensor) -> set[str]:
    """Names of the operations behind ``score`` that have a backward pass of their own; ours are known and rectify nothing."""
    found: set[str] = set()
    seen: set[Any] = set()
    ahead: list[Any] = [score.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        ahead += [before for before, _ in node.next_functions]
        if isinstance(node, BackwardCFunction):
            operation = type(node)._forward_cls  # type: ignore[attr-defined]
            if operation.__module__ != layers.__name__:
                found.add(operation.__name__)
    return found
