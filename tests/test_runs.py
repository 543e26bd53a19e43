"""Where a verb writes, so that jobs of one multirun do not share it."""

from __future__ import annotations

from medseg.runs import destination


def test_what_is_not_given_is_where_the_verb_writes_by_itself() -> None:
    assert destination("report", {"folder": "results", "out": None}) == "results"
    assert destination("report", {"folder": "results", "out": "page.html"}) == "page.html"
    assert destination("audit", {"evaluation": "scores", "out": None}) == "scores"
    assert destination("train", {"run": {"dir": "runs/a"}}) == "runs/a"
    assert destination("check", {}) is None
