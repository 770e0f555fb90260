import numpy as np
import pytest
import torch
from scipy.stats import binom

from meddiff.config import TrainConfig
from meddiff.engines.canaries import canary_scores
from meddiff.privacy.one_run import chance, epsilon_bound

EPSILON, DELTA, GUESSES = 3.0, 1e-5, 200
COINS = torch.rand(300, generator=torch.Generator().manual_seed(1)) < 0.5


def audited(change=lambda optimizer: None):
    privacy = {"epsilon": EPSILON, "delta": DELTA, "images_per_patient": 1, "noise_multiplicity": 1}
    train = TrainConfig(steps=10, batch=100, lr=1.0, warmup=0, privacy=privacy)
    scores = canary_scores(train, COINS, change).numpy()
    return epsilon_bound(scores, COINS.numpy(), GUESSES, DELTA)


def test_the_build_keeps_its_promise():
    assert audited() <= EPSILON


def test_a_build_without_noise_is_caught():
    def silent(optimizer):
        optimizer.noise_multiplier = 0.0

    assert audited(silent) > EPSILON


def test_a_build_that_does_not_clip_is_caught():
    def unclipped(optimizer):
        optimizer.noise_multiplier *= optimizer.max_grad_norm / 1e9  # the noise stays as it was
        optimizer.max_grad_norm = 1e9

    assert audited(unclipped) > EPSILON


def test_without_delta_the_chance_is_that_of_a_binomial():
    for epsilon, right in ((0.0, 60), (1.0, 80), (2.5, 100)):
        p = np.exp(epsilon) / (1 + np.exp(epsilon))
        assert chance(300, 100, right, epsilon, 0.0) == pytest.approx(binom.sf(right - 1, 100, p))


def test_delta_makes_right_guesses_less_surprising():
    chances = [chance(300, 100, 90, 1.0, delta) for delta in (0.0, 1e-6, 1e-4)]
    assert chances[0] < chances[1] < chances[2]


def test_randomised_response_is_bounded_by_its_epsilon_and_nearly_reaches_it():
    rng, m, epsilon = np.random.default_rng(0), 20_000, 2.0
    coins = rng.random(m) < 0.5
    told = coins ^ (rng.random(m) > np.exp(epsilon) / (1 + np.exp(epsilon)))
    assert 1.9 < epsilon_bound(told.astype(float), coins, m, 0.0) < epsilon


def test_guesses_that_are_no_better_than_chance_bound_nothing():
    rng = np.random.default_rng(0)
    assert epsilon_bound(rng.random(400), rng.random(400) < 0.5, 200, 1e-5) < 0.3
    assert epsilon_bound(np.arange(400.0), np.arange(400) < 200, 200, 1e-5) == 0.0  # all wrong
