"""Splits of made-up patients: what must hold for every seed, order and number of folds."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from medseg.data.splits import Split, Splits, make_splits, obtain_splits
from medseg.errors import MedsegError
from medseg.structures import Case, Source

NOWHERE = (Source("nifti", (Path("x.nii.gz"),)),)


def patients(count: int, *, scans: int = 1, classes: tuple[str, ...] = ()) -> list[Case]:
    """``scans`` cases of each of ``count`` patients; classes take turns."""
    return [
        Case(
            f"p{p:03}_{s}",
            NOWHERE,
            patient=f"p{p:03}",
            class_name=classes[p % len(classes)] if classes else None,
            metadata={"site": f"site{p % 3}"},
        )
        for p in range(count)
        for s in range(scans)
    ]


def patients_of(cases: list[Case], ids: tuple[str, ...]) -> set[str]:
    return {case.patient for case in cases if case.id in ids}


@pytest.mark.parametrize("folds", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [5, 7, 23])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_patient_is_on_two_sides(folds: int, count: int, seed: int) -> None:
    rng = random.Random(seed)
    cases = [Case(f"{p}_{s}", NOWHERE, patient=str(p)) for p in range(count) for s in range(rng.randint(1, 6))]
    splits = make_splits(cases, folds=folds, seed=seed)
    splits.check(cases)
    for split in splits.folds:
        parts = [patients_of(cases, part) for part in (split.fit, split.tune, split.test)]
        assert all(parts)
        assert sum(map(len, parts)) == count
        assert len(set.union(*parts)) == count


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_every_patient_is_tested_exactly_once(folds: int) -> None:
    cases = patients(23, scans=2)
    tested = Counter(case for split in make_splits(cases, folds=folds).folds for case in split.test)
    assert tested == Counter(case.id for case in cases)


def test_folds_are_alike_in_strata_patients_and_cases() -> None:
    rng = random.Random(3)
    cases = [
        Case(f"{p}_{s}", NOWHERE, patient=str(p), class_name=["benign", "malignant", "malignant"][p % 3])
        for p in range(83)
        for s in range(rng.choice([1, 1, 1, 2, 5]))
    ]
    splits = make_splits(cases, folds=5)
    by_patient = {case.patient: case.class_name for case in cases}
    for name in ("benign", "malignant"):
        held = [sum(by_patient[p] == name for p in patients_of(cases, split.test)) for split in splits.folds]
        assert max(held) - min(held) <= 1
    sizes = [len(patients_of(cases, split.test)) for split in splits.folds]
    assert max(sizes) - min(sizes) <= 1
    counts = [len(split.test) for split in splits.folds]
    assert max(counts) - min(counts) <= 5


def test_tune_is_its_share_of_the_rest_and_stratified() -> None:
    cases = patients(100, classes=("a", "b", "b", "b"))
    for split in make_splits(cases, folds=5, tune=0.25).folds:
        assert (len(split.test), len(split.tune), len(split.fit)) == (20, 20, 60)
        assert sum(case.class_name == "a" for case in cases if case.id in split.tune) == 5


def test_tune_is_two_patients_where_there_are_enough() -> None:
    assert [len(split.tune) for split in make_splits(patients(10), folds=5).folds] == [2] * 5
    assert [len(split.tune) for split in make_splits(patients(3), folds=3).folds] == [1] * 3


def test_the_order_of_the_cases_does_not_matter_and_the_seed_does() -> None:
    cases = patients(40, scans=2, classes=("a", "b"))
    shuffled = cases.copy()
    random.Random(0).shuffle(shuffled)
    assert make_splits(shuffled) == make_splits(cases)
    assert make_splits(cases, seed=1).folds != make_splits(cases, seed=0).folds


def test_one_fold_tests_a_fifth() -> None:
    splits = make_splits(patients(20, classes=("a", "b")), folds=1)
    assert len(splits.folds) == 1
    assert len(splits.fold(0).test) == 4


def test_near_duplicates_stay_together_through_several_groups() -> None:
    cases = patients(20)
    groups = [{"p000_0", "p007_0"}, {"p007_0", "p013_0"}]
    for split in make_splits(cases, groups=groups).folds:
        assert len({split.part_of(case) for case in ("p000_0", "p007_0", "p013_0")}) == 1
    with pytest.raises(MedsegError, match="p999"):
        make_splits(cases, groups=[{"p000_0", "p999"}])


def test_strata_come_from_a_mapping_or_from_columns() -> None:
    cases = patients(30)
    by_site = make_splits(cases, strata=["site"])
    by_mapping = make_splits(cases, strata={case.id: case.metadata["site"] for case in cases})
    for splits in (by_site, by_mapping):
        for split in splits.folds:
            assert Counter(c.metadata["site"] for c in cases if c.id in split.test) == {f"site{n}": 2 for n in range(3)}
    with pytest.raises(MedsegError, match="no column grade; they have class, site"):
        make_splits(cases, strata=["grade"])
    with pytest.raises(MedsegError, match="p000_0"):
        make_splits(cases, strata={})


@pytest.mark.parametrize(
    ("count", "folds", "says"), [(2, 5, "found 2 patients"), (4, 5, "set folds=4"), (3, 2, "set folds=3")]
)
def test_too_few_patients_are_counted_and_mended(count: int, folds: int, says: str) -> None:
    with pytest.raises(MedsegError, match=says):
        make_splits(patients(count), folds=folds)


@pytest.mark.parametrize("options", [{"folds": 0}, {"tune": 0.0}, {"tune": 1.0}])
def test_impossible_shares_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(MedsegError, match="expected folds"):
        make_splits(patients(10), **options)  # type: ignore[arg-type]


def test_splits_are_kept_and_obeyed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cases, path = patients(12), tmp_path / "run" / "splits.json"
    first = obtain_splits(cases, path, folds=3)
    assert Splits.load(path) == first
    assert obtain_splits(cases[::-1], path, folds=4, seed=7) == first
    assert "is obeyed" in caplog.text
    assert [p.name for p in path.parent.iterdir()] == ["splits.json"]


def test_new_and_vanished_cases_are_errors_that_name_them(tmp_path: Path) -> None:
    cases, path = patients(12), tmp_path / "splits.json"
    obtain_splits(cases[:-1], path)
    with pytest.raises(MedsegError, match="'p011_0' is in the data but not in the splits"):
        obtain_splits(cases, path)
    with pytest.raises(MedsegError, match="'p000_0' is in the splits but not in the data"):
        obtain_splits(cases[1:-1], path)


def test_a_patient_torn_apart_by_hand_is_found(tmp_path: Path) -> None:
    cases = patients(6, scans=2)
    ids = [case.id for case in cases]
    splits = Splits((Split(tuple(ids[:5]), tuple(ids[5:8]), tuple(ids[8:])),), {})
    with pytest.raises(MedsegError, match="patient 'p002' is in fit and tune of fold 0"):
        splits.check(cases)
    twice = Splits((replace(splits.fold(0), test=tuple(ids[7:])),), {})
    with pytest.raises(MedsegError, match="'p003_1' is 2 times in fold 0"):
        twice.check(cases)


def test_a_damaged_file_says_what_is_expected(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    for text in ("{", "[]", '{"format": 1, "folds": []}', '{"format": 1, "folds": [{"fit": "a"}]}', '{"format": 9}'):
        path.write_text(text)
        with pytest.raises(MedsegError, match=r"splits\.json: expected"):
            Splits.load(path)
    with pytest.raises(MedsegError, match="no splits there"):
        Splits.load(tmp_path / "none.json")


def test_a_fold_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    splits = make_splits(patients(10), folds=3)
    with pytest.raises(MedsegError, match="0 to 2"):
        splits.fold(3)


def test_splits_written_by_hand_need_no_more_than_the_ids(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"format": 1, "folds": [{"fit": ["b", "a"], "tune": ["c"], "test": ["d"]}]}))
    cases = [Case(name, NOWHERE) for name in "abcd"]
    assert obtain_splits(cases, path).fold(0) == Split(("a", "b"), ("c",), ("d",))
