"""The privacy budget of a run: the noise that keeps to it and what of it is spent, both computed by Opacus.

Opacus is imported where it is used: it takes seconds, and only private runs need it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, filterwarnings

import torch

from meddiff.config import TrainConfig
from meddiff.engines.card import Guarantee
from meddiff.errors import ConfigError, PrivacyError
from meddiff.seeds import secret

if TYPE_CHECKING:
    from opacus.optimizers import DPOptimizer

ACCOUNTANT = "prv"  # Gopi, Lee and Wutschitz 2021
ERROR = 0.005  # of epsilon, as a share of the budget: what the accountant may add, and the search leave


class Budget:
    """(epsilon, delta) for each of `patients`, added or removed; ConfigError where no noise keeps to it.

    The number of patients is taken as public: with it the probability of being drawn is.
    """

    def __init__(self, train: TrainConfig, patients: int) -> None:
        from opacus.accountants import create_accountant

        assert train.privacy is not None
        self.settings, self.train, self.patients = train.privacy, train, patients
        _check(train, patients)
        self.rate = train.batch / patients
        self.accountant = create_accountant(ACCOUNTANT)
        self.noise_multiplier = _noise_for(self.settings.epsilon, self.settings.delta, self.rate, train.steps)

    def guarded(self, optimizer: torch.optim.Optimizer, device: torch.device) -> "DPOptimizer":
        """The optimizer behind clipping and noise: each of its steps is counted. The noise cannot be repeated.

        The sum is divided by `train.batch`, a public number, and never by how many patients were drawn. Noise is drawn as Opacus'
        secure mode does, as floating-point numbers of one draw give away more than the Gaussian they stand for.
        """
        from opacus.optimizers import DPOptimizer

        private = DPOptimizer(
            optimizer,
            noise_multiplier=self.noise_multiplier,
            max_grad_norm=self.settings.max_grad_norm,
            expected_batch_size=self.train.batch,
            generator=secret(device),
            secure_mode=True,
        )
        private.attach_step_hook(self.accountant.get_optimizer_hook_fn(self.rate))
        return private

    @property
    def steps(self) -> int:
        """Steps that were taken."""
        return sum(steps for _, _, steps in self.accountant.history)

    @property
    def epsilon(self) -> float:
        """What is spent, at `settings.delta`; an upper bound."""
        return _spent(tuple(self.accountant.history), self.settings.delta, ERROR * self.settings.epsilon)

    @property
    def guarantee(self) -> Guarantee:
        """What holds of the weights as they are."""
        return Guarantee(
            epsilon=round(self.epsilon, 6),
            **self.settings.model_dump(exclude={"epsilon"}),
            noise_multiplier=self.noise_multiplier,
            sample_rate=self.rate,
            patients=self.patients,
            steps=self.steps,
            accountant=f"Opacus {version('opacus')}, {ACCOUNTANT}",
        )

    @property
    def _terms(self) -> dict[str, Any]:
        """What the noise was computed for."""
        own = {"patients": self.patients, "batch": self.train.batch, "steps": self.train.steps}
        return self.settings.model_dump() | own

    def capture(self) -> dict[str, Any]:
        """What a checkpoint holds: the terms, the noise and the steps taken; no random state."""
        return {
            "terms": self._terms,
            "noise_multiplier": self.noise_multiplier,
            "accountant": dict(self.accountant.state_dict()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with what was spent; PrivacyError where the terms were others, as the budget would be another."""
        changed = [name for name, value in self._terms.items() if state["terms"].get(name) != value]
        if changed:
            raise PrivacyError(
                f"train.privacy: the checkpoint was trained with {changed[0]} = {state['terms'].get(changed[0])}, now it is "
                f"{self._terms[changed[0]]}. A budget cannot change on the way, not even with --force; start a new run."
            )
        self.noise_multiplier = state["noise_multiplier"]
        self.accountant.load_state_dict(state["accountant"])


def _check(train: TrainConfig, patients: int) -> None:
    assert train.privacy is not None
    if train.batch > patients:
        raise ConfigError(
            f"train.batch = {train.batch}: is the number of patients to be expected in a private step, and there are {patients} to "
            "train on. Use fewer, a tenth of them for instance."
        )
    if train.privacy.delta * patients >= 1:
        raise ConfigError(
            f"train.privacy.delta = {train.privacy.delta:g}: with {patients} patients, publishing one of them whole would keep to it. "
            f"Use far less than {1 / patients:.2g}."
        )


@cache
def _noise_for(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """The least noise, over max_grad_norm, whose `steps` spend at most epsilon; ConfigError where there is none."""
    from opacus.accountants.utils import get_noise_multiplier

    try:
        with _quiet():
            return get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=rate,
                steps=steps,
                accountant=ACCOUNTANT,
                epsilon_tolerance=ERROR * epsilon,
                eps_error=ERROR * epsilon,
            )
    except (ValueError, RuntimeError) as e:
        raise ConfigError(
            f"train.privacy: no noise was found that keeps {steps} steps at a rate of {rate:.3g} within epsilon = {epsilon:g}, "
            f"delta = {delta:g} ({e}). Use fewer train.steps or a larger epsilon."
        ) from e


@cache
def _spent(history: tuple[tuple[float, float, int], ...], delta: float, error: float) -> float:
    """The accountant's upper bound; asked for more than once a step, and a tenth of a second each."""
    from opacus.accountants import create_accountant

    accountant = create_accountant(ACCOUNTANT)
    accountant.history = list(history)
    with _quiet():
        return float(accountant.get_epsilon(delta, eps_error=error)) if history else 0.0


@contextmanager
def _quiet() -> Iterator[None]:
    """Without advice on orders of Renyi divergence: the accountant takes no more from them than the width of its grid."""
    with catch_warnings():
        filterwarnings("ignore", "Optimal order is the (largest|smallest) alpha")
        filterwarnings(
            "ignore", "divide by zero encountered in log"
        )  # at a rate of 1, of which it makes the right thing
        yield
