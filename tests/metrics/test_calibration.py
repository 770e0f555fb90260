import numpy as np
import pytest
import torch

from meddiff.errors import GeometryError, MetricError
from meddiff.metrics.calibration import dice_of_samples, energy_distance, error_auroc, expected_calibration_error
from meddiff.metrics.overlap import dice, iou

LABELS = {"one": 1, "two": 2}


def two_classes(confidence, right):
    """Probabilities of two classes, the first the likelier, and the truth."""
    return np.stack([confidence, 1 - np.asarray(confidence)]), np.where(right, 0, 1)


def maps(n, seed=0, shape=(6, 7)):
    return list(np.random.default_rng(seed).integers(0, 3, (n, *shape)))


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    p, truth = two_classes(np.full(10, 0.9), np.arange(10) < 6)
    assert expected_calibration_error(p, truth) == pytest.approx(0.3)


def test_gaps_of_bins_are_weighted_by_voxels_and_do_not_cancel():
    p, truth = two_classes(np.repeat([0.6, 1.0], [30, 10]), np.repeat([True, False], [30, 10]))
    assert expected_calibration_error(p, truth) == pytest.approx((30 * 0.4 + 10 * 1.0) / 40)


def test_calibration_error_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    p = torch.from_numpy(rng.normal(size=(4, 20, 30))).softmax(0).numpy()
    truth = rng.integers(0, 4, (20, 30))
    confidence, right, expected = p.max(0), p.argmax(0) == truth, 0.0
    for low, high in zip(np.arange(15) / 15, np.arange(1, 16) / 15, strict=True):
        of_bin = (confidence > low) & (confidence <= high)
        if of_bin.any():
            expected += of_bin.mean() * abs(right[of_bin].mean() - confidence[of_bin].mean())
    assert expected_calibration_error(torch.from_numpy(p), truth) == pytest.approx(expected, rel=1e-12)


def test_sampled_truth_is_calibrated_and_certainty_that_errs_is_not():
    rng = np.random.default_rng(1)
    p = rng.uniform(0.5, 1, 200_000)
    assert expected_calibration_error(*two_classes(p, rng.uniform(size=p.size) < p)) < 0.005
    assert expected_calibration_error(*two_classes(np.ones(8), np.zeros(8, bool))) == 1
    assert expected_calibration_error(*two_classes(np.ones(8), np.ones(8, bool))) == 0


def test_voxels_outside_the_mask_do_not_count():
    p, truth = two_classes(np.repeat([0.8, 1.0], 5), np.repeat([True, False], 5))
    assert expected_calibration_error(p, truth, np.arange(10) < 5) == pytest.approx(0.2)
    with pytest.raises(MetricError, match="mask is empty"):
        expected_calibration_error(p, truth, np.zeros(10))


def test_what_is_no_probability_is_refused():
    with pytest.raises(MetricError, match="softmax of logits"):
        expected_calibration_error(np.full((3, 4), 0.5), np.zeros(4, int))
    with pytest.raises(MetricError, match=r"1 of 2 values .* NaN"):
        expected_calibration_error(np.array([[np.nan], [1.0]]), np.zeros(1, int))
    with pytest.raises(MetricError, match="0 to 1; found values from 2 to 2"):
        expected_calibration_error(np.full((2, 4), 0.5), np.full(4, 2))
    with pytest.raises(GeometryError, match="one grid"):
        expected_calibration_error(np.full((2, 4), 0.5), np.zeros(5, int))


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(2)
    entropy, error = rng.integers(0, 8, 300) / 8, rng.uniform(size=300) < 0.3  # with many ties
    of_wrong, of_right = entropy[error][:, None], entropy[~error][None]
    expected = ((of_wrong > of_right) + 0.5 * (of_wrong == of_right)).mean()
    assert error_auroc(entropy, error) == pytest.approx(expected, rel=1e-12)


def test_auroc_of_perfect_reversed_and_blind_entropy():
    error = np.arange(10) < 3
    assert (error_auroc(error * 1.0, error), error_auroc(1.0 - error, error)) == (1, 0)
    assert error_auroc(np.ones(10), error) == 0.5


@pytest.mark.parametrize("error", [np.zeros(5, bool), np.ones(5, bool)])
def test_auroc_is_chance_where_there_is_nothing_to_tell_apart(error):
    assert error_auroc(np.arange(5.0), error) == 0.5


def test_auroc_does_not_depend_on_the_scale_of_entropy_and_keeps_to_its_mask():
    rng = np.random.default_rng(3)
    entropy, error = rng.uniform(size=200), rng.uniform(size=200) < 0.4
    inside = np.arange(200) < 120
    assert error_auroc(np.exp(5 * entropy), error) == error_auroc(entropy, error)
    assert error_auroc(entropy, error, inside) == error_auroc(entropy[:120], error[:120])


@pytest.mark.parametrize("overlap", [dice, iou])
def test_energy_distance_is_that_of_the_definition(overlap):
    samples, references = maps(4), maps(3, 1)

    def d(a, b):
        return 1 - np.mean([overlap(a == n, b == n) for n in LABELS.values()])

    cross = np.mean([d(s, y) for s in samples for y in references])
    within = np.mean([d(s, t) for s in samples for t in samples])
    among = np.mean([d(y, z) for y in references for z in references])
    found = energy_distance(samples, references, LABELS, overlap)
    assert found == pytest.approx(2 * cross - within - among, rel=1e-12)


def test_equal_ensembles_are_at_no_energy_distance_and_none_is_negative():
    a = maps(4)
    assert energy_distance(a, a[::-1], LABELS) == pytest.approx(0, abs=1e-12)
    assert energy_distance(a + a, a, LABELS) == pytest.approx(0, abs=1e-12)
    for seed in range(5):
        assert energy_distance(maps(3, seed), maps(2, seed + 10), LABELS) > 0


def test_energy_distance_is_symmetric_and_zero_for_empty_maps():
    assert energy_distance(maps(2), maps(3, 1), LABELS) == pytest.approx(energy_distance(maps(3, 1), maps(2), LABELS))
    assert energy_distance([np.zeros((4, 4))] * 2, [np.zeros((4, 4))], LABELS) == 0


def test_the_right_spread_is_nearer_than_the_likelier_half_of_it():
    left, right = np.zeros((4, 4), int), np.zeros((4, 4), int)
    left[:2], right[2:] = 1, 1
    raters = [left, right]
    assert energy_distance([left, right], raters, {"one": 1}) == 0
    assert energy_distance([left, left], raters, {"one": 1}) == pytest.approx(0.5)


def test_mean_and_best_of_samples_stay_apart():
    reference = maps(1)[0]
    samples = [reference, np.zeros_like(reference), maps(1, 9)[0]]
    each = [np.mean([dice(s == n, reference == n) for n in LABELS.values()]) for s in samples]
    found = dice_of_samples(samples, reference, LABELS)
    assert found["dice_mean_of_samples"] == pytest.approx(np.mean(each))
    assert found["dice_best_of_samples"] == 1


def test_more_samples_never_make_the_best_worse():
    reference, samples = maps(1)[0], maps(6, 5)
    best = [dice_of_samples(samples[:n], reference, LABELS)["dice_best_of_samples"] for n in range(1, 7)]
    assert best == sorted(best)


def test_an_ensemble_of_nothing_is_refused():
    with pytest.raises(MetricError, match="found 0, 1 and 2"):
        energy_distance([], maps(1), LABELS)
    with pytest.raises(MetricError, match="found 1 and 0"):
        dice_of_samples(maps(1), maps(1)[0], {})
