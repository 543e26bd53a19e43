"""Which cases an evaluation scores and which model predicts each: a fold's model sees the cases of its own split only.

Nothing is predicted or scored here; a request that would score a model on cases it was trained on, without saying so, is
refused.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medseg.data.splits import Split, Splits
from medseg.errors import MedsegError, all_at_once
from medseg.model import Model, fold_folders, load_members, load_model
from medseg.structures import Case, Cohort

logger = logging.getLogger(__name__)
SPLITS = ("fit", "tune", "test")


@dataclass(frozen=True)
class Part:
    """Cases of one fold that are scored, the models that predict them, and the cases that a baseline may learn from.

    ``seen`` counts those of the cases that the models were trained or tuned on, where that is known.
    """

    fold: str
    cases: tuple[Case, ...]
    models: tuple[Model, ...] = ()
    fit: tuple[Case, ...] = ()
    seen: int = 0


def parts_of_model(
    cohort: Cohort, path: Path, split: str, fold: int | None, splits: Path | None, trust: Sequence[str]
) -> list[Part]:
    """What the model, run or experiment folder at ``path`` may be scored on: a part a fold.

    With ``split="all"`` it is one part, every case, predicted by all members together.

    Raises:
        MedsegError: there are no splits, or not of these cases; the model belongs to another fold, or knows other labels.
    """
    runs = _runs(path)
    if split == "all":
        members = tuple(load_members(path, trust))
        seen = {
            c for model, run in zip(members, runs, strict=True) for c in _seen(model, splits or run / "splits.json")
        }
        part = Part("", cohort.cases, members, seen=sum(case.id in seen for case in cohort.cases))
        _check_labels(members, cohort)
        return [part]
    parts = []
    for run in runs:
        inside = run / "model" if (run / "model" / "model.yaml").is_file() else run
        model = load_model(inside, trust)
        file = splits or (run / "splits.json")
        if not file.is_file():
            raise MedsegError(
                f"model {path}: it has no splits beside it ({file.name}), so nobody knows which cases it has not seen. Give "
                "splits=…, or say split=all for cases that it was never trained on"
            )
        own = model.training.get("fold")
        if own is not None and fold not in (None, own):
            if len(runs) > 1:
                continue
            raise MedsegError(
                f"fold={fold}: this model was trained on fold {own}, whose test it has not seen; leave fold out"
            )
        every = Splits.load(file)
        number = own if own is not None else fold
        if number is None and len(every.folds) > 1:
            raise MedsegError(f"model {path}: it does not say which fold it was trained on; give fold=…")
        chosen = every.fold(int(number or 0))
        _check_labels((model,), cohort)
        part = _part(cohort, chosen, split, str(number or 0), (model,), str(file))
        if split == "test":  # the splits may be others than those of the training
            seen = set(_seen(model, run / "splits.json"))
            part = replace(part, seen=sum(case.id in seen for case in part.cases))
        parts.append(part)
    if not parts:
        raise MedsegError(f"fold={fold}: {path} has no finished run of that fold")
    return parts


def parts_of_predictions(cohort: Cohort, split: str, fold: int | None, splits: Path | None) -> list[Part]:
    """The cases for which a folder must hold masks or boxes: all, those of one fold, or the tests of all folds together.

    Raises:
        MedsegError: which cases are meant cannot be known, or the splits are not of these cases.
    """
    if split == "all":
        return [Part("", cohort.cases)]
    if splits is None:
        raise MedsegError(
            f"predictions: split={split} needs splits=… (the splits.json of a run, which says whose cases these are), or say "
            "split=all to score every case of the data set"
        )
    every = Splits.load(Path(splits))
    if fold is None and len(every.folds) > 1 and split != "test":
        raise MedsegError(
            f"predictions: a case is in {split} of several folds; give fold=… (0 to {len(every.folds) - 1})"
        )
    numbers = range(len(every.folds)) if fold is None else [fold]
    return [_part(cohort, every.fold(n), split, str(n), (), str(splits)) for n in numbers]


def _part(cohort: Cohort, split: Split, name: str, fold: str, models: tuple[Model, ...], origin: str) -> Part:
    by_id = {case.id: case for case in cohort.cases}
    wanted = getattr(split, name)
    missing = [case for case in wanted if case not in by_id]
    if missing:
        shown = [*missing[:20], *([f"and {len(missing) - 20} more"] if len(missing) > 20 else [])]
        raise all_at_once(
            f"{origin}: {len(missing)} of {len(wanted)} {name} cases of fold {fold} are not in the data; give the data set that "
            "the model was trained on, or say split=all for another one:",
            shown,
        )
    if not wanted:
        raise MedsegError(f"{origin}: fold {fold} has no {name} case")
    strangers = sum(not split.part_of(case) for case in by_id)
    if strangers:
        logger.warning("%d cases of the data are in no part of fold %s and are not scored", strangers, fold)
    fit = tuple(by_id[case] for case in split.fit if case in by_id) if name != "fit" else ()
    return Part(fold, tuple(by_id[case] for case in wanted), models, fit)


def _runs(path: Path) -> list[Path]:
    """The run folders at ``path`` in the order of `load_members`; a model folder counts as its run, where it lies in one."""
    if (path / "model.yaml").is_file():
        run = path.resolve().parent
        return [run if path.resolve().name == "model" and (run / "splits.json").is_file() else path]
    if (path / "model" / "model.yaml").is_file():
        return [path]
    runs = [run for run in fold_folders(path) if (run / "model" / "model.yaml").is_file()]
    if not runs:
        load_members(path)  # says what is missing
    return runs


def start_of(path: Path, fold: int, trust: Sequence[str]) -> tuple[Model, frozenset[str]]:
    """The model that a training of ``fold`` starts from, and the cases that it has seen, where its run says so.

    Of an experiment folder it is the member of the same fold (the first, where there is none): it has not seen the same test.
    """
    members = list(zip(load_members(path, trust), _runs(path), strict=True))
    model, run = next((m for m in members if m[0].training.get("fold") == fold), members[0])
    return model, frozenset(_seen(model, run / "splits.json"))


def _seen(model: Model, file: Path) -> tuple[str, ...]:
    """The cases that a model was trained or tuned on, where its run says so."""
    own = model.training.get("fold")
    if own is None or not file.is_file():
        return ()
    split = Splits.load(file).fold(int(own))
    return (*split.fit, *split.tune)


def _check_labels(models: Sequence[Model], cohort: Cohort) -> None:
    for model in models:
        if model.plan.classes is not None:
            continue  # a class that the model does not know is said of the case that shows it
        mine, theirs = dict(model.plan.labels.targets), dict(cohort.labels.targets) if cohort.labels else {}
        if mine != theirs:
            raise MedsegError(
                f"the model knows other labels than the data: model {mine}, data {theirs}. Name the labels of the data as the "
                "model does (data.label_names)"
            )
