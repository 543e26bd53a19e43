"""Where the findings of a structured report lie: in a segment of the SEG beside it, or in a box.

A region comes with the template of measurement groups that has room for it (PS3.16): TID 1411 for segments and surfaces,
TID 1410 for a rectangle on a picture, TID 1501 for what lies nowhere. Knows nothing of what is measured there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from highdicom.sr import (
    ImageRegion,
    MeasurementsAndQualitativeEvaluations,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    ReferencedSegment,
    SourceImageForRegion,
    SourceImageForSegmentation,
    SourceSeriesForSegmentation,
    VolumeSurface,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from medseg.export.completion import line
from medseg.export.dicom_source import TO_LPS, DicomSource
from medseg.volume import Array

Region = tuple[type, dict[str, Any]]
"""A template of measurement groups, and its argument that says where the region is."""
NOWHERE: Region = (MeasurementsAndQualitativeEvaluations, {})

_FACES = ((0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5))
"""The faces of a box by its corners, which are counted in binary: 5 = 101 is high along i, low along j, high along k."""


@dataclass(frozen=True, eq=False)
class Regions:
    """Regions on one source.

    Args:
        segmentation: the SEG that was written beside the report, if one was.
    """

    source: DicomSource
    segmentation: Dataset | None

    def segment(self, name: str) -> Region | None:
        """The segment of a label or region, whether or not it occurs; None where the SEG has none."""
        if self.segmentation is None:
            return None
        found = [int(s.SegmentNumber) for s in self.segmentation.SegmentSequence if s.SegmentLabel == line(name)]
        number = next(filter(None, found), None)  # 0 is the background of a labelmap
        if number is None:
            return None
        classes = str(self.segmentation.SOPClassUID), str(self.segmentation.SOPInstanceUID)
        segment = ReferencedSegment(*classes, number, **self._segmented())
        return VolumetricROIMeasurementsAndQualitativeEvaluations, {"referenced_segment": segment}

    def box(self, box_vox: Array) -> Region:
        """A box ``(2·D,)`` of voxel edges: the polygons of its faces in the patient (LPS mm), or a rectangle on a picture.

        The edges of a picture's pixels are the coordinates that DICOM counts in (PS3.3 C.18.6.1.1).
        """
        low, high = box_vox.reshape(2, -1)
        if self.source.is_picture:
            (x0, y0), (x1, y1) = low, high
            rectangle = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)])
            storage, instance, frames = self._picture()
            image = SourceImageForRegion(SecondaryCaptureImageStorage, instance, frames)
            region = ImageRegion("POLYLINE", rectangle, image)
            # highdicom refuses classes that it does not list, which retired ones are; it only asks whether they are tiled.
            region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPClassUID = storage
            return PlanarROIMeasurementsAndQualitativeEvaluations, {"referenced_region": region}
        corners = np.array([np.where([n & 4, n & 2, n & 1], high, low) for n in range(8)])
        corners = self.source.geometry.to_world(corners - 0.5) * TO_LPS
        faces = [corners[[*face, face[0]]] for face in _FACES]
        frame_of_reference = str(self.source.datasets[0].FrameOfReferenceUID)
        surface = VolumeSurface("POLYGON", faces, frame_of_reference, **self._segmented())
        return VolumetricROIMeasurementsAndQualitativeEvaluations, {"referenced_volume_surface": surface}

    def _segmented(self) -> dict[str, Any]:
        """What a segment or surface was made from: the picture, or the series."""
        if self.source.is_picture:
            return {"source_images": [SourceImageForSegmentation(*self._picture())]}
        return {"source_series": SourceSeriesForSegmentation(str(self.source.datasets[0].SeriesInstanceUID))}

    def _picture(self) -> tuple[str, str, list[int] | None]:
        """Class, instance and frame of the picture."""
        (reference,) = self.source.references()
        frame = reference.get("ReferencedFrameNumber")
        image = str(reference.ReferencedSOPClassUID), str(reference.ReferencedSOPInstanceUID)
        return *image, None if frame is None else [int(frame)]
