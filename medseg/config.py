"""Configurations: composed by Hydra, checked, and left behind as plain data.

Owns where ``conf/`` lies and how ``group=option`` and ``key=value`` change a configuration, and says what is wrong with them in
one message. Knows nothing of what a configuration is for; Hydra ends here.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from medseg.errors import MedsegError, all_at_once

Config = dict[str, Any]


def conf_dir() -> Path:
    """The folder of the configuration groups: inside the installed package, beside it in a source tree."""
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise MedsegError(f"the configuration files are missing: expected {package / 'conf'}; install medseg again")


def verbs() -> list[str]:
    """The commands there are: one primary configuration each, in the order in which they are used."""
    order = ("check", "plan", "train", "evaluate", "predict", "explain", "audit", "report")
    names = sorted(path.stem for path in conf_dir().glob("*.yaml"))
    return [*(v for v in order if v in names), *(n for n in names if n not in order)]


def groups(verb: str) -> dict[str, str | None]:
    """Group → its option in the defaults of ``verb``: ``"???"`` must be chosen, None may be."""
    primary = yaml.safe_load((conf_dir() / f"{verb}.yaml").read_text(encoding="utf-8")) or {}
    entries = [entry for entry in primary.get("defaults", ()) if isinstance(entry, Mapping)]
    return {name: option for entry in entries for name, option in entry.items()}


def options(group: str, dirs: Sequence[Path] = ()) -> list[str]:
    """The options of a group, those of the folders ``dirs`` of the user's among them."""
    return sorted({path.stem for folder in (conf_dir(), *dirs) for path in (folder / group).glob("*.yaml")})


def parse(text: str) -> Override:
    """Read ``key=value`` by Hydra's grammar; a value that the grammar refuses (``a (1).nii.gz``, ``müller``) is literal.

    Raises:
        MedsegError: not of the form ``key=value``, or a list or mapping that cannot be read.
    """
    if not re.match(r"(\+{0,2}|~)[A-Za-z_][\w@:./-]*=|~[A-Za-z_][\w@:./-]*$", text):
        raise MedsegError(f"{text!r}: expected key=value (see --help)")
    key, _, value = text.partition("=")
    parser = OverridesParser.create()
    try:
        return parser.parse_override(text)
    except HydraException as error:
        if value[:1] in ("[", "{"):
            raise MedsegError(f"{text!r}: cannot be read as a list or mapping ({_first_line(error)})") from None
    quoted = value.replace("\\", "\\\\").replace("'", "\\'")
    try:
        return parser.parse_override(f"{key}='{quoted}'")
    except HydraException as error:
        raise MedsegError(f"{text!r}: cannot be read ({_first_line(error)})") from None


def sweep(overrides: Sequence[str], dirs: Sequence[Path] = ()) -> list[list[str]]:
    """Expand ``a=1,2``, ``b=range(3)`` and ``group=glob(*)`` into the overrides of each job; the last varies fastest.

    Raises:
        MedsegError: an override cannot be read, or its values cannot be counted.
    """
    jobs: list[list[str]] = [[]]
    for text in overrides:
        override = parse(text)
        values = [text]
        if override.is_sweep_override():
            key = override.get_key_element()
            if not override.is_discrete_sweep():
                raise MedsegError(f"{text!r}: expected values that can be counted, such as a,b or range(3)")
            if override.value_type is not None and override.value_type.name == "GLOB_CHOICE_SWEEP":
                found = override.value().filter(options(override.key_or_group, dirs))  # type: ignore[union-attr]
                values = [f"{key}={option}" for option in found]
            else:
                values = [f"{key}={value}" for value in override.sweep_string_iterator()]
            if not values:
                raise MedsegError(f"{text!r}: no option of {override.key_or_group} is called so")
        jobs = [[*job, value] for job in jobs for value in values]
    return jobs


def compose(verb: str, overrides: Sequence[str] = (), *, dirs: Sequence[Path] = ()) -> Config:
    """The whole configuration of ``verb`` as plain data, every value given and every reference resolved.

    Hydra composes the groups; values are set here. A ``_target_`` that is replaced loses the options of the one before; what
    it accepts is checked against its signature when it is built.

    Args:
        overrides: ``group=option`` and ``key=value``, and whatever else Hydra's grammar has except sweeps.
        dirs: folders of configuration groups of the user's (``--config-dir``), searched after medseg's own.

    Raises:
        MedsegError: lists what does not exist, with close matches, or every value that is still to be given.
    """
    if verb not in verbs():
        raise MedsegError(f"there is no command {verb!r}{_did_you_mean(verb, verbs())}; there are {', '.join(verbs())}")
    parsed = [parse(text) for text in overrides]
    sweeps = [repr(o.input_line) for o in parsed if o.is_sweep_override()]
    if sweeps:
        raise MedsegError(
            f"{', '.join(sweeps)}: several values; run them all with --multirun, or quote them: key=\"'a,b'\""
        )
    known = groups(verb)
    values = [o for o in parsed if _sets_a_value(o, known)]
    choices = [str(o.input_line) for o in parsed if not _sets_a_value(o, known)]
    base = _compose_groups(verb, [*_searchpath(choices, dirs), *choices], dirs)
    before = _tree(base)
    problems = [p for o in values for p in _faults_of(o, before, known)]
    if problems:
        several = all_at_once(f"medseg {verb}: {len(problems)} mistakes", problems)
        raise several if len(problems) > 1 else MedsegError(f"medseg {verb}: {problems[0]}; see medseg {verb} --help")
    _apply(base, values)
    missing = [f"{key}=…" for key, value in _leaves(_tree(base)) if value == "???"]
    if missing:
        raise MedsegError(f"medseg {verb}: still to be given: {' '.join(missing)} (see medseg {verb} --help)")
    return dict(plain(base))


def plain(node: Any) -> Any:
    """A node of a configuration as dicts, lists and values, references resolved."""
    try:
        return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    except OmegaConfBaseException as error:
        raise MedsegError(f"configuration: {_first_line(error)}") from None


def _sets_a_value(override: Override, known: Mapping[str, Any]) -> bool:
    """Whether it sets a value of the composed configuration, rather than choose a group's option or speak to Hydra."""
    if override.is_hydra_override() or override.is_add() or override.is_force_add() or override.is_delete():
        return False
    key = override.key_or_group
    is_group = key in known or (conf_dir() / key).is_dir()
    return not is_group or isinstance(override.value(), dict)


def _searchpath(choices: list[str], dirs: Sequence[Path]) -> list[str]:
    """``--config-dir`` as Hydra's search path; a ``hydra.searchpath=`` of the user's keeps its place before it."""
    given = [text for text in choices if text.startswith("hydra.searchpath=")]
    for text in given:
        choices.remove(text)
    paths = [str(path) for text in given for path in _as_list(parse(text).value())]
    paths += [f"file://{folder.resolve()}" for folder in dirs]
    missing = [str(folder) for folder in dirs if not folder.is_dir()]
    if missing:
        raise MedsegError(f"--config-dir: there is no folder {', '.join(missing)}")
    quoted = ("'" + path.replace("'", "\\'") + "'" for path in paths)
    return [f"hydra.searchpath=[{','.join(quoted)}]"] if paths else []


def _compose_groups(verb: str, choices: list[str], dirs: Sequence[Path]) -> DictConfig:
    known = groups(verb)
    for choice in map(parse, choices):
        if choice.type is not None and _is_unused_group(choice, known):
            has = ", ".join(name for name, option in known.items() if option is not None) or "none"
            raise MedsegError(f"medseg {verb} has no group {choice.key_or_group!r}; it has {has}")
    try:
        with warnings.catch_warnings(), initialize_config_dir(str(conf_dir()), version_base="1.3"):
            warnings.simplefilter("error", UserWarning)  # a search path that does not exist
            return hydra_compose(verb, choices)
    except MissingConfigException as error:
        group, _, option = str(error.missing_cfg_file or "").rpartition("/")
        found = options(group, dirs) if group else []
        if not found:
            raise MedsegError(f"configuration: {_first_line(error)}") from None
        hint = _did_you_mean(option, found)
        raise MedsegError(f"{group} has no option {option!r}{hint}; it has {', '.join(found)}") from None
    except (HydraException, OmegaConfBaseException, UserWarning, yaml.YAMLError) as error:
        for group in (g for g, option in known.items() if option == "???" and f"'{g}'" in _first_line(error)):
            found = options(group, dirs)
            raise MedsegError(f"medseg {verb}: still to be given: {group}=…, one of {', '.join(found)}") from None
        raise MedsegError(f"configuration: {' '.join(str(error).split())}") from None


def _is_unused_group(choice: Override, known: Mapping[str, Any]) -> bool:
    key = choice.key_or_group
    return not choice.is_add() and key not in known and not key.startswith("hydra") and (conf_dir() / key).is_dir()


def _faults_of(override: Override, base: Any, known: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the key or the kind of value of ``override``."""
    key, value, node = override.key_or_group, override.value(), base
    for part in key.split("."):
        if isinstance(node, Mapping) and _is_open(node) and part not in node:
            return
        if not isinstance(node, Mapping) or part not in node:
            last = key.rpartition(".")[2]
            keys = list(dict.fromkeys([*(name for name, _ in _leaves(base)), *base, *known]))
            close = [k for k in keys if k.rpartition(".")[2] == last] or get_close_matches(key, keys, 1, 0.7)
            yield f"there is no {key!r}" + (f" (did you mean {' or '.join(close[:3])}?)" if close else "")
            return
        node = node[part]
    expected = {bool: "true or false", int: "a whole number", float: "a number"}.get(type(node))
    if expected and value is not None and not _is_like(value, node):
        yield f"{key}: expected {expected}, such as {str(node).lower()}, found {value!r}"


def _is_like(value: Any, default: bool | int | float) -> bool:
    if isinstance(value, str) and "${" in value:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    return isinstance(value, int) or (isinstance(value, float) and (isinstance(default, float) or value.is_integer()))


def _is_open(node: Mapping[Any, Any]) -> bool:
    """Whether a mapping takes keys that it does not hold yet: what is called says itself what it accepts."""
    return "_target_" in node or not node


def _apply(base: DictConfig, values: Sequence[Override]) -> None:
    """Set ``values`` in ``base``: a list takes one value as a list of one, a new target drops the options of the old."""
    OmegaConf.set_struct(base, False)
    mine = {override.key_or_group for override in values}
    for override in values:
        key, value = override.key_or_group, override.value()
        name = key.removesuffix("._target_")
        target = value.get("_target_") if isinstance(value, dict) else value if name != key else None
        node = OmegaConf.select(base, name) if target is not None else None
        if isinstance(node, DictConfig) and node.get("_target_", target) != target:
            for option in [str(o) for o in node if f"{name}.{o!s}" not in mine]:
                del node[option]
        old = OmegaConf.select(base, key)
        if isinstance(old, ListConfig) and value is not None and not isinstance(value, list):
            value = [value]
        OmegaConf.update(base, key, value, merge=True, force_add=True)


def _tree(node: DictConfig) -> dict[Any, Any]:
    """A configuration as it stands, with ``???`` and references in it."""
    tree = OmegaConf.to_container(node)
    return tree if isinstance(tree, dict) else {}


def _leaves(node: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its dotted key."""
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _did_you_mean(word: str, words: Sequence[str]) -> str:
    close = get_close_matches(word, words, 1, 0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
