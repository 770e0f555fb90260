"""The training step with differential privacy (Abadi et al. 2016), the patient being what is protected.

A patient's gradient is that of the mean loss of its images, each met by several draws of noise (Dockhorn et al. 2023). It is a
function of the weights, the step and this patient alone: no seed, no noise level and no scale in it depends on who else was
drawn. Clipped gradients are summed, noise is added to the sum once, and whatever follows (optimiser, average of weights,
samples) is computed from that.
"""

from collections.abc import Mapping
from operator import itemgetter, methodcaller
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Engine
from torch import Tensor, nn

from meddiff.config import DiffusionConfig, TrainConfig
from meddiff.data.patients import each_patient
from meddiff.diffusion.sigmas import stratified
from meddiff.engines.ema import EMA
from meddiff.engines.trainer import Skips, autocast, learning_rate, seeded_dropout, training_sigmas
from meddiff.errors import PrivacyError, RunError
from meddiff.seeds import derive, generator
from meddiff.tasks.task import Task

if TYPE_CHECKING:
    from opacus.optimizers import DPOptimizer


def private_trainer(
    model: nn.Module,
    ema: EMA,
    optimizer: "DPOptimizer",  # of `Budget.guarded`
    task: Task,
    diffusion: DiffusionConfig,
    train: TrainConfig,
    device: torch.device,
    skips: Skips,
) -> Engine:
    """An engine like `trainer`'s over the batches of `patient_loader`; a batch of nobody is a step of noise alone.

    "loss" is the sum of the patients' losses over `train.batch`, "grad_norm" that of the noisy gradient. A patient whose
    gradient is not finite adds nothing to a step, and is counted in "skipped".
    """
    refuse_shared_statistics(model)
    autocast(device, train.precision)  # refuses what this device cannot do before the first step
    assert train.privacy is not None
    number = train.privacy.images_per_patient

    def step(engine: Engine, batch: Mapping[str, Any]) -> dict[str, float]:
        model.train()
        now = engine.state.iteration - 1
        _refuse_stand_ins(batch)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(train, now)
        total = 0.0
        for patient in each_patient(batch, number):
            loss = patient_gradient(model, task, diffusion, train, device, patient)
            healthy = _finite(model)
            if healthy:
                total += loss
                _contribute(optimizer)
            optimizer.zero_grad(set_to_none=True)
            skips.all += not healthy
        norm = _release(optimizer)
        optimizer.zero_grad(set_to_none=True)
        ema.update(model)
        return {
            "loss": total / train.batch,
            "lr": learning_rate(train, now),
            "grad_norm": norm,
            "skipped": skips.all,
        }

    return Engine(step)


def patient_gradient(
    model: nn.Module,
    task: Task,
    diffusion: DiffusionConfig,
    train: TrainConfig,
    device: torch.device,
    patient: Mapping[str, Any],  # a batch of the loader: images of one patient
) -> float:
    """Leave the gradient of a patient's mean loss in the weights' `grad`, and return that loss.

    Noise levels are spread over the patient's own draws. All chance comes from the seeds of its images.
    """
    assert train.privacy is not None
    draws = train.privacy.noise_multiplicity
    seeds = [int(seed) for seed in patient["seed"]]
    x0, cond = task.example(patient)
    x0 = x0.repeat_interleave(draws, 0)
    cond = None if cond is None else cond.map(methodcaller("repeat_interleave", draws, 0))
    sigma = training_sigmas(diffusion)(stratified(len(x0), generator(seeds[0], "sigma"))).float()
    noise = [generator(seed, "noise", draw) for seed in seeds for draw in range(draws)]
    own = 0.0
    for number, part in enumerate(torch.arange(len(x0)).chunk(train.accumulate)):
        here = None if cond is None else cond.map(itemgetter(part)).map(methodcaller("to", device))
        with seeded_dropout(model, derive(seeds[0], "dropout", number), device), autocast(device, train.precision):
            losses = task.losses(model, x0[part].to(device), here, sigma[part].to(device), [noise[i] for i in part])
        loss = losses.sum() / len(x0)
        loss.backward()
        own += float(loss.detach())
    return own


def _contribute(optimizer: "DPOptimizer") -> None:
    """Clip the gradient at hand as that of one patient, and add it to the sum; the weights stay."""
    for p in optimizer.params:
        p.grad_sample = torch.zeros_like(p)[None] if p.grad is None else p.grad[None]
    optimizer.signal_skip_step(True)
    optimizer.step()


def _release(optimizer: "DPOptimizer") -> float:
    """Add the noise to the sum, and take the step; the norm of what was released."""
    for p in optimizer.params:
        p.grad_sample = p.new_zeros((0, *p.shape))  # nobody more: where nobody was drawn, the sum is 0
    optimizer.step()
    norms: list[Tensor] = [p.grad.norm() for p in optimizer.params]
    return float(torch.stack(norms).norm())


def _finite(model: nn.Module) -> bool:
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return bool(norm.isfinite())


def _refuse_stand_ins(batch: Mapping[str, Any]) -> None:
    """RunError where the image of one patient stands in for one of another: it would count twice."""
    if (batch["unreadable"] >= 0).any():
        raise RunError(
            "A case cannot be read, and in a private run no other patient may stand in for it. Mend or remove its entry in the "
            "cache or its files, then go on with --resume."
        )


def refuse_shared_statistics(model: nn.Module) -> None:
    """PrivacyError where a layer keeps statistics over patients, which no noise is added to."""
    from opacus.validators import ModuleValidator

    errors = ModuleValidator.validate(model.train())
    if errors:
        raise PrivacyError(
            f"train.privacy: the network has a layer that mixes patients or keeps their statistics without noise ({errors[0]}). Use "
            "group normalisation."
        )
