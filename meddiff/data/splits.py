"""Splits by patient: all cases of one patient are in the same split, and the same key gives the same splits."""

import hashlib
from collections.abc import Iterable, Sequence

from meddiff.data.manifest import SPLITS, Split
from meddiff.errors import ManifestError


def split_patients(patients: Iterable[str], proportions: Sequence[float]) -> dict[str, Split]:
    """Patient -> split: patients in the order of their hash, cut into exact counts (largest remainder).

    >>> from collections import Counter
    >>> sorted(Counter(split_patients(map(str, range(10)), (0.7, 0.15, 0.15)).values()).items())
    [('test', 1), ('train', 7), ('val', 2)]
    """
    order = sorted(set(patients), key=lambda patient: hashlib.sha256(f"split:{patient}".encode()).hexdigest())
    counts = split_counts(len(order), proportions)
    names = [name for name, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
    return dict(zip(order, names, strict=True))


def split_counts(patients: int, proportions: Sequence[float]) -> list[int]:
    """How many of `patients` go to train, val, test; a lone patient goes to the first that is asked for.

    >>> split_counts(10, (0.7, 0.15, 0.15)), split_counts(1, (0.2, 0.4, 0.4))
    ([7, 2, 1], [1, 0, 0])
    """
    if len(proportions) != len(SPLITS) or min(proportions) < 0 or abs(sum(proportions) - 1) > 1e-6:
        raise ManifestError(
            f"the split is {tuple(proportions)}; expected three numbers for {', '.join(SPLITS)} that are "
            "not negative and add up to 1, for instance 0.7,0.15,0.15."
        )
    if patients == 1:
        first = next(n for n, share in enumerate(proportions) if share > 0)
        return [int(n == first) for n in range(len(SPLITS))]
    exact = [round(patients * share, 9) for share in proportions]  # 9: 0.7 * 10 is 7, not 6.9999999
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(SPLITS)), key=lambda n: (counts[n] - exact[n], n))
    for n in by_remainder[: patients - sum(counts)]:
        counts[n] += 1
    return counts
