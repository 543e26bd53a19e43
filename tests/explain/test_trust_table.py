from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.explain.sanity import SAME_WITHOUT_WEIGHTS, UNRELIABLE
from medseg.explain.trust import TrustCase
from medseg.explain.trust_table import TrustTable, format_trust, gather, write_trust

GOOD = {"deletion": 0.2, "insertion": 0.8, "energy_near": 0.7, "stability": 0.9, "shuffled_rank": 0.1}
BASELINES = {
    "random": {"deletion": 0.5, "insertion": 0.5, "energy_near": 0.15},
    "edges": {"deletion": 0.4, "insertion": 0.6, "energy_near": 0.2},
    "centre": {"deletion": 0.5, "insertion": 0.5, "energy_near": 0.3},
}
Change = Callable[[int, dict[str, float]], dict[str, float]]


def cohort(n: int = 12, change: Change = lambda i, own: own) -> list[TrustCase]:
    """Cases of lesions of size 1, 2, …; figures vary a little from case to case, alike in all methods."""
    cases = []
    for i in range(n):
        jitter = 0.02 * math.sin(i)
        values = {"grad_cam": change(i, dict(GOOD)), **BASELINES}
        values = {m: {k: v + jitter * (k != "stability") for k, v in own.items()} for m, own in values.items()}
        cases.append(TrustCase(f"c{i}", f"p{i}", "class-mass", values, {}, float(i + 1)))
    return cases


def verdicts(table: TrustTable) -> list[bool | None]:
    return [check.passed for check in table.checks]


def test_a_good_method_reaches_the_aim() -> None:
    table = gather(cohort(), "grad_cam", samples=200)
    assert table.passed is True and verdicts(table) == [True] * 7
    assert (table.cases, table.patients) == (12, 12)
    ahead = {check.claim: check.estimate for check in table.checks}
    assert ahead["deletion better than edges (by how much)"].value == pytest.approx(0.2)
    near = table.estimates["grad_cam"]["energy_near"]
    assert near.low <= near.value <= near.high and near.n == 12


@pytest.mark.parametrize(
    ("change", "at"),
    [
        ({"energy_near": 0.45}, [0, 1]),
        ({"energy_near": 0.55}, [1]),  # not twice the blob's 0.3
        ({"deletion": 0.45}, [3]),  # better than random, not than edges
        ({"insertion": 0.4}, [4, 5]),
        ({"shuffled_rank": 0.8}, [6]),
        ({"stability": 0.1, "shuffled_rank": 0.0}, [6]),
    ],
)
def test_each_shortcoming_fails_its_own_check(change: dict[str, float], at: list[int]) -> None:
    table = gather(cohort(change=lambda i, own: own | change), "grad_cam", samples=200)
    assert [i for i, passed in enumerate(verdicts(table)) if not passed] == at
    assert table.passed is False


def test_ahead_in_the_mean_is_not_better_unless_the_interval_leaves_out_zero() -> None:
    def sometimes(i: int, own: dict[str, float]) -> dict[str, float]:
        return own | {"deletion": 0.0 if i % 2 else 0.7}

    check = gather(cohort(change=sometimes), "grad_cam").checks[3]
    assert check.estimate.value == pytest.approx(0.05) and check.estimate.low < 0 and check.passed is False


def test_pairs_are_compared_case_by_case() -> None:
    cases = cohort(change=lambda i, own: own | {"deletion": math.nan if i < 6 else 0.2})
    gain = gather(cases, "grad_cam", samples=200).checks[3].estimate
    assert gain.n == 6 and gain.value == pytest.approx(0.2)  # edges of the first six cases are not in it


def test_what_was_not_measured_is_not_judged() -> None:
    wanted = {"deletion", "insertion", "stability"}
    table = gather(cohort(change=lambda i, own: {k: v for k, v in own.items() if k in wanted}), "grad_cam", samples=200)
    assert verdicts(table) == [None, None, True, True, True, True, None] and table.passed is None
    few = gather(cohort(4), "grad_cam")
    assert verdicts(few) == [True, True, None, None, None, None, True] and few.passed is None


def test_a_map_that_does_not_depend_on_the_weights_is_flagged() -> None:
    assert gather(cohort(), "grad_cam").flags == dict.fromkeys(("grad_cam", *BASELINES), ())
    same = gather(cohort(change=lambda i, own: own | {"shuffled_rank": 0.75}), "grad_cam")
    assert same.flags["grad_cam"] == (SAME_WITHOUT_WEIGHTS,)
    noise = gather(cohort(change=lambda i, own: own | {"stability": 0.05}), "grad_cam")
    assert noise.flags["grad_cam"] == (UNRELIABLE,)


def test_thirds_go_by_the_size_of_the_lesion() -> None:
    cases = cohort(change=lambda i, own: own | {"energy_near": i / 11})
    cases.append(TrustCase("healthy", "p0", "class-mass", {"grad_cam": {"deletion": 0.3}}, {}, math.nan))
    table = gather(cases, "grad_cam", samples=50)
    own = table.estimates["grad_cam"]
    thirds = [own[f"energy_near_{word}"] for word in ("small", "medium", "large")]
    assert [e.n for e in thirds] == [4, 4, 4]
    assert [e.value for e in thirds] == pytest.approx([1.5 / 11, 5.5 / 11, 9.5 / 11], abs=0.02)
    assert 4 < table.size_edges[0] < 5 and 8 < table.size_edges[1] < 9
    assert own["deletion"].n == 13 and own["energy_near"].n == 12
    assert gather(cases[:2], "grad_cam").size_edges == ()


def test_patients_are_drawn_not_cases() -> None:
    single = gather(cohort(20), "grad_cam").estimates["grad_cam"]["deletion"]
    cases = [TrustCase(c.id, f"p{i // 4}", c.target, c.values, {}, c.size) for i, c in enumerate(cohort(20))]
    table = gather(cases, "grad_cam")
    assert table.patients == 5 and table.estimates["grad_cam"]["deletion"].value == pytest.approx(single.value)
    assert table.estimates["grad_cam"]["deletion"].low != single.low


def test_the_files_say_all_of_it(tmp_path: Path) -> None:
    cases = cohort(change=lambda i, own: own | {"shuffled_rank": 0.9, "insertion": math.nan})
    table = gather(cases, "grad_cam", samples=200)
    write_trust(tmp_path / "deep", cases, table)
    with (tmp_path / "deep" / "trust.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "target", "method", "measure", "value"]
    assert len(rows) == 12 * (5 + 3 * 3)
    found = {(row["id"], row["method"], row["measure"]): row["value"] for row in rows}
    assert found["c0", "centre", "energy_near"] == "0.3" and found["c0", "grad_cam", "insertion"] == ""
    summary = json.loads((tmp_path / "deep" / "trust.json").read_text(encoding="utf-8"))
    assert summary["grad_cam"]["flags"] == [SAME_WITHOUT_WEIGHTS] and summary["edges"]["flags"] == []
    assert summary["grad_cam"]["insertion"] == {"value": None, "low": None, "high": None, "n": 0}
    assert summary["centre"]["energy_near"]["value"] == pytest.approx(0.3, abs=0.02)
    verdict = json.loads((tmp_path / "deep" / "trust_verdict.json").read_text(encoding="utf-8"))
    assert verdict["method"] == "grad_cam" and verdict["passed"] is False
    assert [check["passed"] for check in verdict["checks"]] == [True, True, True, True, None, None, False]


def test_the_table_reads_as_text() -> None:
    table = gather(cohort(change=lambda i, own: own | {"shuffled_rank": 0.9}), "grad_cam", samples=200)
    text = format_trust(table)
    assert "12 cases of 12 patients" in text and SAME_WITHOUT_WEIGHTS in text
    assert "grad_cam reaches the aim: no" in text and "small lesions" in text
    edges = next(line.split() for line in text.splitlines() if line.startswith("edges"))
    assert edges[:2] == ["edges", "0.201"] and edges[-2:] == ["–", "–"]  # a baseline has no stability


def test_a_method_that_failed_in_a_case_has_a_case_less_and_is_named_in_its_place() -> None:
    cases = cohort()
    for at, case in enumerate(cases):
        values = {"grad_cam": case.values["grad_cam"], "guided": dict(GOOD), **BASELINES}
        missing = {0: "grad_cam", 5: "guided"}.get(at)
        cases[at] = TrustCase(
            case.id, case.patient, case.target, {n: v for n, v in values.items() if n != missing}, {}, case.size
        )
    table = gather(cases, "grad_cam", samples=50)
    assert list(table.estimates) == ["grad_cam", "guided", "random", "edges", "centre"]
    assert [table.estimates[name]["deletion"].n for name in table.estimates] == [11, 11, 12, 12, 12]
    assert table.checks[3].estimate.n == 11
    nowhere = [
        TrustCase(c.id, c.patient, c.target, {**c.values, "late": {"stability": 0.9}}, {}, c.size) for c in cases
    ]
    assert "late" in format_trust(gather(nowhere, "grad_cam", samples=50))  # though it has no thirds


def test_a_method_that_no_case_has_is_named() -> None:
    with pytest.raises(MedsegError, match="'occlusion', found grad_cam, random, edges, centre"):
        gather(cohort(), "occlusion")
    with pytest.raises(MedsegError, match="found no case"):
        gather([], "grad_cam")


def test_the_order_of_the_cases_does_not_matter() -> None:
    cases = cohort()
    one, other = (gather(c, "grad_cam", samples=100) for c in (cases, cases[::-1]))
    for measure, estimate in one.estimates["grad_cam"].items():
        again = other.estimates["grad_cam"][measure]
        assert np.allclose([estimate.low, estimate.high], [again.low, again.high], equal_nan=True), measure
