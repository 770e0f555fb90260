"""How far two masks or label maps cover the same voxels, one case at a time."""

from collections.abc import Mapping

import numpy as np

from meddiff.metrics.arrays import Array, as_mask, on_one_grid


def dice(prediction: Array, reference: Array) -> float:
    """Dice coefficient 2|A and B| / (|A| + |B|) of two masks (*spatial) of booleans or 0 and 1; from 0 to 1.

    Both empty: 1, as nothing was there and nothing was found. Exactly one empty: 0.

    >>> dice(np.array([1, 1, 0, 0]), np.array([0, 1, 0, 0])), dice(np.zeros(4), np.zeros(4))
    (0.6666666666666666, 1.0)
    """
    a, b = map(as_mask, on_one_grid(prediction, reference))
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return float(2 * np.count_nonzero(a & b) / total) if total else 1.0


def iou(prediction: Array, reference: Array) -> float:
    """Intersection over union (Jaccard index) of two masks; both empty: 1, exactly one empty: 0."""
    a, b = map(as_mask, on_one_grid(prediction, reference))
    union = np.count_nonzero(a | b)
    return float(np.count_nonzero(a & b) / union) if union else 1.0


def dice_per_label(prediction: Array, reference: Array, labels: Mapping[str, int]) -> dict[str, float]:
    """Dice of each of `labels` (name -> number) in two label maps (*spatial), as `{"dice/NAME": value}`.

    A label in neither map has Dice 1. Voxels of other numbers count as outside.
    """
    a, b = on_one_grid(prediction, reference)
    return {f"dice/{name}": dice(a == number, b == number) for name, number in labels.items()}
