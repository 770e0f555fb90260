"""The audit, step by step: real against real, the detector, the gate, the copies, the attacks, the verdict."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from meddiff.audit_config import AuditConfig
from meddiff.errors import PrivacyError
from meddiff.privacy.audit.changes import changes, reduced
from meddiff.privacy.audit.detector import train_detector
from meddiff.privacy.audit.membership import attacks, by_patient
from meddiff.privacy.audit.scores import Detector, Threshold, correlation_distance, nearness
from meddiff.privacy.audit.sets import Real, Synthetic, check_sets
from meddiff.privacy.audit.statistics import Attack, Rate, excess_p, owners, permutation_p
from meddiff.privacy.audit.verdict import judge
from meddiff.seeds import generator

Attempt = Callable[[Real, Callable[[], None]], dict[str, Tensor]]  # images -> scores of each attack; told of each batch
Build = Callable[[Tensor, Sequence[str]], Detector]  # from all training images (n, 1, *size) and their patients
Stage = Callable[[str, int | None], Callable[[], None]]  # title and steps -> what to call after each step

DUPLICATE = 0.25  # an image so much nearer to one patient than to the next ones is that patient's
FOR_THE_GATE = 0.2  # share of the training patients that the detector is not trained on: planted copies are of them
PAIRS = 20


@dataclass(frozen=True)
class Pair:
    """A synthetic image and the training image that it resembles most, as indices."""

    synthetic: int
    training: int
    suspicion: float  # smaller is worse
    copy: bool


@dataclass(frozen=True)
class Found:
    """Everything an audit measured."""

    verdict: str
    reasons: list[str]
    record: dict[str, Any]  # every number, as JSON can hold it
    pairs: list[Pair]


def audit(
    training: Real,
    held_out: Real,
    synthetic: Synthetic,
    settings: AuditConfig,
    attempt: Attempt,
    *,
    slice_axis: int = 2,  # that slices of a volume are counted along
    detector: Build | None = None,  # another one than the protocol's
    stage: Stage = lambda title, total: lambda: None,
) -> Found:
    """The protocol of docs/privacy.md. PrivacyError for sets that cannot be audited, and for a patient on both sides."""
    check_sets(training, held_out, synthetic, settings)
    dims = training.images.ndim - 2
    size = settings.size if dims == 2 else settings.size // 2
    train, held, made = (reduced(v, size) for v in (training.images, held_out.images, synthetic.images))
    stage("Real against real", None)
    refuse_duplicates(training, train, held_out, held)

    reserved = _drawn(training.patients, FOR_THE_GATE, settings.seed, "gate")
    calibrating = _calibrating(held_out, settings)
    if detector is None:
        detector = partial(_detector, reserved, held_out, held, calibrating, settings, stage)
    look = detector(train, training.patients)

    stage("Threshold and planted copies", None)
    rows = held_out.of(calibrating)
    threshold = Threshold.learnt(
        look(held[rows]), [held_out.patients[i] for i in rows.tolist()], settings.false_positives
    )
    gate = _gate(look, threshold, train[training.of(reserved)], settings, slice_axis)

    stage("Synthetic images", None)
    suspicion, nearest = threshold.suspicion(look(made))
    flagged = suspicion < threshold.value
    copies = Rate.counted(int(flagged.sum()), len(made))
    by_chance = excess_p(copies.count, copies.of, threshold.rank, threshold.patients)
    copied = {training.patients[i] for i in nearest[flagged].tolist()}
    share, p = _permutation(train, training, held, held_out, made, settings.seed)
    membership = _membership(training, held_out, settings, attempt, stage("Attacks on the model", None))

    verdict, reasons = judge(gate, copies, by_chance, membership, settings)
    patients = len(set(training.patients))
    record = {
        "sets": {
            "training": {"images": len(train), "patients": patients},
            "held_out": {"images": len(held), "patients": len(set(held_out.patients)), "calibrating": len(calibrating)},
            "synthetic": {"images": len(made)},
        },
        "gate": {
            "passed": all(rate.value >= settings.recall for rate in gate.values()),
            "patients": len(reserved),
            "recall": {name: _rate(rate) for name, rate in gate.items()},
        },
        "copies": {
            **_rate(copies),
            "excess_p": by_chance,
            "threshold": threshold.value,
            "patients_copied": _rate(Rate.counted(len(copied), patients)),
            "nearest_is_training": share,
            "permutation_p": p,
        },
        "membership": {name: asdict(one) for name, one in membership.items()},
    }
    worst = suspicion.argsort(stable=True)[:PAIRS].tolist()
    pairs = [Pair(i, int(nearest[i]), float(suspicion[i]), bool(flagged[i])) for i in worst]
    return Found(verdict, reasons, record, pairs)


def refuse_duplicates(training: Real, train: Tensor, held_out: Real, held: Tensor) -> None:
    """PrivacyError where a held-out patient is a training patient under another name: a threshold from it would hide copies.

    Half of a patient's images have to be duplicates: a slice with little in it may be next to another's by chance.
    """
    near = nearness(correlation_distance(train)(held), owners(training.patients))
    twice = near.ratio < DUPLICATE
    share = by_patient(twice, held_out.patients)
    found = [name for name, s in zip(sorted(set(held_out.patients)), share.tolist(), strict=True) if s >= 0.5]
    if found:
        i = next(i for i, name in enumerate(held_out.patients) if name == found[0] and twice[i])
        j = int(near.nearest[i])
        raise PrivacyError(
            f"{len(found)} held-out patients were trained on under another name, for instance {found[0]}, whose {held_out.names[i]} is "
            f"{training.names[j]} of {training.patients[j]}. Find the duplicates, give them one patient, scan again and train again."
        )


def _drawn(patients: tuple[str, ...], share: float, seed: int, purpose: str) -> set[str]:
    """A random share of the patients, one at least."""
    names = sorted(set(patients))
    order = torch.randperm(len(names), generator=generator(seed, "patients", purpose))
    return {names[i] for i in order[: max(1, round(share * len(names)))].tolist()}


def _calibrating(held_out: Real, settings: AuditConfig) -> set[str]:
    """The held-out patients that the threshold is learnt from: half of them, and no fewer than the config asks for."""
    count = len(set(held_out.patients))
    return _drawn(held_out.patients, max(settings.held_out, count // 2) / count, settings.seed, "threshold")


def _detector(
    reserved: set[str],
    held_out: Real,
    held: Tensor,
    calibrating: set[str],
    settings: AuditConfig,
    stage: Stage,
    train: Tensor,
    patients: Sequence[str],
) -> Detector:
    """The detector, with an embedding that learns from everyone whom neither the gate nor the threshold needs."""
    seen = torch.tensor([name not in reserved for name in patients])
    spare = held_out.of(set(held_out.patients) - calibrating)
    names = [name for name in patients if name not in reserved] + [held_out.patients[i] for i in spare.tolist()]
    step = stage("Copy detector", settings.detector_steps)
    embed = train_detector(torch.cat([train[seen], held[spare]]), names, settings, step)
    return Detector.over(train, patients, embed)


def _gate(
    look: Detector, threshold: Threshold, images: Tensor, settings: AuditConfig, slice_axis: int
) -> dict[str, Rate]:
    """How many planted copies of training images are found, by change."""
    result = {}
    for name, change in changes(images.ndim - 2, slice_axis).items():
        g = generator(settings.seed, "plant", name)
        chosen = torch.randint(len(images), (settings.plants,), generator=g)
        planted = change(images[chosen], g).clamp(-1, 1)
        result[name] = Rate.counted(int(threshold.flagged(look(planted)).sum()), settings.plants)
    return result


def _permutation(
    train: Tensor, training: Real, held: Tensor, held_out: Real, made: Tensor, seed: int
) -> tuple[float, float]:
    """By correlation alone: the embedding was trained on more of one group than of the other."""
    nearest = correlation_distance(torch.cat([train, held]))(made).argmin(1)
    everyone = [*training.patients, *held_out.patients]
    known = set(training.patients)
    return permutation_p(owners(everyone)[nearest].tolist(), [name in known for name in sorted(set(everyone))], seed)


def _membership(
    training: Real, held_out: Real, settings: AuditConfig, attempt: Attempt, step: Callable[[], None]
) -> dict[str, Attack]:
    members, others = (one.some(settings.members) for one in (training, held_out))
    return attacks(
        attempt(members, step),
        members.patients,
        attempt(others, step),
        others.patients,
        settings.false_positives,
        settings.seed,
    )


def _rate(rate: Rate) -> dict[str, Any]:
    return {"count": rate.count, "of": rate.of, "rate": rate.value, "low": rate.low, "high": rate.high}
