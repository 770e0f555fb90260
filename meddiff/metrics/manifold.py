"""Are samples realistic, and is all that is real among them? Told by nearest neighbours in a space of features."""

from typing import NamedTuple

import torch
from torch import Tensor

from meddiff.errors import MetricError

PRECISION_K = 3  # neighbours, as Kynkaanniemi et al. 2019
COVERAGE_K = 5  # as Naeem et al. 2020


class Neighbourhoods(NamedTuple):
    """For each image, what is averaged over the images; the means are the metrics."""

    precision: Tensor  # (m,) of a sample: does it lie in the ball of a real image? (0 or 1)
    recall: Tensor  # (n,) of a real image: does it lie in the ball of a sample? (0 or 1)
    density: Tensor  # (m,) of a sample: in how many real balls, over k
    coverage: Tensor  # (n,) of a real image: does its ball hold a sample? (0 or 1)


def neighbourhoods(
    real: Tensor,  # (n, d)
    samples: Tensor,  # (m, d)
    precision_k: int = PRECISION_K,
    coverage_k: int = COVERAGE_K,
) -> Neighbourhoods:
    """Precision and recall (Kynkaanniemi et al. 2019, eq. 1 and 2), density and coverage (Naeem et al. 2020, eq. 6 and 8).

    The ball of an image reaches to its k-th nearest neighbour in its own set. For two sets of one distribution and n = m, on
    average density is 1 and coverage 1 - (n-1)...(n-k) / ((2n-1)...(2n-k)), 0.97 for k = 5; precision and recall depend on
    the data. One real outlier has a ball that makes precision good everywhere; density and coverage know of that.
    """
    least = max(precision_k, coverage_k) + 1
    if min(len(real), len(samples)) < least:
        raise MetricError(
            f"{max(precision_k, coverage_k)} nearest neighbours need at least {least} images in each set; found {len(real)} "
            f"real ones and {len(samples)} samples."
        )
    x, y = real.double().cpu(), samples.double().cpu()
    apart = _distances(x, y)  # (n, m)
    wide = _radii(x, coverage_k)[:, None]
    inside = apart < wide
    return Neighbourhoods(
        precision=(apart <= _radii(x, precision_k)[:, None]).any(0).double(),
        recall=(apart <= _radii(y, precision_k)).any(1).double(),
        density=inside.sum(0).double() / coverage_k,
        coverage=inside.any(1).double(),
    )


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Exact: by differences, not by a product of matrices, in which an image is not at 0 from itself."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _radii(x: Tensor, k: int) -> Tensor:
    """How far the k-th nearest neighbour of each is, itself not being one; (n,)."""
    return _distances(x, x).kthvalue(k + 1, dim=1).values
