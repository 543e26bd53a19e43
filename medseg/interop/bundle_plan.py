"""MONAI's transforms of a bundle as a Plan of medseg's: their names are read as data, and what has no like here is named.

What is alike but not the same to the last digit: MONAI's ``Spacing`` lays the new grid on the centre of the first voxel, medseg
on its outer edge; ``NormalizeIntensity(nonzero=True)`` looks at each channel's own zeros, medseg at voxels that are zero in all
channels, and counts enclosed holes in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from medseg.planning.plan import Channel
from medseg.volume import are_axis_codes

_HARMLESS = {
    "LoadImage", "EnsureChannelFirst", "AddChannel", "AsChannelFirst", "EnsureType", "ToTensor", "CastToType", "ToDevice",
    "SelectItems", "Identity", "DivisiblePad", "SpatialPad",
}  # fmt: skip
# Only where windows lie depends on it: medseg crops to what is not zero, or not at all.
_LEFT_OUT = {"CropForeground"}
_ORDERS = {"bilinear": 1, "linear": 1, "trilinear": 1, "nearest": 0, "0": 0, "1": 1, "3": 3}


@dataclass
class Prepared:
    """What the transforms of a bundle come to; `faults` lists what has no like in medseg."""

    orientation: str = "stored"
    spacing: tuple[float, ...] | None = None
    order: int = 1
    crop: Literal["nonzero", "none"] = "none"
    channel: dict[str, Any] = field(default_factory=lambda: {"normalisation": "none"})
    left_out: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def channels(self, names: Sequence[str]) -> tuple[Channel, ...]:
        return tuple(Channel(name, **self.channel) for name in names)


def prepared(transforms: Sequence[Any], dimensions: int, channels: int) -> Prepared:
    """Read MONAI's transforms, ``{"_target_": "Spacingd", …}``, in their order."""
    found = Prepared()
    normalised = False
    for entry in transforms:
        if not isinstance(entry, Mapping) or "_target_" not in entry:
            found.faults.append(f"transform {entry!r}: expected {{_target_: …}}")
            continue
        if entry.get("_disabled_") is True:
            continue
        name = str(entry["_target_"]).rpartition(".")[2]
        for suffix in ("Dict", "d", "D"):
            name = name.removesuffix(suffix) if name.removesuffix(suffix) in _NAMES else name
        if name in _HARMLESS:
            continue
        if name in _LEFT_OUT:
            found.left_out.append(name)
        elif name == "Orientation":
            _orientation(found, entry)
        elif name == "Spacing":
            _spacing(found, entry, dimensions)
        elif name in _VALUES:
            if normalised:
                found.faults.append(f"transform {name}: a second normalisation; one is supported")
            normalised = True
            _VALUES[name](found, entry, channels)
        else:
            found.faults.append(f"transform {entry['_target_']}; supported are {', '.join(sorted(_NAMES))}")
    return found


def _orientation(found: Prepared, entry: Mapping[str, Any]) -> None:
    codes = str(entry.get("axcodes"))
    if not are_axis_codes(codes):
        found.faults.append(f"transform Orientation: axcodes={entry.get('axcodes')!r}; expected three such as 'RAS'")
    found.orientation = codes


def _spacing(found: Prepared, entry: Mapping[str, Any], dimensions: int) -> None:
    pixdim = entry.get("pixdim")
    row = [pixdim] * dimensions if isinstance(pixdim, (int, float)) else pixdim
    mode = entry.get("mode", "bilinear")
    mode = mode[0] if isinstance(mode, (list, tuple)) and mode else mode
    if not isinstance(row, (list, tuple)) or len(row) != dimensions or not all(_is_length(s) for s in row):
        found.faults.append(f"transform Spacing: pixdim={pixdim!r}; expected {dimensions} lengths above 0")
        return
    if str(mode) not in _ORDERS:
        found.faults.append(f"transform Spacing: mode={mode!r}; supported are {', '.join(_ORDERS)}")
        return
    found.spacing, found.order = tuple(float(s) for s in row), _ORDERS[str(mode)]


def _is_length(value: Any) -> bool:
    return isinstance(value, (int, float)) and value > 0


def _scale_range(found: Prepared, entry: Mapping[str, Any], channels: int) -> None:
    del channels
    try:
        low, high, first, last = (float(entry[key]) for key in ("a_min", "a_max", "b_min", "b_max"))
    except (KeyError, TypeError, ValueError):
        found.faults.append("transform ScaleIntensityRange: expected a_min, a_max, b_min and b_max as numbers")
        return
    if entry.get("clip", False) is True and high > low and last > first:
        std = (high - low) / (last - first)
        found.channel = {"normalisation": "ct", "low": low, "high": high, "mean": low - first * std, "std": std}
    elif (first, last) == (0.0, 1.0) and high > low:
        found.channel = {"normalisation": "rescale", "low": low, "high": high}
    else:
        found.faults.append("transform ScaleIntensityRange: supported are clip=true, or b_min=0 and b_max=1")


def _normalise(found: Prepared, entry: Mapping[str, Any], channels: int) -> None:
    fixed = entry.get("subtrahend"), entry.get("divisor")
    if fixed != (None, None):
        if not all(isinstance(v, (int, float)) for v in fixed) or fixed[1] <= 0 or entry.get("nonzero", False):  # type: ignore[operator]
            found.faults.append(
                "transform NormalizeIntensity: supported are a number as subtrahend and one above 0 as divisor"
            )
            return
        found.channel = {"normalisation": "rescale", "low": float(fixed[0]), "high": float(fixed[0]) + float(fixed[1])}  # type: ignore[arg-type]
    elif channels > 1 and entry.get("channel_wise", False) is not True:
        found.faults.append(
            "transform NormalizeIntensity: of several channels together; supported is channel_wise=true"
        )
    elif entry.get("nonzero", False) is True:
        found.crop, found.channel = "nonzero", {"normalisation": "zscore"}
    else:
        found.channel = {"normalisation": "zscore_all"}


def _scale(found: Prepared, entry: Mapping[str, Any], channels: int) -> None:
    if (entry.get("minv", 0.0), entry.get("maxv", 1.0), entry.get("factor")) != (0.0, 1.0, None):
        found.faults.append("transform ScaleIntensity: supported is to 0…1 (minv, maxv), without factor")
    elif channels > 1 and entry.get("channel_wise", False) is not True:
        found.faults.append("transform ScaleIntensity: of several channels together; supported is channel_wise=true")
    else:
        found.channel = {"normalisation": "minmax"}


_VALUES: Mapping[str, Callable[[Prepared, Mapping[str, Any], int], None]] = {
    "ScaleIntensityRange": _scale_range, "NormalizeIntensity": _normalise, "ScaleIntensity": _scale
}  # fmt: skip
_NAMES = {*_HARMLESS, *_LEFT_OUT, *_VALUES, "Orientation", "Spacing"}
