"""The privacy budget of a run: the noise that keeps to it and what of it is spent, both computed by Opacus.

Opacus is imported where it is used: it takes seconds, and only private runs need it.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from meddiff.config import TrainConfig
from meddiff.engines.card import Guarantee
from meddiff.errors import ConfigError, PrivacyError
from meddiff.seeds import secret

if TYPE_CHECKING:
    from opacus.optimizers import DPOptimizer

ACCOUNTANT = "prv"  # Gopi, Lee and Wutschitz 2021
ERROR = 0.003  # of epsilon, as a share of the budget: what the accountant may add, and the search leave


class Budget:
    """(epsilon, delta) for each of `patients`, added or removed; ConfigError where no noise keeps to it.

    The number of patients is taken as public: with it the probability of being drawn is.
    """

    def __init__(self, train: TrainConfig, patients: int) -> None:
        from opacus.accountants import create_accountant
        from opacus.accountants.utils import get_noise_multiplier

        assert train.privacy is not None
        self.settings, self.train, self.patients = train.privacy, train, patients
        _check(train, patients)
        self.rate = train.batch / patients
        self.accountant = create_accountant(ACCOUNTANT)
        try:
            self.noise_multiplier = get_noise_multiplier(
                target_epsilon=self.settings.epsilon,
                target_delta=self.settings.delta,
                sample_rate=self.rate,
                steps=train.steps,
                accountant=ACCOUNTANT,
                epsilon_tolerance=ERROR * self.settings.epsilon,
                eps_error=ERROR * self.settings.epsilon,
            )
        except (ValueError, RuntimeError) as e:
            raise ConfigError(
                f"train.privacy: no noise was found that keeps {train.steps} steps at a rate of {self.rate:.3g} within epsilon = "
                f"{self.settings.epsilon:g}, delta = {self.settings.delta:g} ({e}). Use fewer train.steps or a larger epsilon."
            ) from e

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
        if not self.steps:
            return 0.0
        return float(self.accountant.get_epsilon(self.settings.delta, eps_error=ERROR * self.settings.epsilon))

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
