"""``export=dicom``: objects beside the mask that lie where the mask lies, or a refusal before any work."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from medseg.commands.predict import predict
from medseg.errors import MedsegError, SomeFailed
from medseg.model import Model, save_model
from medseg.networks import build_network
from medseg.planning.classes import ClassPlan, Region
from medseg.scans import read_mask
from medseg.scans.find import find
from medseg.structures import LabelTable, as_source
from medseg.volume import Geometry
from tests.dicom_factory import affine_of, write_series
from tests.tiny import POINTWISE, noise, threshold_model, tiny_plan, write_nifti
from tests.validators import dciodvfy_errors

SHAPE = (14, 12, 6)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(threshold_model(tiny_plan()), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two series of one scanner, one of them tilted, and a localizer of two slices."""
    write_series(tmp_path / "scans" / "plain", noise(SHAPE, 1), affine_of(SHAPE), seed="plain")
    write_series(tmp_path / "scans" / "tilted", noise(SHAPE, 2), affine_of(SHAPE), seed="tilted", tilt_degrees=12)
    write_series(tmp_path / "scans" / "scout", noise((14, 12, 2), 3), affine_of((14, 12, 2)), seed="scout")
    return tmp_path / "scans"


def run(model: Path, scans: Path, output: Path, **options: object) -> dict:
    predict(
        model=model,
        input=scans,
        output=output,
        progress=False,
        mirror=False,
        runtime={"device": "cpu", "precision": "float32"},
        trust=[POINTWISE],
        **{"export": {"dicom": True}, "select": {"minimum_slices": 3}, **options},  # type: ignore[arg-type]
    )
    return json.loads((output / "manifest.json").read_text())


def stored(output: Path, case: str) -> tuple[np.ndarray, Geometry]:
    image = nib.load(output / case / "mask.nii.gz")
    return np.asanyarray(image.dataobj), Geometry(image.shape, image.affine)


def test_each_series_gets_objects_that_hold_its_mask(model: Path, scans: Path, tmp_path: Path) -> None:
    body = run(model, scans, tmp_path / "out", save_probabilities=True)
    assert len(body["cases"]) == 2
    for case, record in body["cases"].items():
        folder = tmp_path / "out" / case
        names = {path.name for path in folder.glob("*.dcm")}
        assert {"seg.dcm", "rtstruct.dcm", "sr.dcm", "probability_1-liver.dcm"} <= names
        assert all(dciodvfy_errors(folder / name) == [] for name in sorted(names)[:1])
        mended = any("tilt" in sentence for sentence in record.get("mended", ()))
        mask, geometry = stored(tmp_path / "out", case)
        for kind, name in (("seg", "seg.dcm"), ("rtstruct", "rtstruct.dcm")):
            found, _ = read_mask(as_source(kind, folder / name), geometry, tiny_plan().labels)  # type: ignore[arg-type]
            same = (found == mask).mean()
            assert same == 1 if not mended else same > 0.9, (case, name)
    assert sum(any("tilt" in s for s in record.get("mended", ())) for record in body["cases"].values()) == 1


def test_a_second_run_writes_the_same_objects(model: Path, scans: Path, tmp_path: Path) -> None:
    first = run(model, scans, tmp_path / "one", export={"dicom": True, "seg": "labelmap", "sr": False})
    run(model, scans, tmp_path / "two", export={"dicom": True, "seg": "labelmap", "sr": False})
    for case in first["cases"]:
        for name in ("seg.dcm", "rtstruct.dcm"):
            assert (tmp_path / "one" / case / name).read_bytes() == (tmp_path / "two" / case / name).read_bytes()
        assert not (tmp_path / "one" / case / "sr.dcm").exists()
        assert pydicom.dcmread(tmp_path / "one" / case / "seg.dcm").SegmentationType == "LABELMAP"


def test_what_is_not_dicom_is_refused_before_any_work(model: Path, scans: Path, tmp_path: Path) -> None:
    write_nifti(scans / "stranger.nii.gz", noise(SHAPE))
    with pytest.raises(MedsegError, match=r"export=dicom: expected DICOM series, found 1 .*stranger"):
        run(model, scans, tmp_path / "out", select={})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"export": {"dicom": True, "segs": "binary"}}, r"export: no segs; export=dicom has seg, rtstruct"),
        ({"export": {"dicom": True, "seg": "ternary"}}, r"export\.seg: expected binary, labelmap or none"),
        ({"select": {"minimum": 3}}, r"select: no minimum; a selection has modality"),
        ({"select": {"orientation": "diagonal"}}, r"select\.orientation: no diagonal"),
    ],
)
def test_an_option_that_does_not_exist_stops_before_any_work(
    options: dict, message: str, model: Path, scans: Path, tmp_path: Path
) -> None:
    with pytest.raises(MedsegError, match=message):
        run(model, scans, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_damaged_series_leaves_the_other_one_whole(model: Path, scans: Path, tmp_path: Path) -> None:
    found = find(scans / "plain").sources[0]
    found.source.files[2].unlink()
    with pytest.raises(SomeFailed, match=r"1 of 2 cases failed[\s\S]*missing"):
        run(model, scans, tmp_path / "out")
    body = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [case for case, record in body["cases"].items() if record["status"] == "failed"] == [found.id]


def test_a_classifier_of_regions_writes_no_objects_and_says_so_before_any_work(tmp_path: Path, scans: Path) -> None:
    classes = ClassPlan((0.5, 0.5), region=Region(LabelTable({1: "nodule"}), (8.0, 8.0, 8.0)))
    plan = tiny_plan(task="classification", labels=LabelTable({1: "benign", 2: "malignant"}), classes=classes)
    network = {"_target_": "medseg.networks.classifier.encoder_classifier"}
    weights = build_network(network, plan, 2).state_dict()
    save_model(
        Model(plan=plan, task={"name": "classification"}, network=network, weights=weights), tmp_path / "regions"
    )
    with pytest.raises(MedsegError, match="looks at a part of each scan"):
        run(tmp_path / "regions", scans, tmp_path / "out")
    assert not (tmp_path / "out").exists()
