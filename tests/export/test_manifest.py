"""The manifest remembers what is done and refuses what other models or options made."""

from __future__ import annotations

import json

import pytest

from medseg.errors import MedsegError
from medseg.export.manifest import Manifest, Record, read_manifest, records


def manifest(folder, sha="aa", **options):
    return Manifest(
        folder,
        models={"": {"sha256": sha}},
        options={"overlap": 0.5, **options},
        labels={1: "liver"},
        versions={"medseg": "0"},
    )


def test_what_is_recorded_is_read_back(tmp_path):
    record = Record("done", 1.5, "a", ("a.nii.gz",), "k", ("sheared",), figures={"liver_ml": 2.0, "x": float("nan")})
    with manifest(tmp_path).saving() as first:
        first.record("a", record)
        first.record("b", Record("failed", reason="cut short"))
    body = read_manifest(tmp_path)
    assert body["labels"] == {"1": "liver"}
    again = records(body)
    assert again["a"].figures == {"liver_ml": 2.0}
    assert again["a"].folder == "a"
    assert again["a"].mended == ["sheared"]
    assert again["b"].reason == "cut short"
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_a_resumed_manifest_holds_what_is_done_and_tries_the_rest_again(tmp_path):
    with manifest(tmp_path).saving() as first:
        first.record("a", Record("done", folder="a"))
        first.record("b", Record("failed", reason="cut short"))
    second = manifest(tmp_path)
    second.resume()
    assert list(second.cases) == ["a"]


def test_versions_may_differ_but_models_and_options_may_not(tmp_path):
    manifest(tmp_path).save()
    with pytest.raises(MedsegError, match=r"other models \(sha256: there \"aa\", now \"bb\"\).*overwrite=true"):
        manifest(tmp_path, "bb").resume()
    with pytest.raises(MedsegError, match="other options .*mirror"):
        manifest(tmp_path, mirror=True).resume()
    manifest(tmp_path).resume()


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"format": 7, "cases": {}})])
def test_a_foreign_manifest_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(MedsegError, match=r"manifest\.json"):
        manifest(tmp_path).resume()


def test_an_interrupted_run_still_saves_what_was_done(tmp_path):
    def interrupted():
        with manifest(tmp_path).saving() as first:
            first.record("a", Record("done"))
            first.record("b", Record("done"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(read_manifest(tmp_path)["cases"]) == ["a", "b"]
