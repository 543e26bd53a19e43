"""Codes are DICOM's own, and names of labels find them however they are spelt."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydicom.sr._concepts_dict import concepts

from medseg.errors import MedsegError
from medseg.export import codes
from medseg.export.anatomy import BUILT_IN, AnatomyTable
from medseg.export.codes import Code

TABLE = AnatomyTable.load()


def meanings(code: Code) -> set[str]:
    """What pydicom's copy of PS3.16 says that a code means, in lower case, without SNOMED's "(body structure)"."""
    listed = (item for entry in concepts[code.scheme].values() for item in entry.items())
    return {re.sub(r" \([a-z ]+\)$", "", meaning.lower()) for value, (meaning, _) in listed if value == code.value}


def entries() -> list[tuple[str, Code]]:
    body = yaml.safe_load(BUILT_IN.read_text(encoding="utf-8"))
    own = [
        (name, Code(entry["code"], entry.get("scheme", "SCT"), entry["meaning"]))
        for part in body.values()
        for name, entry in part.items()
    ]
    return own + [(name, value) for name, value in vars(codes).items() if isinstance(value, Code)]


def test_every_code_is_one_of_dicom_with_its_own_meaning() -> None:
    wrong = {name: code for name, code in entries() if code.meaning.lower() not in meanings(code)}
    assert not wrong
    assert len(entries()) > 200


@pytest.mark.parametrize(
    ("name", "category", "meaning", "modifier", "region", "side"),
    [
        ("liver", "structure", "Liver", None, None, None),
        ("kidney_left", "structure", "Kidney", "Left", None, None),
        ("Right Kidney", "structure", "Kidney", "Right", None, None),
        ("LeftLung", "structure", "Lung", "Left", None, None),
        ("lung_upper_lobe_left", "structure", "Upper lobe of lung", "Left", None, None),
        ("lungs", "structure", "Lung", None, None, None),
        ("vertebrae_L1", "structure", "L1 vertebra", None, None, None),
        ("rib_left_4", "structure", "Rib", "Left", None, None),
        ("heart_ventricle_left", "structure", "Left ventricle", None, None, None),
        ("Anterior", "structure", "Anatomical Structure", "Anterior", None, None),
        ("CSF", "substance", "Cerebrospinal Fluid", None, None, None),
        ("tumour", "lesion", "Neoplasm", None, None, None),
        ("Liver Tumor", "lesion", "Neoplasm", None, "Liver", None),
        ("left kidney cyst", "lesion", "Cyst", None, "Kidney", "Left"),
        ("non-enhancing tumor", "lesion", "Non-Enhancing Lesion", None, None, None),
        ("colon cancer primaries", "lesion", "Neoplasm", None, "Colon", None),
        ("thrombus in left ventricle", "lesion", "Thrombus", None, "Left ventricle", None),
        ("femoral cartilage left", "tissue", "Cartilage", None, "Femur", "Left"),
        ("organs/liver", "structure", "Liver", None, None, None),
        ("liver/tumour", "lesion", "Neoplasm", None, "Liver", None),
        ("suspicious lesion", "lesion", "Lesion", None, None, None),
    ],
)
def test_a_name_is_understood(
    name: str, category: str, meaning: str, modifier: str | None, region: str | None, side: str | None
) -> None:
    found = TABLE.code(name)
    assert found.category == TABLE.categories[category]
    assert found.type.meaning == meaning
    assert [code and code.meaning for code in (found.modifier, found.region, found.region_modifier)] == [
        modifier,
        region,
        side,
    ]


@pytest.mark.parametrize(
    "name", ["label_1", "c1", "prostate/uterus", "portal vein and splenic vein", "no lesion", "normal", "Läsion", "?"]
)
def test_what_is_not_understood_is_some_structure(name: str) -> None:
    found = TABLE.code(name)
    assert found.type == found.category == TABLE.categories["structure"]
    assert found.region is None


def test_a_table_of_ones_own_goes_before_the_built_in_one(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(
        """
        names:
          hepar: {code: 10200004, meaning: Liver, also: [foie]}
          tumor: {code: "86049000", meaning: "Malignant neoplasm, primary", category: lesion, region: hepar}
        """
    )
    table = AnatomyTable.load(own)
    assert table.code("FOIE").type == Code("10200004", "SCT", "Liver")
    assert table.code("tumor").type.value == "86049000"
    assert table.code("tumor").region == table.code("liver").type
    assert table.code("spleen") == TABLE.code("spleen")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("names: {spleen: {value: 1}}", "spleen: no code, meaning"),
        ("names: {spleen: {code: 1, meaning: Spleen, colour: red}}", "spleen: colour is not known"),
        ("names: {spleen: 78961009}", "spleen: expected {code: …, meaning: …}, found 78961009"),
        ("names: {spleen: {code: 1, meaning: Spleen, category: organ}}", "category 'organ': expected one of structure"),
        ("names: {spleen: {code: 1, meaning: Spleen, region: belly}}", "region 'belly' is not a name of the table"),
        ("names: {spleen: {code: 1, meaning: Spleen, also: milt}}", "expected a list of names"),
        (f"names: {{spleen: {{code: 1, meaning: {'x' * 65}}}}}", "at most 64"),
        ("organs: {}", "expected categories, modifiers, names; found organs"),
        ("- 1", "found list"),
        ("names: {a: [", "expected a YAML file"),
    ],
)
def test_a_table_that_is_not_understood_says_why(tmp_path: Path, text: str, found: str) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(text)
    with pytest.raises(MedsegError) as error:
        AnatomyTable.load(own)
    assert found in str(error.value)
    assert "mine.yaml" in str(error.value)


def test_a_table_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match="expected a YAML file"):
        AnatomyTable.load(tmp_path / "none.yaml")
