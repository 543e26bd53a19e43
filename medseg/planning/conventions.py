"""Where the way of a model that came from elsewhere differs from medseg's own, so that it predicts what it predicted there.

Part of a Plan and data like it; a plan of medseg's own says nothing of it. Nothing here loads pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from medseg.errors import MedsegError

Averaged = Literal["probabilities", "logits"]
Side = Literal["before", "after"]
Peak = Literal["middle", "after"]


@dataclass(frozen=True)
class Conventions:
    """What another program does its own way; the defaults are medseg's.

    Args:
        averaged: what is averaged over mirrorings, folds and windows, and brought back to the scan's grid.
        odd_padding: on which side of a case that is smaller than the patch the odd voxel of padding lies.
        peak: where the Gaussian that windows are weighed by has its top: in the middle, or half a voxel after it where the
            window is even.
        apart_beyond: where the coarsest spacing, of the scan or else of the plan, is more than so many times the finest, the
            coarsest axis is resampled to the nearest, image and scores alike; 0: axes are resampled as the plan says.
        kept_axes: axes along which no scan is resampled, whatever its spacing (the slices of a 2D network).
        within_range: whether a resampled image keeps within the values that it is made from, those of its slice where the
            coarsest axis is resampled by itself: a cubic spline swings beyond them beside what normalisation clips.
    """

    averaged: Averaged = "probabilities"
    odd_padding: Side = "before"
    peak: Peak = "middle"
    apart_beyond: float = 0.0
    kept_axes: tuple[int, ...] = ()
    within_range: bool = False

    def __post_init__(self) -> None:
        for name, kind in (("averaged", Averaged), ("odd_padding", Side), ("peak", Peak)):
            allowed = get_args(kind)
            if getattr(self, name) not in allowed:
                raise MedsegError(
                    f"plan.conventions.{name}: expected one of {', '.join(allowed)}, found {getattr(self, name)!r}"
                )
        if self.apart_beyond < 0 or 0 < self.apart_beyond < 1:
            raise MedsegError(
                f"plan.conventions.apart_beyond: expected 0 or a ratio from 1 up, found {self.apart_beyond}"
            )

    def to_plain(self) -> dict[str, Any]:
        """What YAML holds."""
        return {f.name: list(v) if isinstance(v := getattr(self, f.name), tuple) else v for f in fields(self)}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Conventions:
        """Read what `to_plain` gave. Raises MedsegError for a name that there is not."""
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise MedsegError(f"plan.conventions has no {', '.join(unknown)}")
        plain = {**values, "kept_axes": tuple(int(axis) for axis in values.get("kept_axes", ()))}
        return cls(**plain)

    def apart(self, first: Sequence[float], second: Sequence[float]) -> int | None:
        """The axis that is resampled by itself, to the nearest; None for none.

        Args:
            first: spacing of the grid that is resampled, which is looked at first.
            second: spacing of the grid that it is brought to.
        """
        if not self.apart_beyond:
            return None
        for spacing in (first, second):
            if max(spacing) / min(spacing) > self.apart_beyond:
                coarse = [axis for axis, length in enumerate(spacing) if length == max(spacing)]
                return coarse[0] if len(coarse) == 1 else None
        return None
