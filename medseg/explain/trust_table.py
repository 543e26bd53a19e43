"""Many cases: what is known of each method, what speaks against it, and whether the default method reaches the aim.

    trust.csv           id, target, method, measure, value: a row a figure of a case; blank where there was nothing to measure
    trust.json          {method: {measure: {value, low, high, n}, "flags": ["does not depend on the weights"]}}
    trust_verdict.json  {"method", "passed", "checks": [{"claim", "value", "low", "high", "n", "passed"}]}

Means with 95 % bootstrap intervals over patients; ``energy_near_small``, ``_medium``, ``_large`` (and the other measures of
pointing) are those of the thirds of the cases by size of the lesion. Flags are by the rule of `medseg.explain.sanity`.

**The aim** of the default method: energy near the lesion at least `AIM` and at least `TIMES_CENTRE` times that of the central
blob (by the means), deletion and insertion better than random and than edges (by the interval of the paired difference, which
must leave out 0), and no flag. Where a figure or its interval is missing a check is not judged: null, and so is the verdict.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import MedsegError
from medseg.evaluation.bootstrap import Estimate, estimate_means
from medseg.evaluation.detection import THIRDS
from medseg.evaluation.text_table import aligned
from medseg.explain.baselines import NAMES
from medseg.explain.sanity import flags_of
from medseg.explain.trust import TrustCase
from medseg.files import write_text
from medseg.volume import Array

_HEADINGS = {
    "energy_near": "energy near",
    "energy_inside": "inside",
    "pointing": "pointing",
    "centre_distance": "centre off by",
    "deletion": "deletion ↓",
    "insertion": "insertion ↑",
    "stability": "stability",
    "shuffled_rank": "shuffled rank",
    "shuffled_floor": "among shuffled",
    "shuffled_ssim": "shuffled SSIM",
}
_WITH_INTERVAL = ("energy_near", "deletion", "insertion")
_WORDS = {True: "yes", False: "no", None: "not judged"}

COLUMNS = ("id", "target", "method", "measure", "value")
AIM = 0.5
TIMES_CENTRE = 2.0

_BY_SIZE = ("energy_inside", "energy_near", "pointing", "centre_distance")
_BETTER = {"deletion": -1, "insertion": 1}  # the sign of a difference that is a gain
_NOTHING = Estimate(math.nan, math.nan, math.nan, 0)
_Columns = dict[tuple[str, str], Array]


@dataclass(frozen=True)
class Check:
    """A claim of the aim, the figure it hangs on, and whether it holds; None where it cannot be judged."""

    claim: str
    estimate: Estimate
    passed: bool | None


@dataclass(frozen=True)
class TrustTable:
    """What is known of each method.

    Attributes:
        method: the default method, which the checks are about.
        estimates: method → measure → mean over cases.
        flags: method → what speaks against it.
        cases, patients: how many there are.
        size_edges: sizes of lesions between the thirds; empty where there are too few to part.
    """

    method: str
    estimates: Mapping[str, Mapping[str, Estimate]]
    flags: Mapping[str, tuple[str, ...]]
    checks: tuple[Check, ...]
    cases: int
    patients: int
    size_edges: tuple[float, ...]

    @property
    def passed(self) -> bool | None:
        """Whether the default method reaches the aim: False where a check fails, None where none fails but one is not judged."""
        found = {check.passed for check in self.checks}
        return False if False in found else None if None in found else True


def gather(cases: Sequence[TrustCase], method: str, *, samples: int = 1000, seed: int = 0) -> TrustTable:
    """Means, flags and the verdict over cases.

    Args:
        method: the one that the aim is asked of.
        samples: bootstrap draws; 0 for no intervals, and so no verdict.

    Raises:
        MedsegError: there is no case, or none was measured with ``method``.
    """
    names = list(dict.fromkeys(name for case in cases for name in case.values))
    if method not in names:
        raise MedsegError(f"trust: expected cases measured with {method!r}, found {', '.join(names) or 'no case'}")
    columns, edges = _columns(cases)
    claims = _claims(columns, method, len(cases))
    names.sort(key=lambda name: (name != method, name in NAMES))  # a method may have failed in the first case
    patients = [case.patient for case in cases]
    figures = np.stack([*columns.values(), *(claim.figures for claim in claims)], axis=1)
    found, _ = estimate_means(figures, patients, samples=samples, seed=seed)
    estimates: dict[str, dict[str, Estimate]] = {name: {} for name in names}
    for (name, measure), estimate in zip(columns, found, strict=False):
        estimates[name][measure] = estimate
    flags = {
        name: flags_of(*(own.get(key, _NOTHING).value for key in ("shuffled_rank", "stability")))
        for name, own in estimates.items()
    }
    checks = [Check(c.text, mean, c.holds(mean)) for c, mean in zip(claims, found[len(columns) :], strict=True)]
    checks.append(_sanity_check(estimates[method], flags[method]))
    return TrustTable(method, estimates, flags, tuple(checks), len(cases), len(set(patients)), edges)


def _columns(cases: Sequence[TrustCase]) -> tuple[_Columns, tuple[float, ...]]:
    """``(N,)`` figures of every method and measure, NaN where blank, those by thirds of size too; and where the thirds meet."""
    columns: _Columns = {}
    for at, case in enumerate(cases):
        for name, figures in case.values.items():
            for measure, value in figures.items():
                columns.setdefault((name, measure), np.full(len(cases), np.nan))[at] = value
    size = np.array([case.size for case in cases])
    known = np.isfinite(size)
    if len(np.unique(size[known])) < len(THIRDS):
        return columns, ()
    edges = np.quantile(size[known], (1 / 3, 2 / 3))
    third = np.where(known, np.searchsorted(edges, size), -1)
    for (name, measure), values in list(columns.items()):
        for at, word in enumerate(THIRDS if measure in _BY_SIZE else ()):
            columns[name, f"{measure}_{word}"] = np.where(third == at, values, np.nan)
    return columns, tuple(float(edge) for edge in edges)


@dataclass(frozen=True, eq=False)
class _Claim:
    """``figures`` ``(N,)`` are what the claim's estimate is the mean of; ``holds`` judges that estimate."""

    text: str
    figures: Array
    holds: Callable[[Estimate], bool | None]


def _claims(columns: _Columns, method: str, n: int) -> list[_Claim]:
    blank = np.full(n, np.nan)

    def of(name: str, measure: str) -> Array:
        return columns.get((name, measure), blank)

    near, ahead = of(method, "energy_near"), of(method, "energy_near") - TIMES_CENTRE * of("centre", "energy_near")
    claims = [
        _Claim(f"energy near the lesion ≥ {AIM:g}", near, lambda mean: _unless_blank(mean.value, mean.value >= AIM)),
        _Claim(
            f"energy near the lesion ≥ {TIMES_CENTRE:g} × central blob (how far above)",
            ahead,
            lambda mean: _unless_blank(mean.value, mean.value >= 0),
        ),
    ]
    for measure, sign in _BETTER.items():
        for other in ("random", "edges"):
            gain = sign * (of(method, measure) - of(other, measure))
            text = f"{measure} better than {other} (by how much)"
            claims.append(_Claim(text, gain, lambda mean: _unless_blank(mean.low, mean.low > 0)))
    return claims


def _unless_blank(figure: float, holds: bool) -> bool | None:
    return None if math.isnan(figure) else holds


def _sanity_check(own: Mapping[str, Estimate], flags: tuple[str, ...]) -> Check:
    rank = own.get("shuffled_rank", _NOTHING)
    return Check(
        "no flag of the sanity check (rank correlation)", rank, False if flags else _unless_blank(rank.value, True)
    )


def write_trust(folder: Path, cases: Sequence[TrustCase], table: TrustTable) -> None:
    """Write the three files into ``folder``, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "trust.csv", trust_csv(cases))
    figures = {
        name: {**{measure: _entry(e) for measure, e in own.items()}, "flags": list(table.flags[name])}
        for name, own in table.estimates.items()
    }
    checks = [{"claim": c.claim, **_entry(c.estimate), "passed": c.passed} for c in table.checks]
    verdict = {"method": table.method, "passed": table.passed, "checks": checks}
    for file, content in (("trust.json", figures), ("trust_verdict.json", verdict)):
        write_text(folder / file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def trust_csv(cases: Sequence[TrustCase]) -> str:
    """Every figure of every case, in long form."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for case in cases:
        for method, figures in case.values.items():
            for measure, value in figures.items():
                writer.writerow([case.id, case.target, method, measure, "" if math.isnan(value) else f"{value:.6g}"])
    return text.getvalue()


def _entry(estimate: Estimate) -> dict[str, Any]:
    figures = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {**{key: None if math.isnan(value) else value for key, value in figures.items()}, "n": estimate.n}


def format_trust(table: TrustTable) -> str:
    """Lines to read: a row a method, its energy near lesions of each third, then the checks of the aim one by one."""
    shown = {m: heading for m, heading in _HEADINGS.items() if any(m in own for own in table.estimates.values())}
    rows = [["method", *shown.values(), "flags"]]
    for name, own in table.estimates.items():
        cells = [_figure(own.get(m, _NOTHING), interval=m in _WITH_INTERVAL) for m in shown]
        rows.append([name, *cells, "; ".join(table.flags[name])])
    blocks = [(f"{table.cases} cases of {table.patients} patients, 95 % intervals over patients", rows)]
    if table.size_edges:
        low, high = (f"{edge:.4g}" for edge in table.size_edges)
        thirds = [f"energy_near_{word}" for word in THIRDS]
        rows = [["method", *(f"{word} lesions" for word in THIRDS)]]
        for name, own in table.estimates.items():
            rows.append([name, *(_figure(own.get(m, _NOTHING), interval=True) for m in thirds)])
        blocks.append((f"energy near the lesion, in thirds by its size (up to {low}, up to {high}, above)", rows))
    rows = [["aim", "figure", "holds"]]
    rows += [[c.claim, _figure(c.estimate, interval=True), _WORDS[c.passed]] for c in table.checks]
    blocks.append((f"{table.method} reaches the aim: {_WORDS[table.passed]}", rows))
    return "\n\n".join(f"{title}\n\n{aligned(rows)}" for title, rows in blocks)


def _figure(estimate: Estimate, *, interval: bool) -> str:
    if math.isnan(estimate.value):
        return "–"
    digits = 1 if abs(estimate.value) >= 10 else 3
    known = interval and not math.isnan(estimate.low)
    return f"{estimate.value:.{digits}f}" + (f" [{estimate.low:.2f}–{estimate.high:.2f}]" if known else "")
