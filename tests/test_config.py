"""``key=value`` becomes a configuration, and mistakes become one message."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg import config
from medseg.errors import MedsegError

TRAIN = ["data=msd", "data.root=somewhere"]


def test_values_are_read_by_hydras_grammar() -> None:
    values = config.compose("train", [*TRAIN, "plan.patch_size=[40,56,40]", "trainer.max_time=01:00:00", "seed=7"])
    assert values["plan"]["patch_size"] == [40, 56, 40]
    assert values["trainer"]["max_time"] == "01:00:00"
    assert values["seed"] == 7


@pytest.mark.parametrize("path", ["/home/müller/scans (1)", "a=b", "C:\\scans", "~/x#y", "it's here", "a b/c.nii.gz"])
def test_paths_need_no_quoting_for_hydra(path: str) -> None:
    assert config.compose("train", ["data=msd", f"data.root={path}"])["data"]["root"] == path


def test_a_list_takes_a_single_value() -> None:
    values = config.compose("train", [*TRAIN, "trust=mynet.Net", "data.skip=p017"])
    assert values["trust"] == ["mynet.Net"] and values["data"]["skip"] == ["p017"]


def test_references_are_resolved() -> None:
    assert config.compose("train", [*TRAIN, "name=mine", "fold=2"])["run"]["dir"] == "runs/mine/fold_2"


def test_an_experiment_serves_every_verb_that_reads_data() -> None:
    for verb, more in {"check": [], "plan": [], "train": [], "evaluate": ["model=runs/x", "out=y"]}.items():
        values = config.compose(verb, ["experiment=hippocampus", "data.root=somewhere", *more])
        assert values["data"]["_target_"].endswith(".msd") and values["name"] == "hippocampus"


def test_the_command_line_goes_before_the_experiment() -> None:
    values = config.compose("train", ["experiment=hippocampus", *TRAIN, "name=mine", "trainer.max_time=null"])
    assert values["name"] == "mine" and values["trainer"]["max_time"] is None


def test_another_target_starts_with_its_own_options() -> None:
    network = config.compose("train", [*TRAIN, "network._target_=mynet.Net", "network.width=8"])["network"]
    assert network == {"_target_": "mynet.Net", "width": 8}
    assert config.compose("train", [*TRAIN, "network={_target_: mynet.Net, width: 8}"])["network"] == network


def test_the_same_target_keeps_its_options() -> None:
    network = config.compose("train", TRAIN)["network"]
    again = config.compose("train", [*TRAIN, f"network._target_={network['_target_']}", "network.dropout=0.5"])[
        "network"
    ]
    assert again == network | {"dropout": 0.5}


def test_what_is_called_takes_options_that_its_file_does_not_list() -> None:
    assert config.compose("train", [*TRAIN, "augment.p_gamma=0"])["augment"]["p_gamma"] == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_tim=1", r"there is no 'trainer\.max_tim' \(did you mean trainer\.max_time\?\)"),
        ("max_time=1", r"there is no 'max_time' \(did you mean trainer\.max_time\?\)"),
        ("netwrok=dynunet", r"there is no 'netwrok' \(did you mean network\?\)"),
        (
            "network=dynunte",
            r"network has no option 'dynunte' \(did you mean dynunet\?\); it has anchor_free, attention_unet, densenet, dynunet",
        ),
        ("runtime=torch", "medseg train has no group 'runtime'; it has data, select, dicom, plan"),
        ("fold=two", "fold: expected a whole number, such as 0, found 'two'"),
        ("fold=0.5", "fold: expected a whole number, such as 0, found 0.5"),
        ("run.new=1", "run.new: expected true or false, such as false, found 1"),
        ("tune=lots", "tune: expected a number, such as 0.1, found 'lots'"),
        ("name=${nothing}", "Interpolation key 'nothing' not found"),
        ("data.skip=[a", "cannot be read as a list or mapping"),
        ("fold", "'fold': expected key=value"),
        ("=3", "'=3': expected key=value"),
        ("fold=0,1", "'fold=0,1': several values; run them all with --multirun"),
        ("hydra.searchpath=[pkg://no_such_package.conf]", "no_such_package.conf is not available"),
        ("hydra.nothing=1", "hydra.nothing"),
    ],
)
def test_a_mistake_has_one_message(override: str, message: str) -> None:
    with pytest.raises(MedsegError, match=message):
        config.compose("train", [*TRAIN, override])


def test_all_mistakes_are_shown_together() -> None:
    with pytest.raises(MedsegError, match=r"(?s)3 mistakes.*'trainr\.ema'.*'nam'.*fold: expected"):
        config.compose("train", [*TRAIN, "trainr.ema=0", "nam=x", "fold=a"])


def test_what_must_be_given_is_asked_for_at_once() -> None:
    with pytest.raises(
        MedsegError, match=r"still to be given: data=…, one of coco, folder, msd, nnunet, npz, table, voc"
    ):
        config.compose("train")
    with pytest.raises(MedsegError, match=r"still to be given: model=… input=… output=…"):
        config.compose("predict")


def test_a_command_that_does_not_exist_names_the_others() -> None:
    with pytest.raises(MedsegError, match=r"no command 'trian' \(did you mean train\?\); there are check, plan, train"):
        config.compose("trian")


def test_a_folder_of_ones_own_adds_options(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /network: dynunet\nname: mine\n", encoding="utf-8"
    )
    for ways in ({"dirs": [tmp_path]}, {}):
        more = [] if ways else [f"hydra.searchpath=[file://{tmp_path}]"]
        values = config.compose("train", [*TRAIN, "experiment=mine", *more], **ways)
        assert values["name"] == "mine" and values["network"]["_target_"].endswith("dynunet")
    with pytest.raises(MedsegError, match="--config-dir: there is no folder"):
        config.compose("train", TRAIN, dirs=[tmp_path / "absent"])


def test_sweeps_expand_with_the_last_one_fastest() -> None:
    jobs = config.sweep(["name=x", "fold=0,1", "seed=range(2)"])
    assert jobs == [["name=x", f"fold={f}", f"seed={s}"] for f in (0, 1) for s in (0, 1)]
    assert config.sweep(["network=glob(*_unet)"]) == [
        [f"network={n}"] for n in ("attention_unet", "plain_unet", "residual_unet", "retina_unet")
    ]
    assert config.sweep(["optim.lr=choice(0.1,0.01)"]) == [["optim.lr=0.1"], ["optim.lr=0.01"]]
    assert config.sweep(["data.root=/x (1)"]) == [["data.root=/x (1)"]]
    with pytest.raises(MedsegError, match="values that can be counted"):
        config.sweep(["optim.lr=interval(0,1)"])
