"""A page stands alone, and nothing in its data can run or reach a network."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medseg.report.pages import write_page
from tests.report.conftest import HOSTILE


def page(tmp_path: Path, title: str = "results", **overview: Any) -> str:
    path = tmp_path / "report.html"
    size = write_page(path, title, [(HOSTILE, {"text": HOSTILE, "number": math.nan})], overview)
    assert size == path.stat().st_size
    return path.read_text("utf-8")


def test_data_come_back_and_no_markup_of_theirs_is_left(tmp_path: Path) -> None:
    text = page(tmp_path, HOSTILE, text=HOSTILE, numbers=[1, math.inf, 2.5])
    blocks = re.findall(
        r'<script type="application/json" class="(\w+)-data" data-key="([^"]*)">(.*?)</script>', text, re.DOTALL
    )
    assert [kind for kind, _, _ in blocks] == ["case", "overview"]
    assert json.loads(blocks[0][2]) == {"text": HOSTILE, "number": None}
    assert json.loads(blocks[1][2]) == {"text": HOSTILE, "numbers": [1, None, 2.5]}
    assert "<script>window" not in text and "<b>t" not in text


def test_only_the_pages_own_script_and_style_may_run(tmp_path: Path) -> None:
    text = page(tmp_path)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert (
        policy is not None and policy[1].startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy[1]
    )
    for tag in ("script", "style"):
        (own,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]


def test_nothing_is_asked_of_a_network(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert not re.search(r"https?://|@import|url\(|\bfetch\(|XMLHttpRequest|WebSocket|sendBeacon", text)
    assert re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', text) == []


def test_the_title_is_escaped_and_the_page_says_what_it_is_not(tmp_path: Path) -> None:
    text = page(tmp_path, "<i>&")
    assert "<title>&lt;i&gt;&amp; · medseg report</title>" in text
    assert "no medical device" in text


def test_what_details_add_to_the_overview_is_written_with_it(tmp_path: Path) -> None:
    cases: list[str] = []

    def details() -> Iterator[tuple[str, dict[str, Any]]]:
        cases.append("a")
        yield "a", {}

    write_page(tmp_path / "p.html", "t", details(), {"cases": cases})
    assert '{"cases":["a"]}' in (tmp_path / "p.html").read_text()


def test_a_page_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def details() -> Iterator[tuple[str, dict[str, Any]]]:
        yield "a", {}
        raise KeyboardInterrupt

    (tmp_path / "p.html").write_text("older")
    with pytest.raises(KeyboardInterrupt):
        write_page(tmp_path / "p.html", "t", details(), {})
    assert (tmp_path / "p.html").read_text() == "older" and len(list(tmp_path.iterdir())) == 1
