"""Small pictures and volumes packed in one NumPy archive, as MedMNIST publishes them; and the layout that lists them as cases.

An archive holds ``<part>_images`` (N, rows, columns[, 3]) or (N, depth, rows, columns), and ``<part>_labels`` (N, 1) of class
numbers or (N, K) of 0 and 1; the parts are ``train``, ``val``, ``test``. Reads with ``allow_pickle=False``: nothing is run.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from medseg.errors import MedsegError
from medseg.scans.classes import BETWEEN, NONE, classes_of
from medseg.scans.picture import COLOURS
from medseg.scans.reading import ScanError
from medseg.structures import Case, Cohort, Fault, Source
from medseg.volume import Array, Geometry

IMAGES, LABELS = "_images", "_labels"


def npz(
    file: Path | str,
    *,
    parts: Sequence[str] | None = None,
    class_names: Mapping[int, str] | Sequence[str] | None = None,
    channels: Sequence[str] | None = None,
    keep_duplicates: bool = False,
    skip: Sequence[str] = (),
) -> Cohort:
    """The images of an archive, a case each, called ``<part>_<number>``.

    Args:
        parts: those that are wanted (``["train", "val"]``); all by default.
        class_names: class number → name; by default ``class_0``, ``class_1`` ….
        channels: a name a channel.
        keep_duplicates: whether images with the very same pixels as an earlier one stay. Where they do not, an image whose
            twins have another class is left out with all of them, for nobody knows which is right.
        skip: ids of cases to leave out.

    Raises:
        MedsegError: no such archive, a part that it does not hold, or labels that do not fit the images.
    """
    path = Path(file)
    held = _names(path)
    found = [name.removesuffix(IMAGES) for name in held if name.endswith(IMAGES)]
    wanted = list(parts) if parts is not None else found
    missing = [part for part in wanted if part not in found]
    if missing or not wanted:
        raise MedsegError(
            f"{path}: expected images of {', '.join(missing) or 'a part'}, found {', '.join(found) or 'none'}"
        )
    cases: list[Case] = []
    twins: dict[str, list[Case]] = {}
    for part in wanted:
        images = _array(str(path), part + IMAGES, path.stat().st_mtime_ns)
        rows = _class_rows(path, part, len(images)) if part + LABELS in held else None
        for number, image in enumerate(images):
            name = None if rows is None else _class_name(rows[number], class_names)
            case = Case(f"{part}_{number:06d}", (Source("npz", (path,), f"{part}/{number}"),), class_name=name)
            cases.append(case)
            twins.setdefault(hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest(), []).append(case)
    faults = [] if keep_duplicates else [fault for group in twins.values() for fault in _doubled(group)]
    left_out = {fault.case for fault in faults} | {str(name) for name in skip}
    kept = tuple(case for case in cases if case.id not in left_out)
    if not kept:
        raise MedsegError(f"{path}: no image is left to work with")
    names = tuple(channels or (COLOURS if len(read(kept[0].images[0])[0]) == 3 else ("image",)))
    return Cohort(kept, names, None, tuple(faults), classes_of(kept))


def read(source: Source) -> tuple[Array, Geometry]:
    """Pixels ``(C, *S)`` with i = column, j = row (volumes: k = depth), in px. Raises ScanError."""
    path = source.files[0]
    part, _, number = source.key.rpartition("/")
    try:
        image = _array(str(path), part + IMAGES, path.stat().st_mtime_ns)[int(number)]
    except (MedsegError, IndexError, ValueError, OSError) as error:
        raise ScanError(f"{path}: image {source.key} cannot be read ({error}); copy the archive again") from None
    colour = image.ndim >= 3 and image.shape[-1] == 3
    planes = np.moveaxis(image, -1, 0) if colour else image[None]
    pixels = np.ascontiguousarray(planes.transpose(0, *range(planes.ndim - 1, 0, -1)))
    size = pixels.shape[1:]
    return pixels, Geometry.from_spacing(size, (1.0,) * len(size), "px")


def read_geometry(source: Source) -> Geometry:
    """The grid of one image. Raises ScanError as `read`."""
    return read(source)[1]


def _names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except FileNotFoundError:
        raise MedsegError(
            f"{path}: no such file; expected a NumPy archive with train{IMAGES} and train{LABELS}"
        ) from None
    except (zipfile.BadZipFile, OSError) as error:
        raise MedsegError(f"{path}: not readable as a NumPy archive ({error}); copy it again") from None


@lru_cache(maxsize=8)
def _array(path: str, name: str, changed: int) -> Array:
    """An array of an archive, kept in memory: these are small, and reading one image unpacks them all."""
    del changed
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive[name]
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise MedsegError(f"{path}: {name} cannot be read ({error}); copy the archive again") from None


def _class_rows(path: Path, part: str, count: int) -> Array:
    rows = _array(str(path), part + LABELS, path.stat().st_mtime_ns)
    rows = rows[:, None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or len(rows) != count or rows.dtype.kind not in "iub":
        raise MedsegError(
            f"{path}: expected {part}{LABELS} of {count} whole numbers, or rows of 0 and 1; found {rows.dtype} {rows.shape}"
        )
    return rows


def _class_name(row: Array, names: Mapping[int, str] | Sequence[str] | None) -> str:
    """The class of a row, or the classes that it marks with 1."""
    shown = [int(row[0])] if len(row) == 1 else [int(at) for at in np.flatnonzero(row)]
    try:
        return BETWEEN.join(f"class_{number}" if names is None else str(names[number]) for number in shown) or NONE
    except (KeyError, IndexError):
        raise MedsegError(f"class_names: class {shown} has no name; expected one for each, found {names}") from None


def _doubled(group: Sequence[Case]) -> list[Fault]:
    """Faults for what is left out of images with the same pixels: all but the first, or all where their classes differ."""
    if len(group) < 2:
        return []
    if len({case.class_name for case in group}) > 1:
        found = ", ".join(f"{case.id} is {case.class_name}" for case in group)
        return [Fault(case.id, "duplicate", f"the same pixels have different classes: {found}") for case in group]
    return [Fault(case.id, "duplicate", f"has the very pixels of {group[0].id}") for case in group[1:]]
