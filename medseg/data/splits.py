"""Who is learnt from, who is tuned on and who is tested on: for each fold ``fit``, ``tune`` and ``test``, by patient.

Owns how patients are dealt out (stratified, near duplicates together, the same for the same seed whatever the order of the
cases) and the file ``splits.json``, which once written is obeyed. Reads no image. Every figure that is reported is on ``test``;
whatever is chosen (checkpoint, working point, post-processing) sees ``tune`` only.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.errors import MedsegError, all_at_once
from medseg.files import write_text
from medseg.structures import Case

logger = logging.getLogger(__name__)

FORMAT = 1
SINGLE_TEST_SHARE = 0.2
"""Of the patients, where there is one fold only."""


@dataclass(frozen=True)
class Split:
    """Ids of cases, sorted; no case and no patient is in two of them."""

    fit: tuple[str, ...]
    tune: tuple[str, ...]
    test: tuple[str, ...]

    def part_of(self, case: str) -> str:
        """``"fit"``, ``"tune"`` or ``"test"``; empty for a case that is in none."""
        return next((name for name in ("fit", "tune", "test") if case in getattr(self, name)), "")


@dataclass(frozen=True)
class Splits:
    """All folds. ``made`` says how they came about, for those who read the file."""

    folds: tuple[Split, ...]
    made: Mapping[str, Any]

    def fold(self, number: int) -> Split:
        """Raises MedsegError where there is no such fold."""
        if not 0 <= number < len(self.folds):
            raise MedsegError(f"fold={number}: the splits have {len(self.folds)} folds, 0 to {len(self.folds) - 1}")
        return self.folds[number]

    def check(self, cases: Sequence[Case], origin: str = "splits.json") -> None:
        """That the splits are of these cases and keep patients apart.

        Raises:
            MedsegError: every case that is new, gone or in two parts of a fold, and every patient on two sides.
        """
        patients = {case.id: case.patient for case in cases}
        known = {case for split in self.folds for part in (split.fit, split.tune, split.test) for case in part}
        problems = [f"case {case!r} is in the splits but not in the data" for case in sorted(known - set(patients))]
        problems += [f"case {case!r} is in the data but not in the splits" for case in sorted(set(patients) - known)]
        for number, split in enumerate(self.folds):
            parts = {"fit": split.fit, "tune": split.tune, "test": split.test}
            problems += [f"fold {number} has no {name} case" for name, part in parts.items() if not part]
            where: dict[str, set[str]] = defaultdict(set)
            times = Counter(case for part in parts.values() for case in part)
            problems += [f"case {case!r} is {n} times in fold {number}" for case, n in sorted(times.items()) if n > 1]
            for name, part in parts.items():
                for case in part:
                    where[patients.get(case, case)].add(name)
            torn = sorted(patient for patient, names in where.items() if len(names) > 1)
            problems += [f"patient {p!r} is in {' and '.join(sorted(where[p]))} of fold {number}" for p in torn]
        if problems:
            more = [f"and {len(problems) - 20} more"] if len(problems) > 20 else []
            raise all_at_once(
                f"{origin} does not fit the data. Splits are kept, so that no case moves between training and test: mend the "
                "file or the data (data.skip=[…] leaves cases out), or start a run in another folder:",
                [*problems[:20], *more],
            )

    def save(self, path: Path) -> None:
        """Write ``path``, which appears whole or not at all."""
        rows = [{"fit": split.fit, "tune": split.tune, "test": split.test} for split in self.folds]
        text = json.dumps({"format": FORMAT, "made": dict(self.made), "folds": rows}, indent=1)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text + "\n")

    @classmethod
    def load(cls, path: Path) -> Splits:
        """Read what `save` wrote, or the user in the same form. Raises MedsegError that names ``path``."""
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            if body["format"] != FORMAT:
                raise ValueError(f"format {body['format']!r}, expected {FORMAT}")
            folds = tuple(Split(_ids(row["fit"]), _ids(row["tune"]), _ids(row["test"])) for row in body["folds"])
            if not folds:
                raise ValueError("it has no fold")
            return cls(folds, dict(body.get("made", {})))
        except FileNotFoundError:
            raise MedsegError(f"{path}: no splits there") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MedsegError(
                f'{path}: expected {{"format": {FORMAT}, "folds": [{{"fit": [ids], "tune": [ids], "test": [ids]}}, …]}}; '
                f"found {type(error).__name__}: {error}"
            ) from None


def obtain_splits(
    cases: Sequence[Case],
    path: Path,
    *,
    folds: int = 5,
    tune: float = 0.1,
    seed: int = 0,
    strata: Mapping[str, str] | Sequence[str] | None = None,
    groups: Iterable[Collection[str]] = (),
) -> Splits:
    """The splits in ``path`` if there are any, which are then obeyed whatever is asked for; else new ones, written there.

    Raises:
        MedsegError: the file does not fit the cases, or new splits cannot be made (`make_splits`).
    """
    if path.exists():
        splits = Splits.load(path)
        splits.check(cases, str(path))
        asked = {"folds": folds, "tune": tune, "seed": seed}
        other = {name: splits.made[name] for name, value in asked.items() if splits.made.get(name, value) != value}
        if other:
            logger.warning("%s was made with %s and is obeyed; another run folder gets new splits", path, other)
        return splits
    splits = make_splits(cases, folds=folds, tune=tune, seed=seed, strata=strata, groups=groups)
    splits.save(path)
    return splits


def make_splits(
    cases: Sequence[Case],
    *,
    folds: int = 5,
    tune: float = 0.1,
    seed: int = 0,
    strata: Mapping[str, str] | Sequence[str] | None = None,
    groups: Iterable[Collection[str]] = (),
) -> Splits:
    """Deal the patients to ``folds`` tests, and in each fold a share of the others to ``tune``.

    Each patient is in exactly one test; with ``folds=1`` a fifth of them are. All folds hold each stratum alike, to within one
    patient, and as nearly as that allows the same number of patients and of cases.

    Args:
        tune: share of the patients outside the test, two at least (one where there are fewer than four).
        strata: case id → stratum (`Fingerprint.presence` gives the labels that occur), or names of columns of the table
            (``class`` is the case's class); by default the class where cases have one. A patient's stratum is that of all its
            cases together.
        groups: ids of cases that must stay together though their patients differ, such as near duplicates.

    Raises:
        MedsegError: too few patients, or an unknown case or column.
    """
    if folds < 1 or not 0 < tune < 1:
        raise MedsegError(f"expected folds ≥ 1 and 0 < tune < 1, found folds={folds} and tune={tune}")
    units = _units(cases, groups)
    _check_enough(len(units), folds)
    stratum_of = _strata(cases, strata)
    # Each stratum once: a patient with two benign and one malignant nodule counts as one with three and two.
    stratum = {name: "+".join(sorted({stratum_of[case] for case in ids})) for name, ids in units.items()}
    if folds == 1:
        tests = [_share(sorted(units), max(1, round(SINGLE_TEST_SHARE * len(units))), stratum, f"{seed} test")]
    else:
        tests = _deal(units, stratum, folds, seed)
    made = []
    for number, test in enumerate(tests):
        rest = sorted(set(units) - set(test))
        count = min(max(round(tune * len(rest)), 2 if len(rest) >= 4 else 1), len(rest) - 1)
        tuned = _share(rest, count, stratum, f"{seed} tune {number}")
        fit = set(rest) - set(tuned)
        made.append(Split(*(tuple(sorted(c for name in part for c in units[name])) for part in (fit, tuned, test))))
    return Splits(
        tuple(made), {"folds": folds, "tune": tune, "seed": seed, "patients": len(units), "cases": len(cases)}
    )


def _units(cases: Sequence[Case], groups: Iterable[Collection[str]]) -> dict[str, list[str]]:
    """What stays together: patients, joined where a group holds cases of several. Smallest patient → ids of its cases."""
    patient_of = {case.id: case.patient for case in cases}
    parent = {patient: patient for patient in patient_of.values()}

    def root(patient: str) -> str:
        while parent[patient] != patient:
            patient = parent[patient]
        return patient

    for group in groups:
        unknown = sorted(set(group) - set(patient_of))
        if unknown:
            raise MedsegError(
                f"a group of near duplicates names cases that are not in the data: {', '.join(unknown[:10])}"
            )
        roots = sorted({root(patient_of[case]) for case in group})
        for other in roots[1:]:
            parent[other] = roots[0]
    units: dict[str, list[str]] = defaultdict(list)
    for case in sorted(patient_of):
        units[root(patient_of[case])].append(case)
    return dict(units)


def _strata(cases: Sequence[Case], strata: Mapping[str, str] | Sequence[str] | None) -> dict[str, str]:
    """Case id → stratum."""
    if strata is None:
        return {case.id: case.class_name or "" for case in cases}
    if isinstance(strata, Mapping):
        missing = sorted(case.id for case in cases if case.id not in strata)
        if missing:
            raise MedsegError(f"strata: no stratum for the cases {', '.join(missing[:10])}; give one for every case")
        return {case.id: str(strata[case.id]) for case in cases}
    columns = [strata] if isinstance(strata, str) else list(strata)
    known = {"class", *(name for case in cases for name in case.metadata)}
    unknown = sorted(set(columns) - known)
    if unknown:
        raise MedsegError(f"strata: the data have no column {', '.join(unknown)}; they have {', '.join(sorted(known))}")
    return {
        case.id: " / ".join((case.class_name or "") if n == "class" else case.metadata.get(n, "") for n in columns)
        for case in cases
    }


def _check_enough(patients: int, folds: int) -> None:
    """A fold needs a patient to test, one to tune on and one to learn from."""
    if patients < 3:
        raise MedsegError(
            f"found {patients} patients; expected at least 3, one each to learn from, to tune on and to test. Add cases; "
            "if several patients share one key, give each its own (column patient)"
        )
    if patients < folds or (folds > 1 and patients - -(-patients // folds) < 2):
        raise MedsegError(
            f"folds={folds} cannot be made of {patients} patients, as each fold needs one to test, one to tune on and one to "
            f"learn from; set folds={patients} or add patients"
        )


def _deal(units: Mapping[str, Sequence[str]], stratum: Mapping[str, str], folds: int, seed: int) -> list[list[str]]:
    """Every patient to one fold: to that with the fewest of its stratum, then the fewest patients, then the fewest cases.

    Rare strata go first, so that the many can make up for their remainders; large patients before small ones.
    """
    tests: list[list[str]] = [[] for _ in range(folds)]
    held: list[Counter[str]] = [Counter() for _ in range(folds)]
    cases = [0] * folds
    members = Counter(stratum.values())
    order = sorted(units, key=lambda u: (members[stratum[u]], stratum[u], -len(units[u]), _rank(f"{seed} fold", u)))
    for unit in order:
        best = min(
            range(folds),
            key=lambda k: (held[k][stratum[unit]], len(tests[k]), cases[k], k),
        )
        tests[best].append(unit)
        held[best][stratum[unit]] += 1
        cases[best] += len(units[unit])
    return tests


def _share(units: Sequence[str], count: int, stratum: Mapping[str, str], salt: str) -> list[str]:
    """``count`` of ``units``, of each stratum about its share: each is spread evenly over 0…1 and the lowest are taken."""
    members: dict[str, list[str]] = defaultdict(list)
    for unit in sorted(units, key=lambda u: _rank(salt, u)):
        members[stratum[unit]].append(unit)
    place = {unit: (at + 0.5) / len(row) for row in members.values() for at, unit in enumerate(row)}
    return sorted(units, key=lambda u: (place[u], _rank(salt, u)))[:count]


def _rank(salt: str, unit: str) -> str:
    """A shuffle that depends on nothing but the seed and the patient."""
    return hashlib.sha256(f"{salt} {unit}".encode()).hexdigest()


def _ids(row: Any) -> tuple[str, ...]:
    if not isinstance(row, list) or not all(isinstance(case, str) for case in row):
        raise ValueError("expected lists of case ids")
    return tuple(sorted(row))
