"""Preprocessed cases on disk, so that reading a patch does not read the volume.

A case is one file: a zip archive, members uncompressed, of two chunked and compressed blosc2 arrays (``image.b2nd``,
``label.b2nd``), sampled voxels of each target (``locations.npy``) and ``case.json``. For detection the mask is one of numbered
lesions, where there is a mask, and ``case.json`` holds their boxes. Its name is a hash of the content of the
source files and of what the plan says about preprocessing, so that nothing is made twice and nothing stale is read. Nothing
here knows patches, augmentation or torch, which workers would spend seconds to import.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import math
import os
import time
import zipfile
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import blosc2
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from medseg import scans
from medseg.data.lesions import preprocess_lesions
from medseg.data.preprocess import Restoration, preprocess, preprocess_mask
from medseg.data.regions import read_planned
from medseg.data.workers import work_off
from medseg.errors import MachineError, MedsegError
from medseg.files import content_sha256, whole_file
from medseg.planning.plan import Plan
from medseg.scans.classes import true_classes
from medseg.scans.lesions import read_lesions
from medseg.structures import Boxes, Case, Fault, LabelTable
from medseg.volume import Array

logger = logging.getLogger(__name__)

FORMAT = 1
MAX_LOCATIONS = 10_000
# Workers are started when this time has passed and three times as much is left: starting them takes about as long.
ALONE_S = 1.0
# Writing an entry takes seconds: a temporary file of this age has no writer any more.
_STALE_S = 600.0


@dataclass(frozen=True)
class StoredCase:
    """A preprocessed case on disk: cheap to hold, to pickle and to open; pixels are read when they are asked for.

    Args:
        file: the archive that holds it.
        shape: voxels of the plan's grid.
        channels: channels of the image.
        offsets: where each member begins in the archive.
        counts: target name → how many sampled voxels there are of it.
        restored: JSON of the `Restoration`.
        lesions: the boxes of a case that was prepared for detection, on the plan's grid; its label then numbers them from 1.
        classes: positions of the classes that it shows among those of the plan; None unless it was prepared for classification.
    """

    id: str
    file: Path
    shape: tuple[int, ...]
    channels: int
    offsets: Mapping[str, int]
    counts: Mapping[str, int]
    restored: str
    lesions: Boxes | None = None
    classes: tuple[int, ...] | None = None

    @classmethod
    def open(cls, id: str, file: Path) -> StoredCase:
        """Read what there is to know without pixels. Raises ``zipfile.BadZipFile`` where the file is not whole."""
        with file.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            offsets = {info.filename: _begin(stream, info) for info in archive.infolist()}
            known = json.loads(archive.read("case.json"))
        shape, lesions = tuple(known["shape"]), None
        if "boxes" in known:
            edges = np.array(known["boxes"], np.float64).reshape(-1, 2 * len(shape))
            lesions = Boxes(edges, np.array(known["classes"], np.int64))
        return cls(id, file, shape, known["channels"], offsets, known["counts"], known["restoration"], lesions)

    @property
    def restoration(self) -> Restoration:
        """The way back to the scan's own grid."""
        return Restoration.from_json(self.restored)

    @property
    def has_label(self) -> bool:
        return "label.b2nd" in self.offsets

    @property
    def image_bytes(self) -> int:
        """What the image takes in memory in its own number format."""
        return int(self._opened("image.b2nd").dtype.itemsize) * self.channels * math.prod(self.shape)

    @property
    def locations(self) -> dict[str, Array]:
        """Target name → ``(N, D)`` int32 voxels of the plan's grid that belong to it, at most `MAX_LOCATIONS`; a mapped file."""
        offset = self.offsets["locations.npy"]
        with self.file.open("rb") as file:
            file.seek(offset)
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            offset = file.tell()
        rows = np.memmap(self.file, dtype, "r", offset, shape) if shape[0] else np.zeros(shape, dtype)
        ends = np.cumsum([0, *self.counts.values()])
        return {name: rows[low:high] for name, low, high in zip(self.counts, ends, ends[1:], strict=False)}

    def image(self, lower: Sequence[int], upper: Sequence[int]) -> Array:
        """The window ``[lower, upper)`` as ``(C, *size)`` float32.

        Beyond the case it is 0: the mean of a z-scored channel, and what cropped background is set to.
        """
        return self._window("image.b2nd", self.channels, np.float32, lower, upper)

    def label(self, lower: Sequence[int], upper: Sequence[int]) -> Array:
        """The mask in the window ``[lower, upper)`` as ``(1, *size)`` int16; 0 beyond the case."""
        if not self.has_label:
            raise MedsegError(
                f"case {self.id!r}: has no label; name one in the data set, or leave the case out with data.skip"
            )
        return self._window("label.b2nd", 1, np.int16, lower, upper)

    def whole(self) -> tuple[Array, Array | None]:
        """Image ``(C, *S)`` float32 and label ``(1, *S)`` int16, None where it has no label."""
        start = (0,) * len(self.shape)
        return self.image(start, self.shape), self.label(start, self.shape) if self.has_label else None

    def _window(self, member: str, channels: int, dtype: Any, lower: Sequence[int], upper: Sequence[int]) -> Array:
        stored = self._opened(member)
        inner = [(max(int(low), 0), min(int(high), n)) for low, high, n in zip(lower, upper, self.shape, strict=True)]
        size = [int(high) - int(low) for low, high in zip(lower, upper, strict=True)]
        read = (slice(None), *(slice(low, high) for low, high in inner))
        if [high - low for low, high in inner] == size:
            return np.asarray(stored[read]).astype(dtype)
        out = np.zeros((channels, *size), dtype)
        if all(low < high for low, high in inner):
            place = (slice(a - int(low), b - int(low)) for (a, b), low in zip(inner, lower, strict=True))
            out[(slice(None), *place)] = stored[read]
        return out

    def _opened(self, member: str) -> Any:
        return _opened(str(self.file), self.offsets[member], os.getpid())


@dataclass(frozen=True)
class Store:
    """The preprocessed cases of a cohort, and those that could not be made."""

    folder: Path
    cases: Mapping[str, StoredCase]
    failed: list[Fault] = field(default_factory=list)

    def case(self, id: str) -> StoredCase:
        """Raises MedsegError for a case that failed or was never asked for."""
        if id in self.cases:
            return self.cases[id]
        for fault in self.failed:
            if fault.case == id:
                raise MedsegError(str(fault))
        raise MedsegError(f"case {id!r}: not among the {len(self.cases)} prepared cases of {self.folder}")


def prepare(cases: Iterable[Case], plan: Plan, folder: Path, *, workers: int = 2, progress: bool = True) -> Store:
    """Preprocess every case that ``folder`` does not yet hold.

    It may be interrupted at any moment, and two of them may share a folder: entries appear whole, and no worker outlives
    the caller, not even one that is killed.

    Raises:
        MachineError: the disk is full or memory ran out; what was made is kept.
    """
    cases = list(cases)
    folder = Path(folder)
    _make_folder(folder)
    results: dict[str, StoredCase | Fault] = {}
    made = _made(cases, plan, folder, workers)
    with tqdm(total=len(cases), desc="preprocessing", unit="case", disable=not progress) as bar, closing(made):
        for case, result in made:
            results[case.id] = result
            bar.update()
    ordered = [results[case.id] for case in cases]
    failed = [result for result in ordered if isinstance(result, Fault)]
    for fault in failed:
        logger.warning("%s", fault)
    return Store(folder, {result.id: result for result in ordered if isinstance(result, StoredCase)}, failed)


def entry_key(case: Case, plan: Plan) -> str:
    """The name of a case's entry: SHA-256 over the content of its files and what preprocessing depends on."""
    digest = hashlib.sha256(f"{FORMAT} {plan.preprocessing_key()}".encode())
    for source in (*case.images, case.label):
        if source is None:
            digest.update(b"no label")
            continue
        digest.update(f"{source.kind} {source.key!r} {source.frames or len(source.files)}".encode())
        for path in source.distinct_files:
            digest.update(bytes.fromhex(content_sha256(path)))
    if plan.boxes is not None:
        digest.update(case.boxes.read_bytes() if isinstance(case.boxes, Path) else repr(case.boxes).encode())
    return digest.hexdigest()[:32]


def _made(
    cases: Sequence[Case], plan: Plan, folder: Path, workers: int
) -> Generator[tuple[Case, StoredCase | Fault], None, None]:
    """In this process while the work is small, in workers when it proves large."""
    begin = time.monotonic()
    for done, case in enumerate(cases):
        left = cases[done:]
        passed = time.monotonic() - begin
        if workers > 1 and len(left) > 1 and passed >= ALONE_S and passed * len(left) >= 3 * ALONE_S * done:
            yield from work_off(_prepare_one, left, plan, folder, workers=min(workers, len(left)))
            return
        yield case, _prepare_one(case, plan, folder)


def _prepare_one(case: Case, plan: Plan, folder: Path) -> StoredCase | Fault:
    """Make one entry, or find it made. What the user can mend becomes a Fault, what stops the machine is raised."""
    try:
        classes = _classes(case, plan)
        target = folder / f"{entry_key(case, plan)}.zip"
        try:
            return replace(StoredCase.open(case.id, target), classes=classes)
        except FileNotFoundError:
            pass
        except (zipfile.BadZipFile, KeyError, ValueError):
            logger.warning("%s: not whole, made again", target)
        image, label, restoration, lesions = _preprocessed(case, plan)
    except MachineError:
        raise
    except MedsegError as error:
        kind = getattr(error, "kind", "unprepared")
        return Fault(case.id, kind, str(error).removeprefix(f"case {case.id!r}: "))
    except OSError as error:
        kind = "missing_file" if isinstance(error, FileNotFoundError) else "unreadable"
        return Fault(case.id, kind, f"{error.filename or 'a file'}: {error.strerror or error}")
    except MemoryError:
        raise MachineError(f"case {case.id!r}: memory ran out while preprocessing it; use fewer workers") from None
    except Exception as error:
        error.add_note(f"while preprocessing case {case.id!r}")
        raise
    _write(target, image, label, restoration, lesions, plan)
    return replace(StoredCase.open(case.id, target), classes=classes)


def _classes(case: Case, plan: Plan) -> tuple[int, ...] | None:
    """What the case shows is not part of an entry, so that a class may be mended without preparing the case anew."""
    if plan.classes is None:
        return None
    names = list(plan.labels.names.values())
    return tuple(names.index(name) for name in true_classes(case, names))


def _preprocessed(case: Case, plan: Plan) -> tuple[Array, Array | None, Restoration, Boxes | None]:
    volume = read_planned(case, plan)
    image, restoration = preprocess(volume, plan)
    if plan.boxes is not None:
        found = read_lesions(case, volume.geometry, plan.labels, plan.boxes.rule)
        for fault in found.faults:
            logger.warning("%s", fault)
        boxes, numbered = preprocess_lesions(found.boxes, found.numbered, restoration, plan)
        return image, numbered, restoration, boxes
    if case.label is None or plan.classes is not None:
        return image, None, restoration, None
    mask, _ = scans.read_mask(case.label, volume.geometry, plan.labels)
    return image, preprocess_mask(mask, restoration, plan), restoration, None


def _write(
    target: Path, image: Array, label: Array | None, restoration: Restoration, lesions: Boxes | None, plan: Plan
) -> None:
    locations = {} if label is None or lesions is not None else _sample(label[0], plan.labels)
    known = {
        "format": FORMAT,
        "shape": image.shape[1:],
        "channels": len(image),
        "counts": {name: len(rows) for name, rows in locations.items()},
        "restoration": restoration.to_json(),
    }
    if lesions is not None:
        known |= {"boxes": lesions.boxes.tolist(), "classes": lesions.labels.tolist()}
    rows = io.BytesIO()
    np.save(rows, np.concatenate([np.zeros((0, image.ndim - 1), np.int32), *locations.values()]))
    members = {
        "case.json": json.dumps(known).encode(),
        "locations.npy": rows.getvalue(),
        "image.b2nd": _packed(_narrowed(image, plan)),
    }
    if label is not None:
        members["label.b2nd"] = _packed(label.astype(np.uint8) if label.max() <= 255 else label)
    try:
        with whole_file(target) as aside, zipfile.ZipFile(aside, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    except OSError as error:
        raise _machine_error(error, target.parent) from error


def _narrowed(image: Array, plan: Plan) -> Array:
    """float16 for normalised images: rounding is below 0.001 standard deviations up to 4, far below noise, and disk and
    reading are halved. float32 where a channel keeps its own units or a value is beyond float16."""
    own_units = any(channel.normalisation == "none" for channel in plan.channels)
    if own_units or np.abs(image).max() >= np.finfo(np.float16).max:
        return image
    return image.astype(np.float16)


def _packed(array: Array) -> bytes:
    """``(C, *S)`` as a contiguous blosc2 frame: chunks are what is read, blocks (32³, 128²) what is decompressed."""
    chunk, block = (64, 32) if array.ndim == 4 else (512, 128)
    chunks = [1, *(_even(n, chunk) for n in array.shape[1:])]
    blocks = [1, *(_even(n, block) for n in chunks[1:])]
    parameters = {"codec": blosc2.Codec.ZSTD, "clevel": 1, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1}
    packed = blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=chunks,
        blocks=blocks,
        cparams=parameters,
        dparams={"nthreads": 1},
        contiguous=True,
    )
    return bytes(packed.to_cframe())


def _even(length: int, largest: int) -> int:
    """The part of ``length`` when it is cut into as few about equal parts as ``largest`` allows."""
    return math.ceil(length / math.ceil(length / largest))


def _sample(label: Array, table: LabelTable) -> dict[str, Array]:
    """Up to `MAX_LOCATIONS` voxels of each target in ``(*S)``, drawn without replacement and always the same."""
    boxes = ndimage.find_objects(label)
    found = {}
    for name, values in table.targets.items():
        spans = [boxes[v - 1] for v in values if v <= len(boxes) and boxes[v - 1] is not None]
        if not spans:
            found[name] = np.zeros((0, label.ndim), np.int32)
            continue
        lower = [min(span[axis].start for span in spans) for axis in range(label.ndim)]
        upper = [max(span[axis].stop for span in spans) for axis in range(label.ndim)]
        part = label[tuple(slice(low, high) for low, high in zip(lower, upper, strict=True))]
        flat = np.flatnonzero(np.isin(part, values))
        if len(flat) > MAX_LOCATIONS:
            flat = np.sort(np.random.default_rng(0).choice(flat, MAX_LOCATIONS, replace=False, shuffle=False))
        found[name] = (np.stack(np.unravel_index(flat, part.shape), 1) + lower).astype(np.int32)
    return found


@lru_cache(maxsize=128)
def _opened(file: str, offset: int, process: int) -> Any:
    """A mapped array, kept open for the next window; one thread, for loaders run many processes. Not shared over a fork."""
    return blosc2.open(file, mode="r", offset=offset, mmap_mode="r", dparams={"nthreads": 1})


def _begin(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Where the content of an uncompressed member begins: after its local header of 30 bytes, name and extra field."""
    file.seek(info.header_offset + 26)
    lengths = file.read(4)
    return info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")


def _machine_error(error: OSError, folder: Path) -> MedsegError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineError(
            f"{folder}: the disk is full; make room, or choose another folder with cache.dir=, and run again"
        )
    return MedsegError(
        f"{folder}: preprocessed cases cannot be written there ({error.strerror or error}); choose another cache.dir="
    )


def _make_folder(folder: Path) -> None:
    """Make the folder, and take away what a killed run left half written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(".*.tmp"):
            if time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink(missing_ok=True)
    except FileNotFoundError:
        pass  # Another process was quicker to take it away.
    except OSError as error:
        raise _machine_error(error, folder) from error
