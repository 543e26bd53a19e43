"""Coded concepts, as DICOM writes what a thing is: a value, the scheme it belongs to, and its meaning in words.

Only codes that DICOM itself lists stand here; a test holds them against pydicom's dictionaries. Anatomy has a table of its own.
"""

from __future__ import annotations

from typing import NamedTuple

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence


class Code(NamedTuple):
    """One coded concept; ``scheme`` is ``SCT`` (SNOMED CT), ``DCM``, ``UCUM`` …"""

    value: str
    scheme: str
    meaning: str

    def item(self) -> Dataset:
        """The concept as an item of a code sequence."""
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = self
        return item

    def sequence(self, **modifiers: Code | None) -> Sequence:
        """The concept as a code sequence of one item, and within it, by their keywords, sequences of what modifies it."""
        item = self.item()
        for keyword, code in modifiers.items():
            if code is not None:
                setattr(item, keyword, code.sequence())
        return Sequence([item])


ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
SEGMENTATION = Code("113076", "DCM", "Segmentation")
SOURCE_IMAGE = Code("121322", "DCM", "Source Image for Image Processing Operation")
BACKGROUND = Code("125040", "DCM", "Background")
QUANTITY = Code("246205007", "SCT", "Quantity")
FINDING = Code("121071", "DCM", "Finding")
PROBABILITY = Code("110854", "DCM", "Fractional Probabilistic Segmentation")
CLASS_ACTIVATION = Code("130402", "DCM", "Class activation")
GRADIENT_CLASS_ACTIVATION = Code("130403", "DCM", "Gradient-weighted class activation")
SALIENCY = Code("130404", "DCM", "Saliency")
NO_UNITS = Code("1", "UCUM", "no units")
VOLUME = Code("118565006", "SCT", "Volume")
AREA = Code("42798000", "SCT", "Area")
DIAMETER = Code("81827009", "SCT", "Diameter")
MAXIMUM = Code("56851009", "SCT", "Maximum")
LESION = Code("52988006", "SCT", "Lesion")
NUMBER_OF_LESIONS = Code("246206008", "SCT", "Number of lesions")
CERTAINTY_OF_FINDING = Code("111012", "DCM", "Certainty of Finding")
CERTAINTY_OF_IMPRESSION = Code("111013", "DCM", "Certainty of Impression")
DEVICE = Code("121007", "DCM", "Device")
CUBIC_MILLIMETRE = Code("mm3", "UCUM", "cubic millimeter")
SQUARE_MILLIMETRE = Code("mm2", "UCUM", "square millimeter")
MILLIMETRE = Code("mm", "UCUM", "mm")
PERCENT = Code("%", "UCUM", "Percent")
