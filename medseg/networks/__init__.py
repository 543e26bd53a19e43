"""Networks: one forward contract, and the gate through which a configuration or a model folder names one.

A builder is any callable that returns a module: it is called with those of the plan's numbers that its signature names, and
with the user's own options. The module takes ``(B, C, *S)`` and returns ``(B, K, *S)``, or a list of levels, finest first, in
training mode with deep supervision; a detector returns a dictionary (`retina`), a classifier ``(B, K)`` (`classifier`). A
builder whose input size does not follow from the plan's strides states it in an attribute ``divisor``, 1 where any will do.
Only the targets of ``BUILDERS`` are resolved, unless the caller trusts the very same target: a model folder is data, and data
must not choose code. Nothing heavy is imported before a builder is asked for.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medseg.errors import MedsegError
from medseg.targets import resolve

if TYPE_CHECKING:
    from torch import nn

    from medseg.planning.plan import Plan
    from medseg.planning.topology import Encoder

BUILDERS = (
    "medseg.networks.unet.plain_unet",
    "medseg.networks.unet.residual_unet",
    "medseg.networks.monai_nets.dynunet",
    "medseg.networks.monai_nets.unet",
    "medseg.networks.monai_nets.segresnet",
    "medseg.networks.monai_nets.attention_unet",
    "medseg.networks.monai_nets.swin_unetr",
    "medseg.networks.retina.retinanet",
    "medseg.networks.retina.retina_unet",
    "medseg.networks.retina.anchor_free",
    "medseg.networks.classifier.encoder_classifier",
    "medseg.networks.classifier.densenet",
    "medseg.networks.classifier.resnet",
    "medseg.networks.classifier.efficientnet",
)

Builder = Callable[..., "nn.Module"]
_DECIDED = ("dimensions", "in_channels", "out_channels", "patch_size")
_GIVEN = (*_DECIDED, "features", "strides", "kernel_sizes", "blocks", "deep_supervision")


def resolve_builder(target: str, trust: Sequence[str] = ()) -> Builder:
    """The callable that ``target`` (``package.module.name``) names.

    Raises:
        MedsegError: the target is neither built in nor trusted, or does not exist.
    """
    if target not in BUILDERS and target not in trust:
        raise MedsegError(
            f"network: {target!r} is not one of medseg's own networks ({', '.join(BUILDERS)}). Any other is code that runs "
            f"with your rights: if you know where it comes from, say trust=[{target}]"
        )
    return resolve(target, "network")


def divisor_of(spec: Mapping[str, Any], trust: Sequence[str] = ()) -> int | tuple[int, ...] | None:
    """What the network's input size must be a multiple of; None where it follows from the strides of the plan.

    Raises:
        MedsegError: as `resolve_builder`, or a ``divisor`` that is not one or more positive whole numbers.
    """
    target = _target(spec)
    return _divisor(target, resolve_builder(target, trust))


def encoder_of(spec: Mapping[str, Any], trust: Sequence[str] = ()) -> Encoder:
    """The kind of encoder that the network is planned with: its option ``encoder``, else its builder's, else ``plain``.

    Raises:
        MedsegError: as `resolve_builder`.
    """
    builder = resolve_builder(_target(spec), trust)
    encoder: Encoder = spec.get("encoder") or getattr(builder, "encoder", None) or "plain"
    return encoder


def build_network(
    spec: Mapping[str, Any],
    plan: Plan,
    out_channels: int,
    *,
    in_channels: int | None = None,
    deep_supervision: bool = True,
    trust: Sequence[str] = (),
) -> nn.Module:
    """Build the network that ``spec`` (``{"_target_": …, **options}``) names, as large as the plan says.

    Args:
        spec: target and plain options.
        trust: targets beyond ``BUILDERS`` that the caller vouches for.

    Other arguments and errors are those of `construct`.

    Raises:
        MedsegError: a foreign target.
    """
    target = _target(spec)
    options = {str(name): value for name, value in spec.items() if name != "_target_"}
    return construct(
        resolve_builder(target, trust),
        plan,
        out_channels,
        options,
        name=target,
        in_channels=in_channels,
        deep_supervision=deep_supervision,
    )


def construct(
    builder: Builder,
    plan: Plan,
    out_channels: int,
    options: Mapping[str, Any],
    *,
    name: str,
    in_channels: int | None = None,
    deep_supervision: bool = True,
) -> nn.Module:
    """Call a builder with those of the plan's numbers that it names, and with the options.

    Args:
        out_channels: channels of the output, `Task.out_channels`.
        options: plain values; one with the name of a plan's value (``features``) goes before the plan's.
        name: what messages call the builder.
        in_channels: by default the plan's channels.
        deep_supervision: whether levels are wanted; ``deep_supervision: false`` among the options wins.

    Raises:
        MedsegError: options that the builder does not take, or sizes that do not fit.
    """
    for option, value in options.items():
        _check_plain(f"option {option!r} of {name}()", value)
    decided = [option for option in options if option in _DECIDED]
    if decided:
        raise MedsegError(f"network: {', '.join(decided)} of {name}() follow from plan and labels; leave them out")
    given = {
        "dimensions": plan.dimensions,
        "in_channels": len(plan.channels) if in_channels is None else in_channels,
        "out_channels": out_channels,
        "features": plan.features,
        "strides": plan.strides,
        "kernel_sizes": plan.kernel_sizes,
        "blocks": plan.blocks,
        "patch_size": plan.patch_size,
        "deep_supervision": deep_supervision,
    }
    if plan.boxes is not None:
        given |= {
            "classes": len(plan.labels.names),
            "levels": plan.boxes.levels,
            "anchors": plan.boxes.anchors,
            "mask_channels": len(plan.labels.outputs) if plan.boxes.masks else 0,
        }
    if not deep_supervision:
        options = {option: value for option, value in options.items() if option != "deep_supervision"}
    if plan.boxes is None and "classes" in inspect.signature(builder).parameters and "classes" not in options:
        raise MedsegError(f"network: {name}() finds boxes and needs a plan with boxes; say task=detection")
    _check_size(name, _divisor(name, builder), options.get("strides"), plan)
    arguments = _arguments(name, builder, given, options)
    try:
        network = builder(**arguments)
    except ValueError as error:
        raise MedsegError(f"network: {name}() refuses what it was given: {error}") from error
    from torch import nn  # late: whoever only lists networks does without torch

    from medseg.networks.convolution import make_safe

    if not isinstance(network, nn.Module):
        raise MedsegError(f"network: {name}() must return a torch.nn.Module, found {type(network).__name__}")
    return make_safe(network)


def _divisor(name: str, builder: Builder) -> int | tuple[int, ...] | None:
    divisor = getattr(builder, "divisor", None)
    row = divisor if isinstance(divisor, (tuple, list)) else [1 if divisor is None else divisor]
    if not row or any(not isinstance(d, int) or d < 1 for d in row):
        raise MedsegError(f"network: {name}.divisor: expected a whole number, or one an axis; found {divisor!r}")
    return tuple(row) if isinstance(divisor, list) else divisor


def _arguments(target: str, builder: Builder, given: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``given`` that the builder names, and all ``options``; refuses what it does not take or still lacks."""
    parameters = inspect.signature(builder).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    unknown = [name for name in options if name not in named]
    if unknown and not takes_all:
        accepted = ", ".join(name for name in named if name not in _DECIDED) or "none"
        names = ", ".join(map(repr, unknown))
        raise MedsegError(f"network: {target}() has no argument {names}; it accepts {accepted}.")
    arguments = {name: value for name, value in given.items() if takes_all or name in named} | dict(options)
    lacking = [name for name, p in named.items() if p.default is p.empty and name not in arguments]
    if lacking:
        raise MedsegError(
            f"network: {target}() needs {', '.join(map(repr, lacking))}; the plan gives {', '.join(_GIVEN)}, "
            f"other arguments are options: set network.{lacking[0]}=…"
        )
    return arguments


def _check_size(target: str, divisor: int | tuple[int, ...] | None, strides: Any, plan: Plan) -> None:
    """The plan's patch must be a multiple of what the network, or strides among its options, ask for."""
    rows: tuple[int, ...] = plan.divisor
    if divisor is not None:
        rows = divisor if isinstance(divisor, tuple) else (divisor,) * plan.dimensions
    elif strides is not None:
        try:
            rows = tuple(math.prod(column) for column in zip(*strides, strict=True))
        except TypeError:
            raise MedsegError(f"network: strides need one number an axis for each stage, found {strides!r}") from None
    if len(rows) != plan.dimensions or any(n % d for n, d in zip(plan.patch_size, rows, strict=True)):
        raise MedsegError(
            f"network: {target}() needs sizes that are multiples of {list(rows)}, the plan's patch is "
            f"{list(plan.patch_size)}; set plan.patch_size=…, or make the plan for this network"
        )


def _target(spec: Mapping[str, Any]) -> str:
    target = spec.get("_target_") if isinstance(spec, Mapping) else None
    if not isinstance(target, str):
        raise MedsegError(f"network: expected {{_target_: package.module.name, …}}, found {spec!r}")
    return target


def _check_plain(where: str, value: Any) -> None:
    """Options are data: numbers, strings, booleans, None, and lists and mappings of them."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            _check_plain(where, key)
            _check_plain(where, entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            _check_plain(where, entry)
    elif not (value is None or isinstance(value, (bool, int, float, str))):
        kind = type(value).__name__
        raise MedsegError(
            f"network: {where} must be plain (numbers, strings, booleans, lists and mappings), found {kind}"
        )
