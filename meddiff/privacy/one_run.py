"""What one training run shows of its epsilon: a lower bound from canaries (Steinke, Nasr and Jagielski 2023).

Each of m canaries is put into the data, or not, by the toss of a fair coin. Whoever sees what was trained guesses the coins. If
the training keeps to (epsilon, delta), few guesses are right: so many right guesses are evidence against it.
"""

from math import exp, inf

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom

HIGHEST = 50.0  # epsilon beyond which the bound does not look


def epsilon_bound(
    scores: np.ndarray,  # (m,) of each canary: higher the more it seems to be in the data
    included: np.ndarray,  # (m,) bool: the coins
    guesses: int,  # of the highest and of the lowest scores, together; fixed before the scores are seen
    delta: float,
    confidence: float = 0.95,
) -> float:
    """The largest epsilon that the guesses rule out with this confidence; 0 where they rule out none.

    The canaries of the highest scores are guessed to be in the data, those of the lowest not to be, and on the rest no guess
    is made.
    """
    order = np.argsort(scores, kind="stable")
    half = guesses // 2
    right = int((~included[order[:half]]).sum() + included[order[len(order) - half :]].sum())
    alpha = 1 - confidence

    def excess(epsilon: float) -> float:
        return chance(len(scores), 2 * half, right, epsilon, delta) - alpha

    if excess(0.0) >= 0:
        return 0.0
    return inf if excess(HIGHEST) < 0 else float(brentq(excess, 0.0, HIGHEST))


def chance(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """At most how probable so many right guesses are under (epsilon, delta); theorem 5.2 of the paper.

    With delta = 0 each guess is right with probability exp(epsilon) / (1 + exp(epsilon)) at best; delta moves probability from
    up to i fewer right guesses, at a price of 2 m delta / i.
    """
    p = 1 / (1 + exp(-epsilon))
    tail = float(binom.sf(right - 1, guesses, p))
    fewer = np.arange(1, right + 1)
    moved = (binom.cdf(right - 1, guesses, p) - binom.cdf(right - 1 - fewer, guesses, p)) / fewer
    return min(1.0, tail + 2 * canaries * delta * float(moved.max(initial=0.0)))
