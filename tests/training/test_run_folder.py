import logging

import pytest

from medseg.errors import MedsegError
from medseg.training.run_folder import RunFolder, compare

CONFIG = {"seed": 0, "optim": {"lr": 0.01}, "run": {"dir": "a", "new": False}}


def _begun(run: RunFolder) -> RunFolder:
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "last.ckpt").touch()
    return run


def _end(run: RunFolder) -> None:
    run.model.mkdir()
    (run.model / "model.yaml").touch()


def test_the_same_configuration_goes_on_and_another_is_refused_by_name(tmp_path):
    run = _begun(RunFolder.open(tmp_path / "run", CONFIG))
    assert RunFolder.open(run.path, CONFIG | {"run": {"dir": "b", "new": True}}) == run
    with pytest.raises(MedsegError, match=r"another configuration(.|\n)*optim.lr: was 0.01, now 0.1"):
        RunFolder.open(run.path, CONFIG | {"optim": {"lr": 0.1}})


def test_a_run_that_never_began_is_taken_over(tmp_path):
    run = RunFolder.open(tmp_path / "run", CONFIG)
    (run.path / "plan.yaml").touch()
    RunFolder.open(run.path, CONFIG | {"seed": 1})
    assert not (run.path / "plan.yaml").exists()
    assert compare({"seed": 1}, CONFIG | {"seed": 1}) == ["optim.lr: was None, now 0.01"]


def test_a_folder_of_other_files_is_never_written_to(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(MedsegError, match="found other files"):
        RunFolder.open(tmp_path, CONFIG)


def test_new_starts_another_run_and_the_same_call_goes_on_with_it(tmp_path):
    first = _begun(RunFolder.open(tmp_path / "fold_0", CONFIG, new=True))
    assert first.path.name == "fold_0"
    second = RunFolder.open(tmp_path / "fold_0", CONFIG, new=True)
    assert second.path.name == "fold_0.2"
    assert RunFolder.open(tmp_path / "fold_0", CONFIG, new=True) == second
    _end(second)
    assert RunFolder.open(tmp_path / "fold_0", CONFIG, new=True).path.name == "fold_0.3"


def test_the_log_is_kept_beside_the_run(tmp_path):
    run = RunFolder.open(tmp_path / "run", CONFIG)
    with run.log():
        logging.getLogger("medseg.somewhere").warning("a case was left out")
    logging.getLogger("medseg.somewhere").warning("not any more")
    assert "a case was left out" in (run.path / "log.txt").read_text()
    assert "not any more" not in (run.path / "log.txt").read_text()
