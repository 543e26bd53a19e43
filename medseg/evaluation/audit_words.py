"""An audit in plain words: what differs, what could not be told apart and what gap would have been seen, what is too small.

Knows an `Audit` and no case; no patient is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from medseg.evaluation.audit import LEVEL, Audit, Cell, Verdict

_NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "brier": "Brier score",
    "calibration_gap": "Calibration gap (mean stated score less the share of true boxes)",
    "dice": "Dice",
    "ece": "Calibration error (ECE)",
    "fp_per_scan": "False positives a scan",
    "iou": "IoU",
    "nsd": "NSD",
}
_RANKING = ("auroc", "auprc")
_FREQUENCY = ("auprc", "precision", "accuracy", "f1", "brier")


def sentences(audit: Audit) -> list[str]:
    """Everything that there is to say, the differences first, then column by column."""
    return [*_differences(audit), *_nothing_shown(audit), *_too_small(audit), *_cautions(audit)]


def markdown(audit: Audit) -> str:
    """The same as a page: what was asked, then what was found under a heading each."""
    asked = sum(verdict.p is not None for verdict in audit.verdicts)
    head = (
        f"{audit.n_cases} cases of {audit.n_patients} patients; {asked} questions (a figure by a column). A group needs "
        f"{audit.smallest} patients to be judged. p-values are from {audit.permutations} permutations of the patients, corrected "
        f"for all questions together (step-down max-T): a difference is p < {LEVEL:g}. Intervals are 95 %, over patients."
    )
    overall = [f"- {_title(cell.metric, cell.label)}: {_value(cell)}" for cell in audit.overall]
    parts = {
        "All cases": overall,
        "Differences": [f"- {text}" for text in _differences(audit)],
        "No difference shown": [f"- {text}" for text in _nothing_shown(audit)],
        "Too small to judge": [f"- {text}" for text in _too_small(audit)],
        "To be kept in mind": [f"- {text}" for text in _cautions(audit)],
    }
    pages = ["\n".join([f"## {heading}", "", *lines]) for heading, lines in parts.items() if lines]
    return "\n\n".join(["# Audit: for whom is it wrong?", head, *pages]) + "\n"


def _differences(audit: Audit) -> list[str]:
    """A sentence a difference; figures that say the same of two classes share one."""
    found = audit.differences
    if not found:
        return (
            []
            if any(v.p is not None for v in audit.verdicts)
            else ["Nothing could be judged: every group is too small."]
        )
    return [_difference(list(same), audit) for _, same in groupby(found, key=_content)]


def _difference(same: Sequence[Verdict], audit: Audit) -> str:
    verdict = same[0]
    cells = {c.group: c for c in audit.cells if (c.column, c.metric, c.label) == _key(verdict)}
    outlier = cells[verdict.outlier or ""]
    rest = [group for group in verdict.judged if group != verdict.outlier]
    text = (
        f"{_title_of(same)} differs by {verdict.column}: {_value(outlier)} in {outlier.group} ({_count(outlier.n_patients)}) "
        f"against {_number(verdict.others)} in {rest[0] if len(rest) == 1 else 'the other groups'}"
    )
    if len(rest) > 1:
        text += f"; the largest gap is {_number(verdict.gap)}, from {verdict.lowest} to {verdict.highest}"
    return f"{text}; p = {_p(verdict.p_corrected, audit)} corrected, {_p(verdict.p, audit)} alone."


def _nothing_shown(audit: Audit) -> list[str]:
    """A sentence a column: its figures with their largest gaps, and what would have been seen."""
    texts = []
    for column, of_column in groupby((v for v in audit.verdicts if v.differs is False), key=lambda v: v.column):
        parts = []
        for _, same in groupby(of_column, key=_content):
            verdicts = list(same)
            gap, p = _number(verdicts[0].gap), _p(verdicts[0].p_corrected, audit)
            parts.append(f"{_title_of(verdicts)} (largest gap {gap}, p = {p}; {_unseen(verdicts[0])})")
        texts.append(
            f"With these numbers no difference between the groups of {column} could be shown in {_listed(parts)}."
        )
    return texts


def _unseen(verdict: Verdict) -> str:
    far = sorted((gap, name) for name, gap in (verdict.detectable or {}).items())
    (least, _), (most, widest) = far[0], far[-1]
    text = f"a gap below {_number(least)} would stay unseen"
    return text if _number(least) == _number(most) else f"{text}, of {widest} below {_number(most)}"


def _too_small(audit: Audit) -> list[str]:
    """A sentence a column with the groups that are too small for one figure or more, and how many patients these have."""
    texts = []
    for column, of_column in groupby(audit.cells, key=lambda cell: cell.column):
        small: dict[str, dict[int, list[str]]] = {}
        for cell in of_column:
            if not cell.judged:
                small.setdefault(cell.group, {}).setdefault(cell.n_patients, []).append(_title(cell.metric, cell.label))
        names = [f"{group} ({_held(of_group, len(audit.overall))})" for group, of_group in small.items()]
        if names:
            texts.append(f"Too few to judge by {column}, so left out of the comparison: {'; '.join(names)}.")
    return texts


def _held(titles: Mapping[int, Sequence[str]], figures: int) -> str:
    """How many patients a group has for which figures; these are not named where the number is the same for all."""
    if [len(names) for names in titles.values()] == [figures]:
        return _count(next(iter(titles)))
    return ", ".join(f"{_count(n)} for {_listed(names)}" for n, names in titles.items())


def _cautions(audit: Audit) -> list[str]:
    texts = [
        f"{_count(count)} had cases in several groups of {column}: each case counts in its own group."
        for column, count in audit.mixed.items()
        if count
    ]
    texts += [
        f"Nobody knows {column} of {count} of the {audit.n_cases} cases: they are in none of its groups."
        for column, count in audit.unknown.items()
        if count
    ]
    metrics = {cell.metric for cell in audit.overall}
    ranking = [_NAMES[metric] for metric in _RANKING if metric in metrics]
    if ranking and audit.folds > 1:
        texts.append(
            f"{_listed(ranking)}: the cases of {audit.folds} folds are ranked together, although each fold has a model, and so a "
            "scale, of its own."
        )
    frequency = [_NAMES.get(metric, metric.capitalize()) for metric in _FREQUENCY if metric in metrics]
    if frequency:
        texts.append(f"How frequent a class is in a group also moves {_listed(frequency)}.")
    if audit.biased:
        biased = _listed([_NAMES.get(metric, metric.capitalize()) for metric in audit.biased])
        texts.append(f"{biased} is higher in smaller groups by itself; the comparison of groups takes that off.")
    return texts


def _key(verdict: Verdict) -> tuple[str, str, str]:
    return verdict.column, verdict.metric, verdict.label


def _content(verdict: Verdict) -> tuple[object, ...]:
    """What two exclusive classes have in common: AUROC, Brier score and calibration of one are those of the other."""
    return verdict.column, verdict.metric, verdict.outlier, _number(verdict.gap), verdict.p, verdict.p_corrected


def _title_of(same: Sequence[Verdict]) -> str:
    return _title(same[0].metric, " and ".join(verdict.label for verdict in same))


def _title(metric: str, label: str) -> str:
    name = _NAMES.get(metric) or metric.replace("_", " ").capitalize()
    return name if label == "mean" else f"{name} of {label}"


def _value(cell: Cell) -> str:
    if cell.low != cell.low:
        return _number(cell.value)
    return f"{_number(cell.value)} [{_number(cell.low)}–{_number(cell.high)}]"


def _count(patients: int) -> str:
    return "one patient" if patients == 1 else f"{patients or 'no'} patients"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _number(value: float | None) -> str:
    if value is None or value != value:
        return "–"
    return f"{value:.2f}" if 0.1 <= abs(value) < 10 else f"{value:.3g}" if abs(value) >= 10 else f"{value:.2g}"


def _p(value: float | None, audit: Audit) -> str:
    """Never below what the number of permutations can show."""
    smallest = 1 / (audit.permutations + 1)
    return "–" if value is None else f"{value:.2g}" if value > smallest else f"{smallest:.1g} or less"
