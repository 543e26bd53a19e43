"""One HTML page that needs nothing beside itself: its style, its script and its data stand in it, and it asks no network.

Data stand in blocks that a browser does not run, each parsed when somebody looks at it, so that hundreds of cases open at
once; a policy in the head lets no script run but the page's own, whatever the data say. Knows nothing of cases or figures.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from medseg.files import whole_file

_SCRIPTS = ("dom.js", "state.js", "layers.js", "viewer.js", "findings.js", "cases.js", "evaluation.js", "main.js")
_BREAK = "<!-- data -->"


def write_page(
    path: Path, title: str, details: Iterable[tuple[str, Mapping[str, Any]]], overview: Mapping[str, Any]
) -> int:
    """Write the page, whole or not at all, a detail at a time; returns its size in bytes.

    Args:
        details: key and values of what is parsed only when it is asked for.
        overview: what the page shows at once. It is read when all details are written, so that they may fill it.
    """
    parts = files("medseg.report")
    style = parts.joinpath("page.css").read_text("utf-8")
    script = "\n".join(["'use strict';", *(parts.joinpath(name).read_text("utf-8") for name in _SCRIPTS)])
    page = Template(parts.joinpath("page.html").read_text("utf-8")).substitute(
        title=html.escape(title), style=style, script=script, style_hash=_hash(style), script_hash=_hash(script)
    )
    head, tail = page.split(_BREAK)
    with whole_file(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
        file.write(head)
        for key, detail in details:
            file.write(_block("case", detail, key))
        file.write(_block("overview", overview))
        file.write(tail)
        size = file.tell()
    return size


def _block(kind: str, data: Mapping[str, Any], key: str = "") -> str:
    """Data as JSON in a script element that is not run. No ``<`` is left that could end it."""
    text = json.dumps(_finite(data), ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" class="{kind}-data" data-key="{html.escape(key)}">{text}</script>\n'


def _finite(value: Any) -> Any:
    """Plain values, in which a number that JSON lacks is null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _hash(text: str) -> str:
    """As a content security policy names what may run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
