"""One page over whatever folder predict or evaluate wrote, and a clear word where there is nothing to show."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from medseg.commands.report import report
from medseg.errors import MedsegError
from medseg.export.manifest import Manifest, Record


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    return written(folder, "benign", "odd name")


def written(folder: Path, *cases: str) -> Path:
    """A result folder with classes alone."""
    manifest = Manifest(folder, models={"": {"sha256": "a"}}, options={}, labels={1: "benign"}, versions={})
    for case in cases:
        (folder / case).mkdir(parents=True)
        (folder / case / "classes.json").write_text('{"benign": 0.5}')
        manifest.record(case, Record("done", folder=case))
    manifest.record("bad", Record("failed", reason="cut short"))
    manifest.save()
    return folder


def overview(page: Path) -> dict[str, object]:
    text = page.read_text("utf-8").rpartition('class="overview-data" data-key="">')[2]
    return dict(json.loads(text.partition("</script>")[0]))


def keys(page: Path) -> list[str]:
    cases = overview(page)["cases"]
    assert isinstance(cases, list)
    return [case["key"] for case in cases]


def test_the_page_lies_in_the_folder_and_is_said_with_its_size(results: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "medseg"):
        page = report(results, progress=False)
    assert page == results / "report.html" and keys(page) == ["bad", "benign", "odd name"]
    assert "3 cases, 1 of them failed, unfinished or damaged, 0.1 MB" in caplog.text
    assert report(results, progress=False) == page and keys(page) == [
        "bad",
        "benign",
        "odd name",
    ]  # again, over its own page


def test_the_page_may_lie_elsewhere(results: Path, tmp_path: Path) -> None:
    page = report(results, tmp_path / "page.html", progress=False)
    assert page == tmp_path / "page.html" and not (results / "report.html").exists()
    assert str(tmp_path) not in page.read_text()


def test_an_evaluation_brings_the_cases_that_it_predicted(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    written(folder / "predictions", "a")
    (folder / "summary.json").write_text('{"dice": {"mean": {"value": 0.5, "low": null, "high": null, "n": 1}}}')
    page = report(folder, progress=False)
    evaluation = overview(page)["evaluation"]
    assert isinstance(evaluation, dict) and evaluation["metrics"][0]["value"] == 0.5 and keys(page) == ["a", "bad"]


def test_folds_that_share_cases_are_told_apart(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    for fold in (0, 1):
        written(folder / "predictions" / f"fold_{fold}", "a")
    (folder / "summary.json").write_text("{}")
    page = report(folder, progress=False)
    assert keys(page) == ["fold_0/a", "fold_0/bad", "fold_1/a", "fold_1/bad"]
    assert [made["group"] for made in overview(page)["made"]] == ["fold_0", "fold_1"]  # type: ignore[attr-defined]


def test_an_evaluation_without_predictions_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    assert keys(report(tmp_path, progress=False)) == []


def test_a_folder_without_a_manifest_says_how_to_go_on(results: Path) -> None:
    (results / "manifest.json").unlink()
    with pytest.raises(MedsegError, match=r"holds results but no manifest\.json.*Run the same command again"):
        report(results, progress=False)
    assert not (results / "report.html").exists()


def test_what_is_neither_result_nor_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match=r"expected a result folder .* or an evaluation folder .*, found neither"):
        report(tmp_path, progress=False)
    with pytest.raises(MedsegError, match="expected a result or evaluation folder, found none at"):
        report(tmp_path / "nowhere", progress=False)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(MedsegError, match=r"manifest\.json: not readable as JSON"):
        report(tmp_path, progress=False)


@pytest.mark.parametrize("out", ["results", "nowhere/page.html"])
def test_a_page_that_cannot_be_written_is_said_before_any_work(results: Path, tmp_path: Path, out: str) -> None:
    with pytest.raises(MedsegError, match="expected the name of a page in a folder that is there"):
        report(results, tmp_path / out, progress=False)
