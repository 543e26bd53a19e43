"""Which scans show the same thing twice: exactly (the same pixels) or nearly (saved again, cropped by a line, annotated).

Nearly is decided in two steps. Small averages of all scans are compared with each other, which finds whatever is alike, and
scans of the same anatomy are. Of those that correlate, the fine detail is compared at full resolution: neighbouring voxels'
differences, that is texture and noise, which two different examinations never share. Measured on five real data sets: the
detail of pairs of different scans correlates below 0.56, of pictures that are known to be doubled above 0.6.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.fft

from medseg.volume import Array, resample_array, resampling_matrix

ALIKE = 0.96
SAME_DETAIL = {2: 0.35, 3: 0.6}
MOST_SHIFT = 4
_SIDE = {2: 32, 3: 16}
_MOST_VOXELS = 1 << 22
_MOST_PAIRS = 5000


@dataclass(frozen=True, eq=False)
class Print:
    """What is kept of a scan for comparison: its shape, a hash of its pixels, and a small average of unit length."""

    case: str
    patient: str
    shape: tuple[int, ...]
    digest: str
    thumbnail: Array


def print_of(case: str, patient: str, image: Array) -> Print | None:
    """The print of ``(C, *S)`` pixels; None for an image of one value, which is like any other such image."""
    clean = np.nan_to_num(image[0], nan=0.0, posinf=0.0, neginf=0.0)
    thumbnail = _thumbnail(clean)
    thumbnail = thumbnail - thumbnail.mean()
    length = float(np.linalg.norm(thumbnail))
    if length <= 1e-6 * max(1.0, float(np.abs(clean).max())):
        return None
    digest = hashlib.sha256(str(image.shape).encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return Print(case, patient, image.shape[1:], digest.hexdigest(), (thumbnail / length).ravel().astype(np.float32))


def duplicates(
    prints: Sequence[Print], read: Callable[[str], Array]
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Groups of cases that are the same, and groups that are nearly the same (of which the former are no part).

    Args:
        prints: of any cases; only those of two different patients are compared.
        read: case → ``(*S)`` pixels, asked for the few pairs whose detail is compared.
    """
    by_digest: dict[str, list[Print]] = defaultdict(list)
    for entry in prints:
        by_digest[entry.digest].append(entry)
    exact = [tuple(p.case for p in same) for same in by_digest.values() if len({p.patient for p in same}) > 1]
    detail = lru_cache(maxsize=8)(lambda case: _middle(read(case)))
    near = [
        (one.case, two.case)
        for one, two in _candidates(prints)
        if one.digest != two.digest
        and detail_correlation(detail(one.case), detail(two.case)) > SAME_DETAIL[len(one.shape)]
    ]
    return sorted(exact), _joined(near)


def detail_correlation(one: Array, two: Array) -> float:
    """Correlation of the differences of neighbouring voxels, at the shift of a few voxels that fits best.

    ``two`` is resampled where the shapes differ by a little. All shifts at once by the correlation theorem.
    """
    if one.shape != two.shape:
        two = resample_array(two[None], one.shape, 1)[0]
    product, energies = np.zeros(one.shape), np.zeros(2)
    for axis in range(one.ndim):
        details = []
        for number, image in enumerate((one, two)):
            detail = np.diff(image.astype(np.float32), axis=axis, append=np.take(image, [-1], axis))
            detail -= detail.mean()
            energies[number] += float(np.vdot(detail, detail))
            details.append(scipy.fft.rfftn(detail))
        product += scipy.fft.irfftn(details[0] * details[1].conj(), s=one.shape)
    if not energies.all():
        return 0.0
    for axis, length in enumerate(one.shape):
        near = np.arange(-min(MOST_SHIFT, length // 4), min(MOST_SHIFT, length // 4) + 1)
        product = np.take(product, near, axis=axis)
    return float(product.max() / np.sqrt(energies.prod()))


def _candidates(prints: Sequence[Print]) -> list[tuple[Print, Print]]:
    """Pairs of different patients, of nearly the same shape, whose small averages correlate; the most alike first."""
    found: list[tuple[float, Print, Print]] = []
    by_dimensions: dict[int, list[Print]] = defaultdict(list)
    for entry in prints:
        by_dimensions[len(entry.shape)].append(entry)
    for group in by_dimensions.values():
        thumbnails = np.stack([entry.thumbnail for entry in group])
        for start in range(
            0, len(group), 1024
        ):  # a block of rows at a time: memory grows with the number of scans only
            likeness = thumbnails[start : start + 1024] @ thumbnails.T
            for row, column in np.argwhere(likeness > ALIKE):
                one, two = group[start + row], group[column]
                if start + row < column and one.patient != two.patient and _alike(one.shape, two.shape):
                    found.append((float(likeness[row, column]), one, two))
    found.sort(key=lambda pair: (-pair[0], pair[1].case, pair[2].case))
    return [(one, two) for _, one, two in found[:_MOST_PAIRS]]


def _alike(one: Sequence[int], two: Sequence[int]) -> bool:
    return all(abs(a - b) <= 1 + 0.05 * max(a, b) for a, b in zip(one, two, strict=True))


def _thumbnail(image: Array) -> Array:
    """``(*S)`` pixels averaged (or, along short axes, interpolated) to 16³ or 32²."""
    small: Array = image.astype(np.float32)
    side = _SIDE[image.ndim]
    for axis, length in enumerate(image.shape):
        if length >= side:
            edges = np.linspace(0, length, side + 1).round().astype(int)
            widths = np.diff(edges).reshape([-1 if a == axis else 1 for a in range(image.ndim)])
            small = np.add.reduceat(small, edges[:-1], axis=axis) / widths
        else:
            small = np.moveaxis(np.moveaxis(small, axis, -1) @ resampling_matrix(length, side, 1).T, -1, axis)
    return small


def _middle(image: Array) -> Array:
    """The image, or of a large one the middle slices along its last axis."""
    image = np.nan_to_num(image, nan=0.0, posinf=0.0, neginf=0.0)
    keep = max(8, _MOST_VOXELS // max(1, int(np.prod(image.shape[:-1]))))
    first = max(0, (image.shape[-1] - keep) // 2)
    return image[..., first : first + keep]


def _joined(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Pairs that share a member become one group."""
    group: dict[str, set[str]] = {}
    for one, two in pairs:
        merged = group.get(one, {one}) | group.get(two, {two})
        for member in merged:
            group[member] = merged
    return sorted({tuple(sorted(members)) for members in group.values()})
