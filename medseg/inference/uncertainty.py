"""How unsure a segmentation is of each voxel, and of each label, from what mirrorings and folds say together. Reads no file.

The entropy of the averaged probabilities: high where the views are unsure as well as where they contradict each other
(Lakshminarayanan et al. 2017, "Simple and scalable predictive uncertainty estimation using deep ensembles").
"""

from __future__ import annotations

import numpy as np

from medseg.structures import LabelTable, Prediction
from medseg.volume import Array


def entropy_of(probabilities: Array, labels: LabelTable) -> Array:
    """``(*S)`` float32 from 0 (sure) to 1 (all labels are as likely).

    Of labels that exclude each other, −Σ p·log p over log K; of regions, the entropy in bits of the least sure one.

    Args:
        probabilities: ``(K, *S)`` calibrated, in the order of ``labels.outputs``.
    """
    p = np.clip(np.asarray(probabilities, np.float32), 1e-7, 1.0)
    if labels.exclusive:
        return np.asarray(-(p * np.log(p)).sum(0) / np.log(np.float32(len(p))), np.float32)
    rest = np.clip(1 - p, 1e-7, 1.0)
    bits = -(p * np.log2(p) + rest * np.log2(rest))
    return np.asarray(bits.max(0), np.float32)


def uncertainty_of_labels(entropy: Array, prediction: Prediction) -> dict[str, float]:
    """Label or region → mean entropy of its predicted voxels; one that is not there is left out.

    Args:
        entropy: ``(*S)`` on the scan's own grid.
    """
    if prediction.mask is None:
        return {}
    regions = {name: np.isin(prediction.mask, values) for name, values in prediction.labels.targets.items()}
    return {name: float(entropy[inside].mean()) for name, inside in regions.items() if inside.any()}
