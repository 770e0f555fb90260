import logging

import numpy as np
import pytest

from meddiff.errors import MetricError
from meddiff.metrics.bootstrap import around, bootstrap_mean, resampled


def sample(patients=40, each=1, seed=0):
    rng = np.random.default_rng(seed)
    means = rng.normal(size=patients)
    return np.repeat(means, each), [f"p{i}" for i in range(patients) for _ in range(each)]


def test_the_interval_of_independent_cases_is_that_of_the_normal_law():
    values, patients = sample(400)
    found = bootstrap_mean(values, patients, resamples=8000)
    half = 1.96 * values.std() / np.sqrt(400)
    assert found.mean == pytest.approx(values.mean(), rel=1e-12)
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.05 * half)


def test_copies_of_a_case_do_not_make_its_patients_surer():
    once, often = bootstrap_mean(*sample()), bootstrap_mean(*sample(each=5))
    assert (often.low, often.high) == pytest.approx((once.low, once.high))
    assert (often.cases, often.patients) == (200, 40)


def test_every_case_counts_once_however_many_a_patient_has():
    assert bootstrap_mean([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"]).mean == 0.75


def test_the_seed_alone_decides_and_not_the_order():
    values, patients = sample(each=2)
    order = np.random.default_rng(1).permutation(len(values))
    shuffled = bootstrap_mean(values[order], [patients[i] for i in order], seed=3)
    assert shuffled == bootstrap_mean(values, patients, seed=3)
    assert shuffled.low != bootstrap_mean(values, patients, seed=4).low


def test_a_higher_level_is_wider_and_equal_cases_have_no_width():
    values, patients = sample()
    narrow, wide = (bootstrap_mean(values, patients, level=level) for level in (0.5, 0.95))
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high
    flat = bootstrap_mean([0.25] * 6, list("abcdef"))
    assert (flat.low, flat.mean, flat.high) == (0.25, 0.25, 0.25)


def test_one_patient_gives_a_point_and_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        found = bootstrap_mean([1.0, 3.0], ["a", "a"])
    assert (found.low, found.mean, found.high, found.patients) == (2, 2, 2, 1)
    assert "no width" in caplog.text


def test_missing_values_are_refused():
    with pytest.raises(MetricError, match="found 0 values"):
        bootstrap_mean([], [])
    with pytest.raises(MetricError, match="found 2 values and 1 patients"):
        bootstrap_mean([1.0, 2.0], ["a"])
    with pytest.raises(MetricError, match="1 of 2 values"):
        bootstrap_mean([1.0, float("nan")], ["a", "b"])


def test_resamples_draw_whole_groups_as_many_as_there_are():
    drawn = resampled(["b", "a", "b", "c"], 500, 0, "test")
    assert drawn.shape == (500, 4)
    assert (drawn[:, 0] == drawn[:, 2]).all()
    assert (drawn[:, [0, 1, 3]].sum(1) == 3).all()
    assert drawn[:, 1].double().mean() == pytest.approx(1, abs=0.1)


def test_an_interval_lies_around_its_value_whatever_the_bias_of_its_resamples():
    rng = np.random.default_rng(0)
    low, high = around(5.0, (7 + rng.normal(size=20_000)).tolist())
    assert (low, high) == pytest.approx((5 - 1.96, 5 + 1.96), abs=0.05)
