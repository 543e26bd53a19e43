"""Where training crops are cut from: the store itself, or whole cases kept by one of MONAI's caching datasets.

All four kinds answer the same two questions, a case by its position and a window of a case, with equal values, so that
the choice (``loader=``) is one of speed and memory alone; only `smart` sees other cases at another time. What is cached
is the preprocessed case, before any crop or augmentation. Nothing here is random, and nothing here chooses a crop.
"""

from __future__ import annotations

import math
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from monai.data.dataset import CacheDataset, PersistentDataset, SmartCacheDataset
from monai.transforms.transform import Transform
from tqdm import tqdm

from medseg.data.store import Store, StoredCase
from medseg.errors import MachineError, MedsegError
from medseg.structures import Boxes
from medseg.volume import Array


class CropSource(Protocol):
    """What is cut from and what a task is asked about: a `StoredCase`, or a whole case in memory."""

    @property
    def id(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]:
        """``S``, on the plan's grid."""

    @property
    def channels(self) -> int: ...

    @property
    def locations(self) -> Mapping[str, Array]:
        """Target name → ``(N, D)`` voxel indices that belong to it, a sample of them."""

    @property
    def lesions(self) -> Boxes | None:
        """The boxes of a case that was prepared for detection, on the plan's grid."""

    @property
    def classes(self) -> tuple[int, ...] | None:
        """Positions of the classes that a case shows, where it was prepared for classification."""

    @property
    def has_label(self) -> bool: ...

    def image(self, lower: Sequence[int], upper: Sequence[int]) -> Array:
        """``(C, *(upper − lower))`` float32; 0 beyond the case."""

    def label(self, lower: Sequence[int], upper: Sequence[int]) -> Array:
        """``(1, *(upper − lower))`` int16; 0 beyond the case."""


class Cases(Protocol):
    """The cases of a training, by position. Equal positions hold equal cases whatever the kind (except `smart`)."""

    @property
    def changes(self) -> bool:
        """Whether the next epoch has other cases: workers, which hold copies, must then be made anew each epoch."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> CropSource: ...

    def known(self, position: int) -> StoredCase:
        """What there is to know of a case without reading its pixels."""

    def on_epoch_start(self) -> None:
        """Called as soon as the epoch's workers run."""

    def on_epoch_end(self) -> None:
        """Called when the epoch's last batch was taken."""

    def close(self) -> None:
        """Called when training ends; may be called again."""


class CasesBuilder(Protocol):
    """`stream`, `cache`, `persistent` or `smart` with its options bound, or one of the user's own."""

    def __call__(self, store: Store, ids: Sequence[str], /) -> Cases: ...


def stream(store: Store, ids: Sequence[str]) -> Cases:
    """Each crop is read from the store, only the chunks it touches: least memory, no start-up."""
    return _Streamed(store, ids)


def cache(store: Store, ids: Sequence[str], *, rate: float = 1.0, threads: int = 1, progress: bool = False) -> Cases:
    """Whole cases in memory (`monai.data.CacheDataset`), shared by all workers of this process.

    Args:
        rate: share of the cases that is kept; the others are read whole whenever they are drawn.
        threads: threads that fill the cache.
    """
    load = _Load(store)
    dataset = CacheDataset(
        _items(store, ids), load, cache_rate=rate, num_workers=threads, progress=progress, copy_cache=False
    )
    return _Cached(dataset, store, ids)


def persistent(
    store: Store, ids: Sequence[str], *, cache_dir: str | os.PathLike[str] | None = None, progress: bool = False
) -> Cases:
    """Whole cases as tensors on disk (`monai.data.PersistentDataset`), written on the first run and kept for the next.

    Args:
        cache_dir: where the tensors lie, by default in the store's folder. Runs and folds may share it: a file is named
            as the store's entry is, by the content of the case and by what the plan says about preprocessing.

    Raises:
        MachineError: the tensors could not be written, as on a full disk; those that were are kept.
    """
    folder = Path(cache_dir) if cache_dir is not None else store.folder / "persistent"
    folder.mkdir(parents=True, exist_ok=True)
    items = _items(store, ids)
    dataset = PersistentDataset(items, _Load(store), cache_dir=folder, hash_func=_entry_name)
    # MONAI writes into the folder for temporary files and moves the result: across file systems that is a copy, which a
    # kill cuts in half. So all is written beforehand, with the temporary folder beside the target.
    missing = [at for at, item in enumerate(items) if not (folder / f"{item['entry']}.pt").is_file()]
    try:
        with _temporary_files_in(folder):
            for at in tqdm(missing, desc="caching", unit="case", disable=not progress):
                dataset[at]
    except (OSError, RuntimeError) as error:  # torch tells of a full disk by a RuntimeError
        raise MachineError(
            f"{folder}: the cached tensors of {items[at]['id']!r} could not be written ({error}); make room, or train "
            "with loader=stream, which needs none"
        ) from error
    return _Cached(dataset, store, ids)


def smart(
    store: Store, ids: Sequence[str], *, rate: float = 0.5, replace_rate: float = 0.2, threads: int = 1, seed: int = 0
) -> Cases:
    """A part of the cases in memory, of which some are replaced each epoch (`monai.data.SmartCacheDataset`).

    **Exempt from exact resuming**: which cases are in memory depends on how many epochs this process has seen, so that
    a run which was interrupted sees other crops than one which was not. Two uninterrupted runs are equal.

    Args:
        rate: share of the cases that is in memory at a time.
        replace_rate: share of those that is replaced after an epoch; they are read in the background during it.
        threads: threads that read them.
        seed: shuffles the order in which cases take their turn.
    """
    count = min(max(1, round(len(ids) * rate)), len(ids) - 1)
    if count < 1 or replace_rate <= 0:
        return cache(store, ids, threads=threads)
    load = _Load(store)
    dataset = SmartCacheDataset(
        _items(store, ids),
        load,
        replace_rate=replace_rate,
        cache_num=count,
        num_init_workers=threads,
        num_replace_workers=threads,
        progress=False,
        seed=seed,
        copy_cache=False,
    )
    return _Smart(dataset, load, turns=min(math.ceil(count * replace_rate), len(ids) - count))


def whole_cases(store: Store, ids: Sequence[str]) -> Iterator[StoredCase]:
    """The cases one after another, in the order of ``ids``: what validation walks."""
    for name in ids:
        yield store.case(name)


@dataclass(frozen=True, eq=False)
class LoadedCase:
    """A whole preprocessed case in memory, with the face of a `StoredCase` that a crop and a task look at."""

    id: str
    images: Array
    labels: Array | None
    locations: Mapping[str, Array]
    lesions: Boxes | None = None
    classes: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape[1:])

    @property
    def channels(self) -> int:
        return int(self.images.shape[0])

    @property
    def has_label(self) -> bool:
        return self.labels is not None

    def image(self, lower: Sequence[int], upper: Sequence[int]) -> Array:
        return _window(self.images, lower, upper)

    def label(self, lower: Sequence[int], upper: Sequence[int]) -> Array:
        if self.labels is None:
            raise MedsegError(f"case {self.id!r}: has no label; name one in the data set")
        return _window(self.labels, lower, upper)

    def whole(self) -> tuple[Array, Array | None]:
        return self.images, self.labels


class _Fixed:
    """Cases that stay the same: nothing happens between epochs."""

    changes = False

    def __init__(self, ids: Sequence[str]) -> None:
        self._ids = tuple(ids)

    def __len__(self) -> int:
        return len(self._ids)

    def on_epoch_start(self) -> None:
        """Nothing to do."""

    def on_epoch_end(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class _Streamed(_Fixed):
    def __init__(self, store: Store, ids: Sequence[str]) -> None:
        super().__init__(ids)
        self._store = store

    def __getitem__(self, position: int) -> CropSource:
        return self.known(position)

    def known(self, position: int) -> StoredCase:
        return self._store.case(self._ids[position])


class _Cached(_Fixed):
    def __init__(self, dataset: CacheDataset | PersistentDataset, store: Store, ids: Sequence[str]) -> None:
        super().__init__(ids)
        self._dataset, self._store = dataset, store

    def __getitem__(self, position: int) -> CropSource:
        return _loaded(self.known(position), self._dataset[position])

    def known(self, position: int) -> StoredCase:
        return self._store.case(self._ids[position])


class _Smart:
    """Runs the start / update / shutdown of MONAI's SmartCacheDataset, and never forks while its thread reads.

    A worker forked while another thread holds a lock of the compression library would wait for it forever. So the
    thread needs a permit for each case that it reads, and an epoch's permits are given when its workers already run.
    """

    changes = True

    def __init__(self, dataset: SmartCacheDataset, load: _Load, turns: int) -> None:
        self._dataset, self._load, self._turns = dataset, load, turns
        self._permits = load.permits = threading.Semaphore(0)
        self._reading = False

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, position: int) -> CropSource:
        return _loaded(self.known(position), self._dataset[position])

    def known(self, position: int) -> StoredCase:
        return self._load.store.case(self._dataset[position]["id"])  # which is in memory

    def on_epoch_start(self) -> None:
        if not self._reading:
            self._reading = True
            self._permits.release(self._turns)
            self._dataset.start()

    def on_epoch_end(self) -> None:
        if self._reading:
            self._dataset.update_cache()
            self._reading = False

    def close(self) -> None:
        self._load.stopped = True
        self._permits.release(self._turns)
        self._dataset.shutdown()


class _Load(Transform):
    """MONAI's deterministic part: ``{"id"}`` → ``{"id", "image", "label", "locations", "lesions"}`` of a whole case."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.permits: threading.Semaphore | None = None
        self.stopped = False

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        if self.permits is not None:
            self.permits.acquire()
        if self.stopped:
            return dict(data)
        case = self.store.case(data["id"])
        image, label = case.whole()
        locations = {name: np.array(at) for name, at in case.locations.items()}
        lesions = () if case.lesions is None else (case.lesions.boxes, case.lesions.labels)
        return {"id": case.id, "image": image, "label": label, "locations": locations, "lesions": lesions}


def _items(store: Store, ids: Sequence[str]) -> list[dict[str, str]]:
    return [{"id": name, "entry": store.case(name).file.stem} for name in ids]


def _entry_name(item: Mapping[str, str]) -> bytes:
    return item["entry"].encode()


def _loaded(case: StoredCase, item: Mapping[str, Any]) -> LoadedCase:
    """What `_Load` made, in memory or read back as tensors; the classes are not kept there, as one may be mended."""
    locations = {target: np.asarray(at) for target, at in item["locations"].items()}
    label, lesions = item["label"], item["lesions"]
    return LoadedCase(
        case.id,
        np.asarray(item["image"]),
        None if label is None else np.asarray(label),
        locations,
        Boxes(*map(np.asarray, lesions)) if lesions else None,
        case.classes,
    )


def _window(array: Array, lower: Sequence[int], upper: Sequence[int]) -> Array:
    """``array[:, lower:upper]`` with zeros beyond its borders; a view where it lies inside."""
    first = [min(max(at, 0), n) for at, n in zip(lower, array.shape[1:], strict=True)]
    last = [max(min(at, n), low) for at, n, low in zip(upper, array.shape[1:], first, strict=True)]
    inside = array[(slice(None), *map(slice, first, last))]
    if first == list(lower) and last == list(upper):
        return inside
    out = np.zeros((array.shape[0], *(high - low for low, high in zip(lower, upper, strict=True))), dtype=array.dtype)
    if inside.size:
        begin = [at - low for at, low in zip(first, lower, strict=True)]
        end = [at - low for at, low in zip(last, lower, strict=True)]
        out[(slice(None), *map(slice, begin, end))] = inside
    return out


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
