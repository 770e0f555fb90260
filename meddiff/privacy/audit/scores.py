"""How suspicious an image is: its nearest training patient against the next ones, in an embedding and in plain voxels."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil

import torch
from torch import Tensor

from meddiff.privacy.audit.changes import Placement, blurred, placed_at, reduced
from meddiff.privacy.audit.detector import Embed
from meddiff.privacy.audit.statistics import owners

NEXT = 20  # patients after the nearest one, that set the scale
COARSE = {2: 32, 3: 16}  # voxels an axis of the correlation, by dimensions
LOW_PASS = 1 / 32  # of the axis: blur before images are correlated
REACH = 1 / 16  # of the axis: shifts that the correlation tries, each way
TURNED = 3  # images of each patient that rotations and zooms are tried on
AT_ONCE = 256  # images compared at a time
TURNS_DEG, ZOOMS = (-10.0, -5.0, 0.0, 5.0, 10.0), (0.93, 1.0, 1.07)


@dataclass(frozen=True)
class Nearness:
    """Of some images to the training patients."""

    ratio: Tensor  # (n,) distance of the nearest patient over the mean of the next ones; 0 is a copy, 1 is nobody's
    nearest: Tensor  # (n,) index of the nearest training image


@dataclass(frozen=True)
class Detector:
    """Two measures of nearness to a training set, each (images) -> distances (n, training images)."""

    measures: dict[str, Callable[[Tensor], Tensor]]
    owner: Tensor  # (training images,) number of the patient

    @classmethod
    def over(cls, training: Tensor, patients: Sequence[str], embed: Embed) -> "Detector":
        """The embedding, and the correlation over shifts, mirror images, rotations and zooms."""
        known = embed(training)
        owner = owners(patients)
        correlate = turned_distance(training, owner)
        return cls({"embedding": lambda x: torch.cdist(embed(x), known), "correlation": correlate}, owner)

    def __call__(self, images: Tensor) -> dict[str, Nearness]:
        """The nearness of images (n, 1, *size) by each measure."""
        return {name: nearness(measure(images), self.owner) for name, measure in self.measures.items()}


def nearness(distances: Tensor, owner: Tensor) -> Nearness:
    """From distances (n, training images) and the patient number of each training image (training images,).

    A patient is as far as the nearest of its images: with one image a patient this is the local ratio of Carlini et al.
    2023, with many the neighbouring slices of a copy do not hide it.
    """
    n, count = len(distances), int(owner.max()) + 1
    by_patient = distances.new_full((n, count), float("inf"))
    by_patient.scatter_reduce_(1, owner.expand(n, -1), distances, "amin")
    first = by_patient.topk(min(NEXT + 1, count), largest=False).values
    scale = first[:, 1:].mean(1).clamp_min(torch.finfo(first.dtype).tiny)
    return Nearness(first[:, 0] / scale, distances.argmin(1))


def correlation_distance(training: Tensor) -> Callable[[Tensor], Tensor]:
    """sqrt(2 - 2 c), c the largest correlation over small shifts (edges wrap) and the mirror image; images (n, 1, *size).

    Everything is compared a little blurred: what an interpolation takes away must not look like a difference.
    """
    known = _standardised(_coarse(training)).flatten(1)

    def distances(images: Tensor) -> Tensor:
        parts = _standardised(_coarse(images)).split(AT_ONCE)
        return torch.cat([_distance(_best(_shifted(part), known)) for part in parts])

    return distances


def turned_distance(training: Tensor, owner: Tensor) -> Callable[[Tensor], Tensor]:
    """As `correlation_distance`, in 2D also over small rotations and zooms; owner (training images,).

    Those are tried on the `TURNED` images of each patient that correlate most without them: with many slices a patient most
    could not be what an image was copied from.
    """
    known = _standardised(_coarse(training)).flatten(1)
    columns = [torch.nonzero(owner == patient)[:, 0] for patient in range(int(owner.max()) + 1)]
    poses = [pose for pose in product(TURNS_DEG, ZOOMS) if pose != (0.0, 1.0)] if training.ndim == 4 else []

    def distances(images: Tensor) -> Tensor:
        return torch.cat([_distance(correlations(_coarse(part))) for part in images.split(AT_ONCE)])

    def correlations(coarse: Tensor) -> Tensor:
        best = _best(_shifted(_standardised(coarse)), known)
        nearest = [own[best[:, own].topk(min(TURNED, len(own))).indices] for own in columns]
        chosen = torch.cat(nearest, dim=1)  # (n, at most TURNED for each patient)
        for turn, zoom in poses:
            views = _shifted(_standardised(_posed(coarse, turn, zoom)))
            if chosen.shape[1] == len(training):
                torch.maximum(best, _best(views, known), out=best)
                continue
            of_each = torch.stack(list(views), dim=1)  # (n, shifts and mirror images, voxels)
            found = [(v @ known[c].T).amax(0) for v, c in zip(of_each, chosen, strict=True)]
            best.scatter_reduce_(1, chosen, torch.stack(found), "amax")
        return best

    return distances


def _shifted(images: Tensor) -> Iterator[Tensor]:
    """The images (n, 1, *size) at all small shifts, as they are and mirrored, each (n, voxels)."""
    axes = tuple(range(2, images.ndim))
    for shift in product(*(range(-r, r + 1) for r in (ceil(n * REACH) for n in images.shape[2:]))):
        rolled = images.roll(shift, axes)
        yield rolled.flatten(1)
        yield rolled.flip(2).flatten(1)


def _best(views: Iterable[Tensor], known: Tensor) -> Tensor:
    """The largest correlation of any view (n, voxels) with each of `known` (m, voxels), (n, m)."""
    best: Tensor | None = None
    for view in views:
        here = view @ known.T
        best = here if best is None else torch.maximum(best, here, out=best)
    assert best is not None  # no shift at all is one of them
    return best


def _distance(correlation: Tensor) -> Tensor:
    return (2 - 2 * correlation.clamp(max=1)).sqrt()


def _coarse(images: Tensor) -> Tensor:
    small = reduced(images, COARSE[images.ndim - 2])
    return blurred(small, torch.full((len(small),), LOW_PASS))


def _posed(images: Tensor, turn_deg: float, zoom: float) -> Tensor:
    n = len(images)
    return placed_at(
        images,
        Placement(
            torch.zeros(n, 2), torch.full((n, 1), turn_deg), torch.full((n,), zoom), torch.zeros(n, dtype=torch.bool)
        ),
    )


def _standardised(images: Tensor) -> Tensor:
    """The images without their mean, of length 1."""
    flat = images.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    return (flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-6)).view_as(images)


@dataclass(frozen=True)
class Threshold:
    """What held-out patients, who cannot have been copied, say about chance."""

    middle: dict[str, float]  # median ratio of the held-out patients, by measure
    spread: dict[str, float]  # from there to the quantile of false positives
    value: float  # of the suspicion; what is below is a copy
    patients: int
    rank: int  # the threshold is that of so many-th most suspicious patient
    held_out: Tensor  # (patients,) their suspicions

    @classmethod
    def learnt(cls, held_out: dict[str, Nearness], patients: Sequence[str], false_positives: float) -> "Threshold":
        """From the nearness of held-out images; a patient is as suspicious as the worst of its images.

        With k = rate (n + 1) rounded down, the k-th smallest of n: an independent patient is below with probability k / (n + 1)
        at most, whatever the distribution (Vovk et al. 2005).
        """
        owner = owners(patients)
        count = int(owner.max()) + 1
        k = int(false_positives * (count + 1) + 1e-9)
        assert k >= 1  # the config's own check
        middle, spread = {}, {}
        for name, one in held_out.items():
            worst = _worst(one.ratio, owner, count)
            middle[name] = float(worst.median())
            spread[name] = max(middle[name] - float(worst.kthvalue(k).values), 1e-6)
        suspicion = _worst(_suspicion(held_out, middle, spread)[0], owner, count)
        return cls(middle, spread, float(suspicion.kthvalue(k).values), count, k, suspicion)

    def suspicion(self, found: dict[str, Nearness]) -> tuple[Tensor, Tensor]:
        """(n,) in units of the held-out spread, smaller is worse; and (n,) the nearest training image."""
        return _suspicion(found, self.middle, self.spread)

    def flagged(self, found: dict[str, Nearness]) -> Tensor:
        """(n,) bool: taken for a copy."""
        return self.suspicion(found)[0] < self.value


def _suspicion(found: dict[str, Nearness], middle: dict[str, float], spread: dict[str, float]) -> tuple[Tensor, Tensor]:
    """The worse of the measures, each in its own units, and the training image that it points to."""
    units = torch.stack([(one.ratio - middle[name]) / spread[name] for name, one in found.items()])
    worst = units.min(0)
    nearest = torch.stack([one.nearest for one in found.values()])
    return worst.values, nearest.gather(0, worst.indices[None])[0]


def _worst(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """The smallest value of each patient, (count,)."""
    return values.new_full((count,), float("inf")).scatter_reduce_(0, owner, values, "amin")
