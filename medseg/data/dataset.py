"""From stored cases to batches: which crop is cut where, in which worker, in which process.

A crop is a function of (seed, epoch, index) and of nothing else: its generator is made from these three numbers, so
that workers, ranks, prefetching and resuming cannot change what is seen. A step's batch is the indices
``step · batch_size + slot``; with several ranks each takes every so-many-th slot of the same batch. Where cases come
from is said in `cases`; what a crop must hold is the task's business, how it is changed that of `augment`, and making its image
on a device that of `on_device`. Nothing here knows losses, networks or Lightning.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import blosc2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from medseg.data.augment import Augment, Recipe
from medseg.data.cases import Cases, CasesBuilder, cache, persistent, smart, stream, whole_cases
from medseg.data.on_device import DeviceImages, Pending
from medseg.data.store import Store
from medseg.errors import MedsegError
from medseg.planning.plan import Plan
from medseg.volume import Array

__all__ = [
    "CropLoader",
    "Crops",
    "Draw",
    "EpochSampler",
    "cache",
    "make_loader",
    "persistent",
    "smart",
    "stream",
    "wants_foreground",
    "whole_cases",
]


MOST_DRAWS = 1000
"""After so many cases that the task does not want, the last is taken."""


Images = Literal["made", "cut", "named"]
"""How far a crop's image is made where the crop is drawn: wholly, cut out but not changed, or only said where it lies."""


class Cropper(Protocol):
    """What is needed here of a `Task`: which cases and where to crop, and what the loss compares with."""

    def wants(self, case: Any, rng: np.random.Generator) -> bool: ...

    def crop(
        self, case: Any, patch_size: Sequence[int], foreground: bool, rng: np.random.Generator
    ) -> tuple[int, ...]: ...

    def target(
        self, case: Any, label: Array | None, patch_size: Sequence[int], placed: Callable[[Array], Array]
    ) -> dict[str, Any]: ...


class Draw(NamedTuple):
    """The address of one crop: ``index`` counts through the epoch, over all ranks."""

    epoch: int
    index: int  # type: ignore[assignment]  # a tuple has a method of this name


class Crops(Dataset[dict[str, Any]]):
    """Training crops, addressed by `Draw`.

    Args:
        cases: where whole cases or their windows come from.
        task: says where to crop.
        plan: patch size, batch size and the share of foreground crops.
        augment: draws and applies the random changes.
        seed: with epoch and index, all that a crop depends on; 0 or more.
        images: how far the image is made here. The rest, which a `Recipe` alone allows, is left to `DeviceImages`.
    """

    def __init__(
        self,
        cases: Cases,
        task: Cropper,
        plan: Plan,
        augment: Augment[Any],
        *,
        seed: int = 0,
        images: Images = "made",
    ) -> None:
        if not len(cases):
            raise MedsegError("training: expected a case to crop from, found none; look at the split and at data.skip")
        if seed < 0:
            raise MedsegError(f"seed: expected 0 or more, found {seed}")
        self.cases, self.task, self.plan, self.augment, self.seed = cases, task, plan, augment, int(seed)
        self._images = images

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """``image`` (C, *patch) float32, or ``pending``; ``case``: the id, and what `Task.target` gives."""
        epoch, index = draw
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, epoch, index))))
        case = self._drawn(rng)
        patch = self.plan.patch_size
        wanted = wants_foreground(index, self.plan.batch_size, self.plan.foreground)
        # The patch is placed first and the window grows about it: augmentation does not move what a crop is about.
        lower = self.task.crop(case, patch, wanted, rng)
        parameters = self.augment.draw(rng, case.channels)
        size = self.augment.source_size(patch, parameters)
        first = tuple(at - (s - n) // 2 for at, s, n in zip(lower, size, patch, strict=True))
        last = tuple(at + s for at, s in zip(first, size, strict=True))
        label = case.label(first, last) if case.has_label else None
        made: dict[str, Any]
        if self._images == "made" or not isinstance(self.augment, Recipe):
            image, label = self.augment.apply(case.image(first, last), label, patch, parameters)
            made = {"image": torch.from_numpy(image)}
        else:
            window = torch.from_numpy(case.image(first, last)) if self._images == "cut" else None
            label = None if label is None else self.augment.apply_to_label(label, patch, parameters)
            made = {"pending": Pending(case.id, first, last, window, parameters)}

        def placed(boxes: Array) -> Array:
            return self.augment.move(boxes - np.tile(first, 2), patch, parameters)

        target = self.task.target(case, label, patch, placed)
        return {**made, "case": case.id, **target}

    def _drawn(self, rng: np.random.Generator) -> Any:
        """A case, each as likely as any other, or as the task wants them."""
        for _ in range(MOST_DRAWS):
            at = int(rng.integers(len(self.cases)))
            if self.task.wants(self.cases.known(at), rng):
                break
        return self.cases[at]


def wants_foreground(index: int, batch_size: int, share: float) -> bool:
    """Whether the crop at ``index`` must hold something to find: at least ``share`` of each batch, its last slots.

    Batches of one take turns instead, so that their share over time is the one asked for.
    """
    if batch_size == 1:
        return math.floor((index + 1) * share + 1e-9) > math.floor(index * share + 1e-9)
    return index % batch_size >= batch_size - math.ceil(share * batch_size - 1e-9)


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Tensors are stacked; anything else (ids, the lesions of a sample) becomes a list."""
    columns = {name: [sample[name] for sample in samples] for name in samples[0]}
    return {
        name: torch.stack(values) if isinstance(values[0], torch.Tensor) else values for name, values in columns.items()
    }


class EpochSampler(Sampler[Draw]):
    """The addresses of one epoch, in order, as one rank sees them: slots ``rank, rank + world_size, …`` of each batch.

    Args:
        steps: batches an epoch.
        batch_size: crops a step, over all ranks; a multiple of ``world_size``.
    """

    def __init__(self, steps: int, batch_size: int, *, rank: int = 0, world_size: int = 1, epoch: int = 0) -> None:
        if batch_size % world_size or not 0 <= rank < world_size:
            raise MedsegError(
                f"training on {world_size} processes: expected plan.batch_size to be a multiple of {world_size}, "
                f"found {batch_size}; set plan.batch_size={world_size * math.ceil(batch_size / world_size)}"
            )
        self.steps, self.batch_size, self.rank, self.world_size, self.epoch = steps, batch_size, rank, world_size, epoch

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is; Lightning calls it by this name."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return self.steps * self.batch_size // self.world_size

    def __iter__(self) -> Iterator[Draw]:
        epoch = self.epoch
        return (Draw(epoch, index) for index in range(self.rank, self.steps * self.batch_size, self.world_size))


class CropLoader(DataLoader[dict[str, Any]]):
    """A DataLoader of crops for one epoch after another; say which one by `set_epoch` before iterating.

    ``images`` finishes its batches on a device, where it is there. ``waited_s`` is how long, in this epoch, whoever iterates has
    waited for batches.
    """

    sampler: EpochSampler
    dataset: Crops
    images: DeviceImages | None = None
    waited_s: float = 0.0

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Any:
        """Begins when the first batch is asked for, since Lightning sets the epoch after making the iterator."""
        self.on_epoch_end()
        batches = super().__iter__()
        self.dataset.cases.on_epoch_start()
        self.waited_s = 0.0
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited_s += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def on_epoch_end(self) -> None:
        """Let the cases change for the next epoch; called by the next iteration at the latest."""
        self.dataset.cases.on_epoch_end()

    def close(self) -> None:
        """End the workers and whatever the cases run in the background; may be called again."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]
        self.dataset.cases.close()


def make_loader(
    store: Store,
    ids: Sequence[str],
    task: Cropper,
    plan: Plan,
    augment: Augment[Any],
    *,
    kind: CasesBuilder = stream,
    seed: int = 0,
    steps: int = 250,
    workers: int = 1,
    rank: int = 0,
    world_size: int = 1,
    epoch: int = 0,
    images: DeviceImages | None = None,
    pin_memory: bool = False,
) -> CropLoader:
    """Batches of training crops: ``image`` (B, C, *patch), ``case``: B ids, and what the task compares with.

    Workers are forked: they share cached cases and start in milliseconds. That is safe as long as they touch neither
    the GPU nor thread pools of their parent, and they do not: torch and blosc2 are set to one thread in each. Outside
    Linux (no fork on Windows, and system libraries of macOS that do not survive one) they are spawned.

    Args:
        ids: the cases to train on; their order does not matter.
        kind: `stream` (default), `cache`, `persistent`, `smart`, with options bound, or another builder.
        steps: batches an epoch.
        workers: processes that prepare batches; 0: none, and the very same batches.
        rank, world_size: this process among those that train together; each gets its share of every batch.
        images: changes images on a device, or also cuts them out there; whoever iterates calls its ``finish``.
        pin_memory: whether batches are brought into memory that a GPU copies from beside its work.
    """
    sampler = EpochSampler(steps, plan.batch_size, rank=rank, world_size=world_size, epoch=epoch)
    source = kind(store, sorted(ids))
    method = "fork" if sys.platform == "linux" else "spawn"
    if source.changes and method == "spawn":
        workers = 0  # its thread cannot be sent to another process
    options: dict[str, Any] = {}
    if workers > 0:
        options = {
            "multiprocessing_context": method,
            "persistent_workers": not source.changes,
            "prefetch_factor": 4,
            "worker_init_fn": _WorkerStart(os.getpid()),
        }
    far: Images = "made" if images is None else "cut" if images.held is None else "named"
    loader = CropLoader(
        Crops(source, task, plan, augment, seed=seed, images=far),
        batch_size=plan.batch_size // world_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        # Its own generator: each new iterator draws a number, which must not come out of the network's dropout.
        generator=torch.Generator().manual_seed(seed),
        **options,
    )
    loader.images = images
    return loader


@dataclass(frozen=True)
class _WorkerStart:
    """What a worker does first: one thread, deaf to Ctrl-C but not to its parent's end, even if that is killed."""

    parent: int

    def __call__(self, worker: int) -> None:
        torch.set_num_threads(1)
        blosc2.set_nthreads(1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if sys.platform == "linux":
            pr_set_pdeathsig = 1
            ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
            if os.getppid() != self.parent:  # it died before it could be watched
                os._exit(1)
