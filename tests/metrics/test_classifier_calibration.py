import numpy as np
import pytest
import torch

from meddiff.errors import MetricError
from meddiff.metrics.calibration import auroc
from meddiff.metrics.diagnosis import calibrated, diagnosis_metrics


def drawn(n, scale, bias=0.0):
    """Scores whose true posterior is softmax(scores / scale + (0, bias)), and classes drawn from it."""
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.normal(size=(n, 2)) * scale)
    p = (scores / scale + torch.tensor([0.0, bias])).softmax(1)
    return scores, torch.from_numpy((rng.uniform(size=n) < p[:, 1].numpy()).astype(np.int64)), p


@pytest.mark.parametrize(("scale", "bias"), [(40.0, 0.0), (0.02, 1.5)])
def test_calibration_finds_the_scale_and_the_share_of_the_classes(scale, bias):
    scores, truth, p = drawn(20000, scale, bias)
    found = calibrated(scores, truth)
    assert found.temperature == pytest.approx(scale, rel=0.08)
    assert found.bias[1] - found.bias[0] == pytest.approx(bias, abs=0.1)
    assert (found(scores) - p).abs().max() < 0.05
    metrics = diagnosis_metrics(found(scores), truth, ["a"] * 10000 + ["b"] * 10000, ["no", "yes"])
    assert metrics["calibration_error"]["value"] < 0.02
    assert list(metrics) == ["accuracy", "brier", "auroc/yes", "calibration_error"]


def test_classes_that_separate_perfectly_have_a_finite_calibration():
    scores = torch.tensor([[5.0, -5.0], [4.0, -4.0], [-5.0, 5.0], [-4.0, 4.0]])
    found = calibrated(scores, torch.tensor([0, 0, 1, 1]))
    assert 0 < found.temperature < 10
    metrics = diagnosis_metrics(found(scores), torch.tensor([0, 0, 1, 1]), list("abcd"), ["no", "yes"])
    assert metrics["auroc/yes"]["value"] == 1.0
    assert metrics["accuracy"]["value"] == 1.0
    with pytest.raises(MetricError, match="all of one"):
        calibrated(scores, torch.zeros(4, dtype=torch.long))


def test_auroc_counts_pairs_and_ties_half():
    score = np.array([0.1, 0.4, 0.4, 0.9])
    positive = np.array([False, False, True, True])
    assert auroc(score, positive) == (1 + 0.5 + 1 + 1) / 4
    assert auroc(score, np.ones(4, bool)) == 0.5
