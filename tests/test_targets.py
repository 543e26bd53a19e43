"""A target becomes a call, and everything that can be mistyped has a message."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from medseg.errors import MedsegError
from medseg.targets import build, partial, resolve


def collect(first: int, *, size: int = 3, folder: Path | None = None) -> dict[str, Any]:
    return {"first": first, "size": size, "folder": folder}


def accept_all(**options: Any) -> dict[str, Any]:
    return options


HERE = "tests.test_targets"


def test_options_and_runtime_arguments_reach_the_function() -> None:
    assert build({"_target_": f"{HERE}.collect", "size": 5}, 1, where="x") == {"first": 1, "size": 5, "folder": None}
    assert build({"_target_": f"{HERE}.collect"}, where="x", first=2)["first"] == 2


def test_a_string_becomes_a_path_where_the_signature_says_path() -> None:
    found = build({"_target_": f"{HERE}.collect", "folder": "~/scans"}, 1, where="x")["folder"]
    assert found == Path.home() / "scans"


def test_a_partial_binds_options_and_waits_for_the_rest() -> None:
    assert partial({"_target_": f"{HERE}.collect", "size": 7}, where="x")(4) == {"first": 4, "size": 7, "folder": None}


def test_keyword_dictionaries_take_everything() -> None:
    assert build({"_target_": f"{HERE}.accept_all", "anything": 1}, where="x") == {"anything": 1}


@pytest.mark.parametrize("make", [build, partial])
def test_an_unknown_argument_names_those_that_there_are(make: Any) -> None:
    with pytest.raises(
        MedsegError,
        match=r"net: tests\.test_targets\.collect\(\) has no argument 'sise'; it accepts first, size, folder\.",
    ):
        make({"_target_": f"{HERE}.collect", "sise": 5}, where="net")


def test_a_missing_argument_is_asked_for_by_its_key() -> None:
    with pytest.raises(MedsegError, match=r"needs 'first'; set data\.first=…"):
        build({"_target_": f"{HERE}.collect"}, where="data")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_package.f", r"there is no module 'no_such_package'.*no_such_package\.py"),
        ("medseg.errors.MedsegEror", r"medseg\.errors has no 'MedsegEror'; did you mean 'MedsegError'"),
        ("medseg.errors.__doc__", "cannot be called"),
        ("name", "expected package.module.name"),
    ],
)
def test_a_target_that_does_not_exist_is_explained(target: str, message: str) -> None:
    with pytest.raises(MedsegError, match=message):
        resolve(target, "data")


def test_a_module_that_lacks_what_it_imports_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lacking.py").write_text("import something_not_installed\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MedsegError, match="importing 'lacking' failed: there is no module 'something_not_installed'"):
        resolve("lacking.Net", "network")
    assert "lacking" not in sys.modules
