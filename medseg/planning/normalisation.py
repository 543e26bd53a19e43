"""How the values of each channel are normalised: by its modality, as nnU-Net does, or as the user says. Knows no grids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from medseg.errors import MedsegError
from medseg.planning.fingerprint import ChannelStatistics
from medseg.planning.plan import Channel

COLOURS = ("red", "green", "blue")


def plan_channels(
    statistics: Sequence[ChannelStatistics],
    names: Sequence[str],
    wish: str | Sequence[str] | None = None,
    match: Mapping[str, str] | None = None,
) -> tuple[tuple[Channel, ...], str]:
    """The plan's channels, and the reason.

    Args:
        statistics: one entry a channel of the images. ``names``: as many, or one for a colour picture.
        wish: the user's normalisation, one for all channels or one a channel.
        match: channel name → regular expression that tells its DICOM series from others; by default, where there are several
            channels, the name itself.

    Raises:
        MedsegError: another number of names or wishes than channels, a normalisation or a channel that does not exist.
    """
    count = len(statistics)
    colour = count == 3 and (len(names) == 1 or tuple(names) == COLOURS)
    names = COLOURS if colour else tuple(names)
    if len(names) != count:
        raise MedsegError(f"the data set names {len(names)} channels ({', '.join(names)}), its images have {count}")
    wishes = [wish] * count if wish is None or isinstance(wish, str) else list(wish)
    if len(wishes) != count:
        raise MedsegError(
            f"plan.normalisation: expected one for all or one for each of {count} channels, found {wishes}"
        )
    match = dict(match or {})
    if not set(match) <= set(names):
        raise MedsegError(
            f"plan.match: there is no channel {sorted(set(match) - set(names))}; channels are {', '.join(names)}"
        )
    lowest = min(0.0, *(s.minimum for s in statistics))
    highest = max(s.maximum for s in statistics)
    scale = (short(lowest), next((top for top in (1.0, 255.0, 65535.0) if highest <= top), short(highest)))
    channels, reasons = [], []
    for name, values, asked in zip(names, statistics, wishes, strict=True):
        kind, reason = _by_modality(name, values, colour) if asked is None else (str(asked), "as configured")
        options: dict[str, Any] = {}
        if kind == "ct":
            options = {"low": short(values.low), "high": short(values.high), "mean": short(values.mean)}
            options["std"] = short(values.std) or 1.0
            reason += (
                f": clipped to the 0.5 and 99.5 percentiles of the foreground ({values.low:.4g} and {values.high:.4g}), then "
                "its mean and deviation over all training cases"
            )
        elif kind == "rescale":
            options = {"low": scale[0], "high": scale[1]}
            reason += f": {scale[0]:g} to {scale[1]:g} becomes 0 to 1 in every channel alike"
        # One series among a patient's several is found by the channel's name in its modality or description; a number says
        # nothing there.
        by_name = re.escape(name) if count > 1 and not colour and not name.isdigit() else ""
        options["match"] = match.get(name, by_name)
        channels.append(Channel(name, kind, **options))  # type: ignore[arg-type]
        reasons.append(f"{name} {kind}, {reason}")
    return tuple(channels), "; ".join(reasons)


def short(value: float) -> float:
    """Six significant digits: what people read, and far finer than any scan."""
    return float(f"{value:.6g}")


def _by_modality(name: str, values: ChannelStatistics, colour: bool) -> tuple[str, str]:
    if colour:
        return "rescale", "colours of a picture keep their relation"
    if values.modality == "CT" or (not values.modality and re.search(r"(?<![a-z])ct(?![a-z])", name.lower())):
        return "ct", "CT values (HU) mean the same in every scan"
    reason = (
        f"values of {values.modality or name} have no absolute scale, so each case is brought to mean 0 and deviation 1"
    )
    if not values.modality and values.minimum < -500:
        reason += f" (the smallest value is {values.minimum:g}: if this is CT, name the channel CT)"
    return "zscore", reason
