"""``medseg import``: a folder appears whole, and only a model is ever replaced."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.cli import main
from medseg.commands.import_model import import_model
from medseg.errors import MedsegError
from medseg.inference.predictor import Predictor
from medseg.model import load_members, save_model
from medseg.volume import Geometry, Volume, reorient, reorientation_to
from tests.interop.nnunet_folder import write_folder
from tests.tiny import noise, tiny_model, write_nifti


def test_an_imported_model_predicts_from_the_command_line(tmp_path: Path) -> None:
    write_folder(tmp_path / "nnunet", mirror=[0, 1, 2])
    write_nifti(tmp_path / "scans" / "a_0000.nii.gz", noise((14, 11, 7)))
    assert main(["import", "from=nnunet", f"source={tmp_path / 'nnunet'}", f"output={tmp_path / 'model'}"]) == 0
    command = ["predict", f"model={tmp_path / 'model'}", f"input={tmp_path / 'scans'}", f"output={tmp_path / 'out'}"]
    assert main([*command, "report=false", "overlays=false", "save_probabilities=true"]) == 0
    (mask,) = (tmp_path / "out").rglob("mask.nii.gz")
    values = np.asarray(nib.load(mask).dataobj)
    assert values.shape == (14, 11, 7)
    assert set(np.unique(values)) <= {0, 1, 2}


def test_several_folds_become_an_ensemble_and_one_a_model(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "nnunet", folds=(0, 1))
    import_model(kind="nnunet", source=source, output=tmp_path / "both")
    assert len(load_members(tmp_path / "both")) == 2
    import_model(kind="nnunet", source=source, output=tmp_path / "one", folds=[1])
    assert load_members(tmp_path / "one")[0].training["fold"] == 1


def test_a_scan_is_turned_to_how_the_files_lay_that_a_model_was_trained_on(tmp_path: Path) -> None:
    """nnU-Net takes axes as they are stored: a DICOM series lies otherwise than what dcm2niix made of such series."""
    source = write_folder(tmp_path / "nnunet")
    trained = Volume(noise((14, 11, 7))[None], Geometry((14, 11, 7), np.diag([-1.0, 1.0, 1.0, 1.0])))
    assert trained.geometry.axis_codes == "LAS"
    series = reorient(trained, "LPS")
    masks = {}
    for orientation in (None, "LAS"):
        import_model(kind="nnunet", source=source, output=tmp_path / str(orientation), orientation=orientation)
        predictor = Predictor(load_members(tmp_path / str(orientation)))
        masks[orientation] = [predictor.predict_volume(volume, "a").mask for volume in (trained, series)]
    turn = reorientation_to(series.geometry, "LAS")
    like_trained, from_series = masks["LAS"]
    np.testing.assert_array_equal(like_trained, masks[None][0])
    np.testing.assert_array_equal(turn.apply(from_series[None])[0], like_trained)
    assert (turn.apply(masks[None][1][None])[0] != like_trained).any()


def test_an_orientation_that_cannot_be_is_refused(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "nnunet")
    with pytest.raises(MedsegError, match="expected stored, or axis codes"):
        import_model(kind="nnunet", source=source, output=tmp_path / "model", orientation="LLS")
    source = write_folder(tmp_path / "turning", image_reader_writer="SimpleITKIOWithReorient")
    with pytest.raises(MedsegError, match="turns scans to RAS"):
        import_model(kind="nnunet", source=source, output=tmp_path / "model", orientation="LAS")


def test_only_a_model_is_replaced(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "nnunet")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("text")
    for overwrite in (False, True):
        with pytest.raises(MedsegError, match="output"):
            import_model(kind="nnunet", source=source, output=tmp_path / "mine", overwrite=overwrite)
    save_model(tiny_model(), tmp_path / "model")
    with pytest.raises(MedsegError, match="overwrite=true"):
        import_model(kind="nnunet", source=source, output=tmp_path / "model")
    import_model(kind="nnunet", source=source, output=tmp_path / "model", overwrite=True)
    assert load_members(tmp_path / "model")[0].training["made_by"] == "nnU-Net"
    assert (tmp_path / "mine" / "thesis.txt").is_file()


def test_nothing_is_left_where_an_import_fails(tmp_path: Path) -> None:
    with pytest.raises(MedsegError):
        import_model(kind="nnunet", source=tmp_path / "nowhere", output=tmp_path / "model")
    with pytest.raises(MedsegError, match="from=keras"):
        import_model(kind="keras", source=tmp_path, output=tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
