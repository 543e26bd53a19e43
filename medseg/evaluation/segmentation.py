"""How good a mask is, label by label, beside the true one: overlap, surfaces, volume, lesions. Knows no files and no model.

Every figure is computed on the scan's own grid with its spacing; lengths are mm, or px in pictures without spacing, and the
metric's name says which. Voxels with the ignore value in the truth are taken out of both masks first.

=======================  ==============================================================================================
``dice`` ``iou``         overlap (MONAI)
``nsd``                  normalised surface Dice: share of the surface voxels of both masks that lie within the tolerance
                         of the other surface (Nikolov et al. 2021; MONAI, voxels counted, not areas)
``hd95_mm``              Hausdorff distance: the larger of the two directions' 95th percentiles of surface distances
``assd_mm``              mean of the surface distances of both directions together
``volume_error_ml``      predicted minus true volume (``area_error_mm2``, ``area_error_px`` in pictures)
``volume_error_share``   the same as a share of the true volume
``lesion_sensitivity``   true lesions that are found; a lesion is a component with 26 (2D: 8) neighbours, and a prediction
``lesion_precision``     finds it from an IoU of 0.1 up, one to one (`match_lesions`); predicted lesions that are true;
``lesion_f1``            2 · pairs / (true + predicted lesions)
=======================  ==============================================================================================

**Empty masks.** A surface voxel is one with a neighbour (6, 2D: 4) outside the mask; beyond the grid is outside.

- *Both empty*: nothing to measure. Overlap, NSD, distances and the lesion figures are blank (NaN) and do not enter a mean;
  the volume error is 0. The case still counts in ``n_cases`` of the summary.
- *Only the truth is empty*: Dice, IoU, NSD, precision and F1 are 0; distances, sensitivity and relative volume error blank.
- *Only the prediction is empty*: Dice, IoU, NSD, sensitivity and F1 are 0; distances and precision are blank, so that a
  mean distance is silent about such a case: the summary counts it in ``n_missing``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics.meandice import compute_dice
from monai.metrics.meaniou import compute_iou
from monai.metrics.utils import get_mask_edges, get_surface_distance

from medseg.errors import MedsegError
from medseg.evaluation.lesions import bounding_box, components, match_lesions
from medseg.structures import LabelTable
from medseg.volume import Array, Geometry

NAN = float("nan")


@dataclass(frozen=True)
class Row:
    """One figure of one case: ``value`` is NaN where there is nothing to measure; ``n_gt`` and ``n_pred`` count lesions."""

    label: str
    metric: str
    value: float
    n_gt: int
    n_pred: int


def segmentation_metrics(
    predicted: Array, truth: Array, geometry: Geometry, labels: LabelTable, *, tolerance_mm: float = 1.0
) -> list[Row]:
    """Every metric of every label or region of one case.

    Args:
        predicted, truth: ``geometry.shape`` integer masks.
        tolerance_mm: how far a surface may lie off for NSD (in px where the grid has no spacing).

    Raises:
        MedsegError: a mask does not fit the grid, or the tolerance is negative.
    """
    for name, mask in (("predicted", predicted), ("true", truth)):
        if mask.shape != geometry.shape:
            raise MedsegError(f"the {name} mask {mask.shape} does not fit the grid {geometry.shape}")
    if not tolerance_mm >= 0:
        raise MedsegError(f"tolerance_mm: expected a length of 0 or more, found {tolerance_mm}")
    window = bounding_box((predicted != 0) | (truth != 0))
    if window is not None:  # everything outside is background in both
        predicted, truth = predicted[window], truth[window]
    ignored = truth == labels.ignore if labels.ignore is not None else None
    rows = []
    for label, values in labels.targets.items():
        p, t = np.isin(predicted, values), np.isin(truth, values)
        if ignored is not None:
            p &= ~ignored
            t &= ~ignored
        rows += _rows(label, p, t, geometry, tolerance_mm)
    return rows


def _rows(label: str, predicted: Array, truth: Array, geometry: Geometry, tolerance: float) -> list[Row]:
    window = bounding_box(predicted | truth)
    if window is None:
        window = (slice(0, 1),) * truth.ndim
    p, t = np.ascontiguousarray(predicted[window]), np.ascontiguousarray(truth[window])
    size_pred, size_gt = int(p.sum()), int(t.sum())
    lesions_pred, n_pred = components(p)
    lesions_gt, n_gt = components(t)
    pairs = len(match_lesions(lesions_pred, lesions_gt, (n_pred, n_gt)))
    dice, iou = _overlap(p, t)
    nsd, hd95, assd = _surface(p, t, geometry.spacing, tolerance)
    error = size_pred - size_gt
    size_name, size_unit = _size_unit(geometry)
    values = {
        "dice": dice,
        "iou": iou,
        "nsd": nsd,
        f"hd95_{geometry.unit}": hd95,
        f"assd_{geometry.unit}": assd,
        size_name: error * geometry.voxel_volume / size_unit,
        "volume_error_share": error / size_gt if size_gt else NAN,
        "lesion_sensitivity": pairs / n_gt if n_gt else NAN,
        "lesion_precision": pairs / n_pred if n_pred else NAN,
        "lesion_f1": 2 * pairs / (n_gt + n_pred) if n_gt + n_pred else NAN,
    }
    return [Row(label, metric, float(value), n_gt, n_pred) for metric, value in values.items()]


def _size_unit(geometry: Geometry) -> tuple[str, float]:
    """Name of the size error and how many ``unit``³ (or ²) its unit holds."""
    if geometry.dimensions == 3:
        return ("volume_error_ml", 1000.0) if geometry.unit == "mm" else ("volume_error_px", 1.0)
    return ("area_error_mm2", 1.0) if geometry.unit == "mm" else ("area_error_px", 1.0)


def _overlap(predicted: Array, truth: Array) -> tuple[float, float]:
    """Dice and IoU of two boolean masks; whole numbers until the division, so that large masks stay exact."""
    if not predicted.any() and not truth.any():
        return NAN, NAN
    p, t = (torch.from_numpy(mask.view(np.uint8))[None, None] for mask in (predicted, truth))
    return tuple(float(metric(p, t, ignore_empty=False)) for metric in (compute_dice, compute_iou))  # type: ignore[return-value]


def _surface(predicted: Array, truth: Array, spacing: Sequence[float], tolerance: float) -> tuple[float, float, float]:
    """NSD, HD95 and ASSD as MONAI's ``compute_surface_dice``, ``compute_hausdorff_distance(percentile=95)`` and
    ``compute_average_surface_distance(symmetric=True)`` have them, from distances that are measured once instead of thrice."""
    if not predicted.any() or not truth.any():
        return (0.0 if predicted.any() or truth.any() else NAN), NAN, NAN
    to_truth, to_predicted = surface_distances(predicted, truth, spacing)
    both = np.concatenate([to_truth, to_predicted])
    # The header's float32 makes 1 mm 1.0000001 mm: without slack every voxel at exactly the tolerance would be lost.
    nsd = np.count_nonzero(both <= tolerance * (1 + 1e-4)) / len(both)
    return nsd, float(max(np.percentile(to_truth, 95), np.percentile(to_predicted, 95))), float(both.mean())


def surface_distances(predicted: Array, truth: Array, spacing: Sequence[float]) -> tuple[Array, Array]:
    """For each surface voxel of either mask, how far the other mask's surface is.

    Args:
        predicted, truth: ``(*S)`` boolean, neither empty.
        spacing: length of a voxel along each axis.

    Returns:
        ``(N,)`` float64 from the predicted surface to the true one, and ``(M,)`` back.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of an argument that is not used here
        edges = get_mask_edges(predicted, truth, crop=False)
    first, second = (np.asarray(edge, bool) for edge in edges)
    there = get_surface_distance(first, second, spacing=list(spacing))
    back = get_surface_distance(second, first, spacing=list(spacing))
    return np.asarray(there, np.float64), np.asarray(back, np.float64)
