"""Whether a segmentation knows what it does not know: calibration, entropy against error, and ensembles."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from meddiff.errors import MetricError
from meddiff.metrics.arrays import Array, as_array, as_mask, finite, on_one_grid
from meddiff.metrics.overlap import dice_per_label, iou

SUM_TOLERANCE = 0.01  # of probabilities stored as float16


def expected_calibration_error(
    probability: Array,  # (K, *spatial), over K every voxel sums to 1
    reference: Array,  # (*spatial), the index along K of the true label
    mask: Array | None = None,  # (*spatial), the voxels that count; None: all
    bins: int = 15,
) -> float:
    """Expected calibration error of the most probable label, 0 to 1 (Guo et al. 2017, eq. 3).

    Confidence is the largest probability. In bins ((m - 1)/M, m/M] the mean confidence is compared with how often that
    label was right; the mean absolute difference is weighted by the bins' voxels. MetricError where the probabilities do
    not sum to 1, the reference names no channel, or the mask is empty: there is no voxel to speak of.
    """
    p = finite(as_array(probability), "probability")
    _, truth = on_one_grid(p[0], reference, "a channel of the probability and the reference")
    sums = p.sum(0)
    if p.min() < 0 or np.abs(sums - 1).max() > SUM_TOLERANCE:
        raise MetricError(
            f"Probabilities are not negative and sum to 1 over the first axis; found values from {p.min():.3g} and sums "
            f"from {sums.min():.3g} to {sums.max():.3g}. Take the softmax of logits first."
        )
    if not np.isin(truth, np.arange(len(p))).all():
        raise MetricError(
            f"The reference holds indices of the {len(p)} channels, 0 to {len(p) - 1}; found values from {truth.min()} "
            f"to {truth.max()}. Replace the numbers of the labels by the channels they have."
        )
    inside = _inside(mask, truth)
    confidence, right = p.max(0)[inside], (p.argmax(0) == truth)[inside]
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(which, confidence - right, minlength=bins)  # voxels of the bin * (mean confidence - accuracy)
    return float(np.abs(gap).sum() / confidence.size)


def error_auroc(entropy: Array, error: Array, mask: Array | None = None) -> float:
    """How well entropy tells wrong voxels from right ones: the area under the ROC curve, 0 to 1, by ranks.

    It is the probability that a wrong voxel has more entropy than a right one, ties counting half (Mann-Whitney).
    `entropy` (*spatial), `error` (*spatial) true where the label is wrong, `mask` the voxels that count. Without a single
    wrong voxel, or without a right one, there is nothing to tell apart: 0.5, chance.
    """
    values, wrong = on_one_grid(entropy, error, "entropy and error")
    inside = _inside(mask, values)
    values, wrong = finite(values[inside], "entropy"), as_mask(wrong[inside])
    return auroc(values, wrong)


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive has a higher score than a negative, ties counting half; 0.5 without one of both.

    `score` (n,) finite, `positive` (n,) boolean.
    """
    count = np.count_nonzero(positive)
    negative = positive.size - count
    if not (count and negative):
        return 0.5
    _, place, often = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (often.cumsum() - (often - 1) / 2)[place]  # from 1; equal values share the mean of their ranks
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * negative))


def energy_distance(
    samples: Sequence[Array],  # S label maps (*spatial)
    references: Sequence[Array],  # R label maps (*spatial): one, or one a rater
    labels: Mapping[str, int],  # name -> number: what the overlap is averaged over
    overlap: Callable[[Array, Array], float] = iou,  # of two masks: `iou`, or `dice`
) -> float:
    """Squared generalised energy distance of an ensemble to the references, 2 E d(s, y) - E d(s, s') - E d(y, y').

    d = 1 - mean overlap over the labels (Kohl et al. 2018, eq. 6; IoU there). The means are over all pairs, a map with
    itself included, so that equal ensembles are at 0 and nothing is below 0. A label in neither of two maps overlaps
    fully. With one reference and samples that are all alike it is twice their distance.
    """
    names = list(labels)
    if not (len(samples) and len(references) and names):
        raise MetricError(
            f"An energy distance needs samples, references and labels; found {len(samples)}, {len(references)} and "
            f"{len(names)}."
        )
    maps = [as_array(m) for m in (*samples, *references)]
    masks = [[on_one_grid(m, maps[0], "two label maps")[0] == labels[name] for name in names] for m in maps]
    distance = np.zeros((len(maps), len(maps)))
    for i, j in zip(*np.triu_indices(len(maps), 1), strict=True):
        similar = [overlap(a, b) for a, b in zip(masks[i], masks[j], strict=True)]
        distance[i, j] = distance[j, i] = 1 - sum(similar) / len(names)
    s, r = slice(len(samples)), slice(len(samples), None)
    return float(2 * distance[s, r].mean() - distance[s, s].mean() - distance[r, r].mean())


def dice_of_samples(samples: Sequence[Array], reference: Array, labels: Mapping[str, int]) -> dict[str, float]:
    """Mean Dice over the labels of single samples: `dice_mean_of_samples`, what one sample is worth, and
    `dice_best_of_samples`, of the one sample that is nearest to the reference.

    Only someone who knows the reference can pick the best, and more samples make it better whatever the model: it is no
    measure of a segmentation, and stands apart from the mean and from the Dice of the averaged ensemble.
    """
    if not (len(samples) and labels):
        raise MetricError(f"Dice of samples needs samples and labels; found {len(samples)} and {len(labels)}.")
    each = [sum(dice_per_label(s, reference, labels).values()) / len(labels) for s in samples]
    return {"dice_mean_of_samples": sum(each) / len(each), "dice_best_of_samples": max(each)}


def _inside(mask: Array | None, like: np.ndarray) -> np.ndarray:
    """The voxels of a mask; all without one. MetricError if there are none."""
    if mask is None:
        return np.ones(like.shape, dtype=bool)
    inside = as_mask(on_one_grid(mask, like, "mask and image")[0])
    if not inside.any():
        raise MetricError(
            "The mask is empty: it leaves no voxel to measure. Give one that covers the patient, or none."
        )
    return inside
