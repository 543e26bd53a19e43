"""From ``{"_target_": "package.module.name", **options}`` to a call, with a message for all that can be mistyped.

Only what the user of a command has named goes through here: a model folder is data, and `medseg.networks.build_network`
guards which targets it may name. Knows nothing of configuration files.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from medseg.errors import MedsegError


def build(spec: Mapping[str, Any], *args: Any, where: str, **runtime: Any) -> Any:
    """Call the target of ``spec`` with its options.

    Args:
        spec: target and options. A string becomes a Path where the signature says Path.
        args, runtime: what the program itself gives; the options may not name it again.
        where: the part of the configuration, for messages (``"data"``).

    Raises:
        MedsegError: the target does not exist, has no such argument, or needs one that is not given.
    """
    function, options = _prepare(spec, where, runtime)
    _check_complete(function, str(spec["_target_"]), where, args, options | runtime)
    return function(*args, **options, **runtime)


def partial(spec: Mapping[str, Any], *, where: str, aside: Sequence[str] = (), **runtime: Any) -> Callable[..., Any]:
    """The target of ``spec`` with its options bound, to be called later. Raises MedsegError as `build` does.

    Args:
        aside: options that the program takes itself; the target never sees them.
    """
    function, options = _prepare(spec, where, runtime, aside)
    return functools.partial(function, **options, **runtime)


def resolve(target: str, where: str) -> Callable[..., Any]:
    """Import what ``target`` names; classes may hold functions (``package.module.Class.method``).

    Raises:
        MedsegError: it cannot be imported, does not exist, or cannot be called.
    """
    parts = target.split(".") if isinstance(target, str) else []
    if len(parts) < 2 or not all(parts):
        raise MedsegError(f"{where}._target_: expected package.module.name, found {target!r}")
    found: Any = _import_longest(parts[:-1], target, where)
    for part in parts[len(found.__name__.split(".")) :]:
        holder, found = found, getattr(found, part, None)
        if found is None:
            close = get_close_matches(part, dir(holder), 1, 0.6)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise MedsegError(f"{where}: {target!r}: {getattr(holder, '__name__', holder)} has no {part!r}{hint}")
    if not callable(found):
        raise MedsegError(f"{where}: {target!r} cannot be called; expected a function or a class")
    return found  # type: ignore[no-any-return]


def _import_longest(parts: Sequence[str], target: str, where: str) -> Any:
    """The module that the longest beginning of ``parts`` names."""
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                reason = f"there is no module {error.name!r}"
                raise MedsegError(f"{where}: importing {name!r} failed: {reason}; install it") from None
    raise MedsegError(
        f"{where}: {target!r}: there is no module {parts[0]!r}; expected one that is installed, or a file {parts[0]}.py "
        "in the folder where you stand"
    )


def _prepare(
    spec: Mapping[str, Any], where: str, runtime: Mapping[str, Any], aside: Sequence[str] = ()
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function of ``spec`` and its options, each of which it accepts."""
    if not isinstance(spec, Mapping) or "_target_" not in spec:
        raise MedsegError(f"{where}: expected {{_target_: package.module.name, …}}, found {spec!r}")
    target = spec["_target_"]
    function = resolve(target, where)
    options = {str(name): value for name, value in spec.items() if name not in ("_target_", *aside)}
    parameters = _parameters(function)
    if parameters is None:
        return function, options
    named = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [name for name in options if name in runtime or (name not in named and not takes_all)]
    if unknown:
        accepted = ", ".join(name for name in (*named, *aside) if name not in runtime) or "none"
        names = ", ".join(map(repr, unknown))
        raise MedsegError(f"{where}: {target}() has no argument {names}; it accepts {accepted}.")
    return function, {name: _as_annotated(value, named.get(name)) for name, value in options.items()}


def _check_complete(
    function: Callable[..., Any], target: str, where: str, args: Sequence[Any], given: Mapping[str, Any]
) -> None:
    parameters = _parameters(function)
    if parameters is None:
        return
    positional = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    filled = {*positional[: len(args)], *given}
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    lacking = [n for n, p in parameters.items() if p.default is p.empty and p.kind not in optional and n not in filled]
    if lacking:
        raise MedsegError(f"{where}: {target}() needs {', '.join(map(repr, lacking))}; set {where}.{lacking[0]}=…")


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    """The parameters of ``function``, or None for one that does not tell (written in C)."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None


def _as_annotated(value: Any, parameter: inspect.Parameter | None) -> Any:
    """Strings become Paths where the signature says so; ``~`` is the user's home."""
    if parameter is None or "Path" not in str(parameter.annotation):
        return value
    if isinstance(value, (list, tuple)):
        return [Path(entry).expanduser() if isinstance(entry, str) else entry for entry in value]
    return Path(value).expanduser() if isinstance(value, str) else value
