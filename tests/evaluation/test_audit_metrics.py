from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.evaluation.audit_cases import AuditCases, Measured
from medseg.evaluation.audit_metrics import Figure, figures_of
from medseg.evaluation.calibration import reliability
from medseg.evaluation.classification import auroc, average_precision

NAN = float("nan")


def cases(rows: dict[tuple[str, str], Any], count: int) -> AuditCases:
    """(metric, label) → values, or (values, n_gt, n_pred)."""

    def measured(values: Any) -> Measured:
        columns = values if isinstance(values, tuple) else (values, np.ones(count), np.ones(count))
        return Measured(*(np.asarray(column, float) for column in columns))

    return AuditCases(tuple(map(str, range(count))), {}, {name: measured(values) for name, values in rows.items()})


def one(metric: str, of: AuditCases) -> Figure:
    (figure,) = figures_of(of, [metric])
    return figure


def value(figure: Figure, weights: Any) -> float:
    return float(figure.measure(np.asarray([weights], float))[0][0])


PROBABILITY = [0.9, 0.2, 0.6, 0.6, 0.4, 0.05]
TRUTH = [1, 0, 1, 0, 0, 0]
CALLED = [1, 0, 0, 1, 0, 0]
CLASSES = cases({("probability", "ill"): (PROBABILITY, TRUTH, CALLED), ("correct", "mean"): [1, 1, 0, 0, 1, 1]}, 6)
BOXES = cases({("tp", "mass"): [2, 0, 1], ("fp", "mass"): [1, 3, 0], ("fn", "mass"): [0, 1, 4]}, 3)


def test_a_mean_is_over_the_cases_that_have_a_value() -> None:
    figure = one("dice", cases({("dice", "t"): [0.2, NAN, 0.8, 0.5]}, 4))
    assert value(figure, [1, 1, 1, 0]) == pytest.approx(0.5)
    assert value(figure, [3, 7, 1, 0]) == pytest.approx(0.35)
    assert np.isnan(value(figure, [0, 1, 0, 0]))
    assert figure.evidence[:, 0].tolist() == [True, False, True, True]


@pytest.mark.parametrize(
    ("metric", "all_scans", "first_two"),
    [("sensitivity", 3 / 8, 2 / 3), ("precision", 3 / 7, 2 / 6), ("f1", 6 / 15, 4 / 9), ("fp_per_scan", 4 / 3, 2.0)],
)
def test_counts_of_boxes_are_pooled(metric: str, all_scans: float, first_two: float) -> None:
    figure = one(metric, BOXES)
    assert value(figure, [1, 1, 1]) == pytest.approx(all_scans)
    assert value(figure, [1, 1, 0]) == pytest.approx(first_two)


def test_the_scores_of_counted_boxes_are_held_against_what_is_true_of_them() -> None:
    promised = {("confidence", "mass"): [2.4, 1.2, 0.9]}
    counts = {(count, "mass"): BOXES.measured[count, "mass"].value for count in ("tp", "fp", "fn")}
    figure = one("calibration_gap", cases(counts | promised, 3))
    assert value(figure, [1, 1, 1]) == pytest.approx((4.5 - 3) / 7)
    assert value(figure, [0, 0, 1]) == pytest.approx(-0.1)
    assert [f.metric for f in figures_of(cases(counts | promised, 3))][-1] == "calibration_gap"


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("sensitivity", 1 / 2),
        ("specificity", 3 / 4),
        ("accuracy", 4 / 6),
        ("auroc", 7.5 / 8),
        ("brier", (0.01 + 0.04 + 0.16 + 0.36 + 0.16 + 0.0025) / 6),
    ],
)
def test_figures_of_probabilities_are_known_by_hand(metric: str, expected: float) -> None:
    assert value(one(metric, CLASSES), np.ones(6)) == pytest.approx(expected)


@pytest.mark.parametrize("metric", ["auroc", "auprc", "ece"])
def test_a_choice_of_cases_gives_the_figure_of_these_cases_alone(metric: str) -> None:
    random = np.random.default_rng(0)
    probability, truth = random.random(60).round(2), random.integers(0, 2, 60)
    of = cases({("probability", "ill"): (probability, truth, truth)}, 60)
    chosen = random.integers(0, 2, (3, 60))
    values, _ = one(metric, of).measure(chosen.astype(float))
    expected = {
        "auroc": auroc,
        "auprc": average_precision,
        "ece": lambda p, y: reliability(p, y).ece,
    }[metric]
    for found, keep in zip(values, chosen > 0, strict=True):
        assert found == pytest.approx(expected(probability[keep], truth[keep] > 0))
        alone = one(metric, of).only(keep)
        assert alone.measure(np.ones((1, keep.sum())))[0][0] == pytest.approx(found)


def test_a_case_without_probability_counts_nowhere() -> None:
    rows = {("probability", "ill"): ([*PROBABILITY, NAN], [*TRUTH, 1], [*CALLED, 0])}
    for metric in ("auroc", "auprc", "ece", "brier", "sensitivity"):
        figure = one(metric, cases(rows, 7))
        assert value(figure, np.ones(7)) == pytest.approx(value(one(metric, CLASSES), np.ones(6)))
        assert np.isnan(value(figure.only(np.arange(7) == 6), [1]))


def test_ranking_needs_evidence_of_both_kinds_and_rests_on_the_rarer() -> None:
    figure = one("auroc", CLASSES)
    assert figure.evidence.sum(axis=0).tolist() == [2, 4]
    assert figure.measure(np.ones((1, 6)))[1].tolist() == [2 * 4 / 6]


def test_what_matters_most_is_chosen_unless_metrics_are_named() -> None:
    assert [f.metric for f in figures_of(CLASSES)] == ["auroc", "sensitivity", "specificity", "ece"]
    assert [f.metric for f in figures_of(BOXES)] == ["sensitivity", "precision", "fp_per_scan"]
    masks = cases({("hd95_mm", "t"): [1, 2], ("dice", "t"): [0, 1], ("dice", "u"): [NAN, NAN], ("ece", "t"): [0, 1]}, 2)
    assert [(f.metric, f.label) for f in figures_of(masks)] == [("dice", "t"), ("ece", "t")]
    assert [f.metric for f in figures_of(cases({("score", "t"): [1, 2]}, 2))] == ["score"]


def test_an_unknown_metric_lists_those_that_there_are() -> None:
    with pytest.raises(MedsegError, match=r"give sensitivity, precision, f1, fp_per_scan; .*\n  - no metric 'dice'"):
        figures_of(BOXES, ["dice", "f1"])
    with pytest.raises(MedsegError, match="at least one metric"):
        figures_of(BOXES, [])
