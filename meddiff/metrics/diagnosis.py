"""How good the probabilities of a classifier are, and what makes honest ones of its scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from meddiff.errors import MetricError
from meddiff.metrics.bootstrap import bootstrap_mean
from meddiff.metrics.calibration import auroc, expected_calibration_error
from meddiff.seeds import generator

PENALTY = 1e-3  # of the squared calibration parameters, so that classes that separate perfectly have finite ones
RESAMPLES = 1000


@dataclass(frozen=True)
class Calibration:
    """softmax(scores / temperature + bias): a temperature, and a bias a class (Alexandari et al. 2020, BCTS)."""

    temperature: float
    bias: tuple[float, ...]

    def __call__(self, scores: Tensor) -> Tensor:
        """Probabilities (n, classes) from scores, the logarithm of each class' likelihood."""
        return (scores.double() / self.temperature + torch.tensor(self.bias, dtype=torch.float64)).softmax(1)


def calibrated(scores: Tensor, truth: Tensor) -> Calibration:
    """The calibration that makes the least cross-entropy of held-out scores (n, classes) with classes `truth` (n,).

    MetricError where fewer than two classes are among them: nothing can be learnt then.
    """
    if len(truth.unique()) < 2:
        raise MetricError(
            f"Calibration needs cases of two classes at least; the {len(truth)} held-out ones are all of one. Split again."
        )
    scores = scores.double()
    spread = (scores - scores.mean(1, keepdim=True)).std()  # the search starts at scores of unit spread
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(scores.shape[1], dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([log_t, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        logits = scores / (spread * log_t.exp()) + bias
        value = torch.nn.functional.cross_entropy(logits, truth) + PENALTY * (log_t**2 + bias.square().sum())
        value.backward()
        return value

    search.step(loss)
    centred = bias.detach() - bias.detach().mean()
    return Calibration(float(spread * log_t.detach().exp()), tuple(centred.tolist()))


def diagnosis_metrics(
    probability: Tensor,  # (n, classes)
    truth: Tensor,  # (n,)
    patients: Sequence[str],  # (n,)
    classes: Sequence[str],
) -> dict[str, dict[str, float]]:
    """AUROC of each class against the rest, accuracy, Brier score and calibration error, with 95 % intervals over patients."""
    p, y = probability.double().numpy(), truth.numpy()
    one_hot = np.eye(len(classes))[y]
    named = {"accuracy": (p.argmax(1) == y).astype(float), "brier": ((p - one_hot) ** 2).sum(1)}
    table = {}
    for name, values in named.items():
        interval = bootstrap_mean(values.tolist(), patients)
        table[name] = {"value": interval.mean, "low": interval.low, "high": interval.high}
    draws = _resampled(patients)
    for c, name in enumerate(classes):
        if len(classes) == 2 and c == 0:
            continue  # the same number as that of the other class
        drawn = [auroc(p[rows, c], y[rows] == c) for rows in draws]
        low, high = np.quantile(drawn, [0.025, 0.975])
        table[f"auroc/{name}"] = {"value": auroc(p[:, c], y == c), "low": float(low), "high": float(high)}
    table["calibration_error"] = {"value": expected_calibration_error(p.T, y)}
    return table


def _resampled(patients: Sequence[str]) -> list[np.ndarray]:
    """Rows of resamples of patients with replacement."""
    names = sorted(set(patients))
    rows = [np.flatnonzero(np.array(patients) == name) for name in names]
    drawn = torch.randint(len(names), (RESAMPLES, len(names)), generator=generator(0, "bootstrap-diagnosis")).numpy()
    return [np.concatenate([rows[i] for i in chosen]) for chosen in drawn]
