"""What turns the values of a PET image into standardised uptake values by body weight (SUVbw, g/ml). Reads headers, no pixels.

The vendor-neutral rule of QIBA ("happy path only", https://qibawiki.rsna.org/index.php/Standardized_Uptake_Value_(SUV)):
SUVbw = activity concentration (Bq/ml) × weight (g) / dose (Bq), the dose decayed to the time to which the image is decay
corrected. Where a header does not say what is needed there is no SUV: a guessed weight or time would be a wrong value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.valuerep import DA, DT, TM

from medseg.scans.multiframe import first_item, floats
from medseg.scans.reading import ScanError

_PHILIPS, _GE = (0x7053, "Philips PET Private Group"), (0x0009, "GEMS_PETD_01")
_SMALLEST_DOSE_BQ = 1e4
_MOST_HALF_LIVES = 10
"""A thousandth of the dose is left by then: nobody scans so late, so one of the dates is wrong (de-identified, perhaps)."""


@dataclass(frozen=True)
class Uptake:
    """What one file of a PET series says about dose, weight and time.

    Args:
        scale: factor that makes the values g/ml; where a dose is known, still without its decay.
        half_life_s: of the radionuclide.
        injected: when the dose was measured; None where no decay is left to be reckoned with.
        acquired: when this file's acquisition began.
        candidates: to which time the image may be decay corrected, the most trustworthy first: what the series says, what
            GE says, and what follows from the file's own frame time. The first counts only if it is not after `acquired`.
    """

    scale: float
    half_life_s: float = math.inf
    injected: datetime | None = None
    acquired: datetime | None = None
    candidates: tuple[datetime | None, ...] = ()


def uptake_of(dataset: Dataset, path: Path) -> Uptake:
    """What the header of a PET file says.

    Raises:
        ScanError: ``"no_suv"``; the message names the tag that is missing or unfit.
    """
    units = _text(dataset, "Units").upper()
    if units == "GML":
        kind = _text(dataset, "SUVType").upper() or "BW"
        if kind != "BW":
            raise _refusal(path, f"values are SUV by another measure than body weight (SUVType (0054,1006) is {kind})")
        return Uptake(1.0)
    activity = 1.0
    if units == "CNTS":
        if factor := _private_number(dataset, *_PHILIPS, 0x00):
            return Uptake(factor)
        activity = _private_number(dataset, *_PHILIPS, 0x09)
        if not activity:
            raise _refusal(path, "values are counts (Units CNTS) without Philips' factor (7053,1000) or (7053,1009)")
    elif units != "BQML":
        raise _refusal(path, f"expected Units (0054,1001) BQML, CNTS or GML, found {units or 'none'}")
    corrected = dataset.get("CorrectedImage") or ()
    words = [corrected] if isinstance(corrected, str) else [str(word).strip().upper() for word in corrected]
    if not {"ATTN", "DECY"} <= set(words):
        found = ", ".join(words) or "nothing"
        raise _refusal(path, f"expected CorrectedImage (0028,0051) with ATTN and DECY, found {found}")
    return _by_dose(dataset, path, activity)


def factors(uptakes: Sequence[Uptake], path: Path) -> list[float]:
    """The factor that turns each file's values into g/ml; ``uptakes`` are those of all files of the volume.

    Raises:
        ScanError: ``"no_suv"`` where the times of injection and scan do not fit each other.
    """
    earliest = min((u.acquired for u in uptakes if u.acquired is not None), default=None)
    return [uptake.scale / _left(uptake, earliest, path) for uptake in uptakes]


def _by_dose(dataset: Dataset, path: Path, activity: float) -> Uptake:
    injection = first_item(dataset, "RadiopharmaceuticalInformationSequence")
    if injection is None:
        raise _refusal(path, "RadiopharmaceuticalInformationSequence (0054,0016) is missing")
    weight = _positive(dataset, "PatientWeight", "(0010,1030)", path)
    dose = _positive(injection, "RadionuclideTotalDose", "(0018,1074)", path)
    half_life = _positive(injection, "RadionuclideHalfLife", "(0018,1075)", path)
    if dose < _SMALLEST_DOSE_BQ:
        raise _refusal(path, f"RadionuclideTotalDose (0018,1074) of {dose:g} Bq cannot be; was it written in MBq?")
    scale = activity * weight * 1000.0 / dose
    correction = _text(dataset, "DecayCorrection").upper()
    if correction == "ADMIN":  # to the time of injection: the dose is the one that was measured
        return Uptake(scale)
    if correction != "START":
        raise _refusal(path, f"expected DecayCorrection (0054,1102) START or ADMIN, found {correction or 'none'}")
    acquired = _moment(dataset, "Acquisition", path)
    series = _moment(dataset, "Series", path)
    stated = _date_time(dataset, "DecayCorrectionDateTime", path)
    known = stated or series or acquired
    if known is None:
        raise _refusal(
            path, "SeriesDate and SeriesTime (0008,0021, 0008,0031) are missing, and AcquisitionDate and -Time too"
        )
    injected = _injected(injection, known, path)
    if stated is not None:
        return Uptake(scale, half_life, injected, None, (stated,))
    return Uptake(
        scale, half_life, injected, acquired, (series, _ge_scan(dataset), _start(dataset, acquired, half_life))
    )


def _left(uptake: Uptake, earliest: datetime | None, path: Path) -> float:
    """Which part of the dose is left at the time to which the image is corrected."""
    if uptake.injected is None:
        return 1.0
    stated, *others = uptake.candidates
    if stated is not None and (earliest is None or stated <= earliest):
        scanned: datetime | None = stated
    else:  # the series was made anew after the scan
        scanned = next((other for other in others if other is not None), earliest)
    if scanned is None:
        raise _refusal(path, "AcquisitionDate and AcquisitionTime (0008,0022, 0008,0032) are missing")
    half_lives = (scanned - uptake.injected).total_seconds() / uptake.half_life_s
    if not 0 <= half_lives <= _MOST_HALF_LIVES:
        raise _refusal(
            path,
            f"the scan lies {half_lives * uptake.half_life_s / 3600:.3g} h after the injection (RadiopharmaceuticalStartDateTime "
            "(0018,1078) or RadiopharmaceuticalStartTime (0018,1072)), which cannot be; one of the dates is wrong",
        )
    return float(2.0**-half_lives)


def _injected(injection: Dataset, scanned: datetime, path: Path) -> datetime:
    """When the dose was measured; a time without date belongs to the day of the scan, or the day before."""
    moment = _date_time(injection, "RadiopharmaceuticalStartDateTime", path)
    if moment is not None:
        return moment
    time = _text(injection, "RadiopharmaceuticalStartTime")
    if not time:
        raise _refusal(
            path,
            "RadiopharmaceuticalStartDateTime (0018,1078) and RadiopharmaceuticalStartTime (0018,1072) are missing",
        )
    moment = _joined(scanned.strftime("%Y%m%d"), time, "RadiopharmaceuticalStartTime (0018,1072)", path)
    return moment if moment <= scanned else moment - timedelta(days=1)


def _start(dataset: Dataset, acquired: datetime | None, half_life: float) -> datetime | None:
    """The start of the scan, back from the moment of average counts within the file's frame."""
    reference = floats(dataset, "FrameReferenceTime", 1)
    duration = floats(dataset, "ActualFrameDuration", 1)
    if acquired is None or reference is None or duration is None or reference[0] <= 0 or duration[0] <= 0:
        return None
    decay = math.log(2) / half_life
    during = decay * duration[0] / 1000
    average = math.log(during / -math.expm1(-during)) / decay
    return acquired + timedelta(seconds=average - reference[0] / 1000)


def _ge_scan(dataset: Dataset) -> datetime | None:
    text = str(_private(dataset, *_GE, 0x0D) or "").strip(" \0")
    try:
        return DT(text).replace(tzinfo=None) if text else None
    except ValueError:
        return None


def _moment(dataset: Dataset, of: str, path: Path) -> datetime | None:
    date, time = _text(dataset, f"{of}Date"), _text(dataset, f"{of}Time")
    return _joined(date, time, f"{of}Date or {of}Time", path) if date and time else None


def _joined(date: str, time: str, what: str, path: Path) -> datetime:
    try:
        return datetime.combine(DA(date), TM(time))
    except (ValueError, TypeError):
        raise _refusal(path, f"{what} is not a date or a time") from None


def _date_time(dataset: Dataset, keyword: str, path: Path) -> datetime | None:
    """A DT value as the scanner's own clock showed it."""
    text = _text(dataset, keyword)
    try:
        return DT(text).replace(tzinfo=None) if text else None
    except ValueError:
        raise _refusal(path, f"{keyword} is not a date and time") from None


def _positive(dataset: Dataset, keyword: str, tag: str, path: Path) -> float:
    value = floats(dataset, keyword, 1)
    if value is None or value[0] <= 0:
        raise _refusal(path, f"{keyword} {tag} is {'missing' if value is None else value[0]}")
    return value[0]


def _private(dataset: Dataset, group: int, creator: str, offset: int) -> object:
    try:
        return dataset.private_block(group, creator)[offset].value
    except KeyError:
        return None


def _private_number(dataset: Dataset, group: int, creator: str, offset: int) -> float:
    """A number of a private block; 0 where it is absent or no number."""
    value = _private(dataset, group, creator, offset)
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    try:
        number = float(text.strip(" \0"))
    except ValueError:
        return 0.0
    return number if math.isfinite(number) and number > 0 else 0.0


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword, "") or "").strip()


def _refusal(path: Path, reason: str) -> ScanError:
    return ScanError(f"{path.name}: no SUV: {reason}. Read it without suv=true, or export it again", "no_suv")
