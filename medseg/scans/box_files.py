"""Which file of boxes belongs to which case, by what both are called. Opens none of them.

A case without a file is not the same as one whose file lists no box: it is a fault, and so is a file without a case.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePath

from medseg.scans.names import case_id
from medseg.scans.tables import BOX_FILES
from medseg.structures import Fault

WITHOUT_ANNOTATION = "image_without_annotation"
"""Kind of the fault of an image that nobody marked."""
PREDICTED = "boxes.json"
"""The name of a file of boxes as predictions are written: its folder is called like the case."""


def box_files(folder: Path, endings: Collection[str] = BOX_FILES) -> list[PurePath]:
    """The files of boxes at any depth below ``folder``, relative to it and sorted.

    Where some are called ``boxes.json``, other JSON files hold something else (a result folder has several kinds).
    """
    below = (file.relative_to(folder) for file in folder.rglob("*") if not file.name.startswith("."))
    files = sorted(file for file in below if file.suffix.lower() in endings)
    predicted = any(file.name == PREDICTED for file in files)
    return [file for file in files if not predicted or file.name == PREDICTED or file.suffix.lower() != ".json"]


def case_names(file: PurePath) -> tuple[str, str]:
    """What the case of a file is called: the path joined by ``__``, and its last part."""
    own = file.parent if file.name == PREDICTED and file.parent.parts else file.with_suffix("")
    return "__".join(own.parts), own.name


def paired_files(
    cases: Mapping[str, Sequence[str]],
    files: Sequence[PurePath],
    where: tuple[Path, Path],
    known: Collection[str] = (),
) -> tuple[dict[str, PurePath], list[Fault]]:
    """Give each case its file: that of its own path, else the only one that is called like it and like no other case.

    Args:
        cases: id → the names under which its file may lie; the first and the last are its whole path, or its id.
        files: as `box_files` lists them.
        where: what the folders of images and of files are called.
        known: names of what is no case for a reason that is told elsewhere; their files are not missed.

    Returns:
        Case id → its file, and what stays alone or could belong to several.
    """
    images, folder = where
    by_path: dict[str, list[PurePath]] = defaultdict(list)
    by_name: dict[str, list[PurePath]] = defaultdict(list)
    for file in files:
        by_path[case_names(file)[0]].append(file)
    offers = {case: _first(by_path, (names[0], names[-1], case)) for case, names in cases.items()}
    taken = {file for offered in offers.values() for file in offered}
    for file in files:
        if file not in taken:
            by_name[case_names(file)[1]].append(file)
    offers = {case: offers[case] or _first(by_name, names) for case, names in cases.items()}
    wanted = Counter(file for offered in offers.values() for file in offered)
    pairs: dict[str, PurePath] = {}
    faults: list[Fault] = []
    for case, offered in offers.items():
        if not offered:
            reason = f"no file of boxes in {folder} is called like it, which is not the same as a file without boxes"
            faults.append(Fault(case, WITHOUT_ANNOTATION, f"{reason}; add one, or leave the image out"))
        elif len(offered) > 1 or wanted[offered[0]] > 1:
            reason = f"{min(offered)} is not the only file for it, or would be that of another image too"
            advice = "lay out images and files in the same folders"
            faults.append(Fault(case, "ambiguous_annotation", f"{reason}; {advice}"))
        else:
            pairs[case] = offered[0]
    for file in files:
        plain, joined = case_id(case_names(file)[1]), case_id(case_names(file)[0])
        if file not in wanted and not {plain, joined}.intersection(known):
            reason = f"annotation file {file} belongs to no image in {images}; add the image or take the file away"
            faults.append(Fault(plain, "annotation_without_image", reason))
    return pairs, faults


def _first(index: Mapping[str, list[PurePath]], names: Sequence[str]) -> list[PurePath]:
    """What is filed under the first of ``names`` under which anything is."""
    return next((index[name] for name in names if name in index), [])
