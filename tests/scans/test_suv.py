from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medseg.scans import read_volume
from medseg.scans.find import find
from medseg.scans.reading import ScanError
from medseg.scans.suv import factors, uptake_of
from tests.dicom_factory import affine_of, write_series

HALF_LIFE_S = 6586.2  # fluorine-18
WHERE = Path("x.dcm")


def header(**changes: Any) -> Dataset:
    """A PET of 70 kg and 370 MBq, scanned an hour after the injection; an attribute of None is left out."""
    injection = {
        "RadiopharmaceuticalStartTime": "090000",
        "RadionuclideTotalDose": "370000000",
        "RadionuclideHalfLife": str(HALF_LIFE_S),
    }
    values: dict[str, Any] = {
        "Units": "BQML",
        "CorrectedImage": ["DECY", "ATTN", "SCAT"],
        "DecayCorrection": "START",
        "PatientWeight": "70",
        "SeriesDate": "20200102",
        "SeriesTime": "100000",
        "AcquisitionDate": "20200102",
        "AcquisitionTime": "100500.25",
    }
    dataset, item = Dataset(), Dataset()
    for keyword, value in {**injection, **values, **changes}.items():
        if value is not None:
            holder = item if keyword in injection or keyword.startswith("Radiopharm") else dataset
            setattr(holder, keyword, value)
    dataset.RadiopharmaceuticalInformationSequence = [item]
    return dataset


def factor(*datasets: Dataset) -> float:
    return factors([uptake_of(dataset, WHERE) for dataset in datasets], WHERE)[0]


def expected(hours: float, weight_kg: float = 70, dose_bq: float = 370e6) -> float:
    return weight_kg * 1000 / (dose_bq * 0.5 ** (hours * 3600 / HALF_LIFE_S))


def refusal(dataset: Dataset) -> str:
    with pytest.raises(ScanError, match="no SUV") as caught:
        factor(dataset)
    assert caught.value.kind == "no_suv"
    return str(caught.value)


def test_the_dose_decays_from_injection_to_the_start_of_the_series() -> None:
    # 70000 g / (370 MBq · 2^(−3600 s / 6586.2 s)) by hand: 0.000189189 · 1.46063
    assert factor(header()) == pytest.approx(2.76336e-4, rel=1e-5)
    assert factor(header()) == pytest.approx(expected(1))


def test_an_injection_before_midnight_belongs_to_the_day_before() -> None:
    late = header(
        RadiopharmaceuticalStartTime="233000", SeriesTime="003000", AcquisitionTime="003100", AcquisitionDate="20200102"
    )
    assert factor(late) == pytest.approx(expected(1))
    dated = header(RadiopharmaceuticalStartDateTime="20200102080000", RadiopharmaceuticalStartTime="090000")
    assert factor(dated) == pytest.approx(expected(2))


def test_a_series_made_anew_later_counts_from_the_earliest_acquisition() -> None:
    first = header(SeriesTime="180000", AcquisitionTime="093000")
    second = header(SeriesTime="180000", AcquisitionTime="094500")
    assert factor(second, first) == pytest.approx(expected(0.5))


def test_a_series_made_anew_later_counts_from_ges_scan_time_where_there_is_one() -> None:
    anew = header(SeriesTime="180000", AcquisitionTime="094500")
    block = anew.private_block(0x0009, "GEMS_PETD_01", create=True)
    block.add_new(0x0D, "DT", "20200102093000.00")
    assert factor(anew) == pytest.approx(expected(0.5))


def test_a_series_made_anew_later_counts_back_from_the_frames_average_time() -> None:
    duration = 600.0
    during = math.log(2) / HALF_LIFE_S * duration
    average = math.log(during / (1 - math.exp(-during))) / math.log(2) * HALF_LIFE_S
    assert 290 < average < 300  # a little before the middle of the frame
    bed = header(
        SeriesTime="180000",
        AcquisitionTime="094500",
        FrameReferenceTime=str((900 + average) * 1000),  # the frame began 15 minutes after the scan
        ActualFrameDuration=str(round(duration * 1000)),
    )
    assert factor(bed) == pytest.approx(expected(0.5), rel=1e-6)


def test_a_stated_time_of_correction_goes_before_all_others() -> None:
    assert factor(header(DecayCorrectionDateTime="20200102093000")) == pytest.approx(expected(0.5))


def test_values_corrected_to_the_injection_take_the_dose_as_it_was() -> None:
    assert factor(header(DecayCorrection="ADMIN", SeriesTime=None, AcquisitionTime=None)) == pytest.approx(expected(0))


def test_grams_per_millilitre_are_suv_already() -> None:
    assert factor(header(Units="GML", PatientWeight=None)) == 1
    assert "SUVType" in refusal(header(Units="GML", SUVType="LBM"))


def test_counts_take_the_private_factors_of_philips() -> None:
    counts = header(Units="CNTS", PatientWeight=None)
    assert "(7053,1000)" in refusal(counts)
    block = counts.private_block(0x7053, "Philips PET Private Group", create=True)
    block.add_new(0x00, "DS", "0.00042")
    assert factor(counts) == pytest.approx(0.00042)
    activity = header(Units="CNTS")
    activity.private_block(0x7053, "Philips PET Private Group", create=True).add_new(0x09, "DS", "2.5")
    assert factor(activity) == pytest.approx(2.5 * expected(1))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"Units": None}, "Units (0054,1001)"),
        ({"Units": "PROPCPS"}, "found PROPCPS"),
        ({"PatientWeight": None}, "PatientWeight (0010,1030) is missing"),
        ({"PatientWeight": "0"}, "PatientWeight (0010,1030) is 0.0"),
        ({"RadionuclideTotalDose": None}, "RadionuclideTotalDose (0018,1074) is missing"),
        ({"RadionuclideTotalDose": "370"}, "written in MBq"),
        ({"RadionuclideHalfLife": None}, "RadionuclideHalfLife (0018,1075) is missing"),
        ({"RadiopharmaceuticalStartTime": None}, "RadiopharmaceuticalStartTime (0018,1072) are missing"),
        ({"CorrectedImage": ["DECY"]}, "with ATTN and DECY, found DECY"),
        ({"CorrectedImage": None}, "CorrectedImage (0028,0051)"),
        ({"DecayCorrection": "NONE"}, "START or ADMIN, found NONE"),
        ({"SeriesTime": None, "AcquisitionTime": None}, "SeriesTime"),
        ({"SeriesTime": "180000", "AcquisitionTime": None, "AcquisitionDate": None, "SeriesDate": None}, "SeriesDate"),
        ({"SeriesTime": "ten"}, "is not a date or a time"),
        ({"RadiopharmaceuticalStartDateTime": "20190102090000"}, "one of the dates is wrong"),
        ({"RadiopharmaceuticalStartDateTime": "20200102103000"}, "one of the dates is wrong"),
    ],
)
def test_a_missing_or_unfit_tag_is_named(changes: dict[str, Any], word: str) -> None:
    assert word in refusal(header(**changes))


def test_a_missing_injection_is_named() -> None:
    dataset = header()
    del dataset.RadiopharmaceuticalInformationSequence
    assert "RadiopharmaceuticalInformationSequence (0054,0016)" in refusal(dataset)


def test_a_pet_is_read_in_suv_on_request_and_other_scans_stay_as_they_are(tmp_path: Path) -> None:
    activity = np.arange(60.0).reshape(5, 4, 3) * 100

    def fill(dataset: Dataset, n: int) -> None:
        for element in header(AcquisitionTime=f"10{n:02d}00"):
            dataset[element.tag] = element

    write_series(tmp_path / "pet", activity, affine_of((5, 4, 3)), modality="PT", slope=[100, 50, 20], change=fill)
    write_series(tmp_path / "ct", activity, affine_of((5, 4, 3)), seed="2")
    for folder, scale in (("pet", expected(1)), ("ct", 1.0)):
        (entry,) = find(tmp_path / folder).sources
        np.testing.assert_allclose(read_volume(entry.source, {"suv": True}).data[0], activity * scale, rtol=1e-6)
        np.testing.assert_allclose(read_volume(entry.source).data[0], activity, rtol=1e-6)


def test_a_refusal_names_the_series_and_no_patient(tmp_path: Path) -> None:
    write_series(tmp_path, np.zeros((4, 4, 2)), affine_of((4, 4, 2)), modality="PT")
    (entry,) = find(tmp_path).sources
    with pytest.raises(ScanError, match=f"series {entry.id}: .*no SUV") as caught:
        read_volume(entry.source, {"suv": True})
    assert "ecret" not in str(caught.value).lower()


@pytest.mark.shared_data
def test_real_pet_in_grams_per_millilitre_is_suv_already(shared_data: Path) -> None:
    (entry,) = find(shared_data / "dicom" / "sarcoma_rtstruct" / "STS_003" / "PET" / "image").sources
    in_suv, plain = read_volume(entry.source, {"suv": True}), read_volume(entry.source)
    np.testing.assert_array_equal(in_suv.data, plain.data)
    assert 1 < plain.data.max() < 100


def test_the_clock_of_the_scanner_counts() -> None:
    uptake = uptake_of(header(RadiopharmaceuticalStartDateTime="20200102090000.000+0100"), WHERE)
    assert uptake.injected == datetime(2020, 1, 2, 9)
