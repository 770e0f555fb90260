"""What samples are asked for: the same for every sample of a set, or in turn; a function of the sample's number alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from meddiff.config import Config
from meddiff.data.conditions import Known, scaled
from meddiff.data.givens import Given, Givens
from meddiff.diffusion.denoiser import Condition
from meddiff.errors import ConfigError
from meddiff.seeds import generator
from meddiff.tasks.synthesis import NO_CLASS, Synthesis


@dataclass(frozen=True)
class Asked:
    """A request to a model of synthesis."""

    classes: tuple[str, ...] = ()  # in turn; none: whatever class
    covariates: Mapping[str, float] = field(default_factory=dict)  # those that are not named are left open
    givens: Givens | None = None  # in a random order of the seed's, again from the start when all were used

    def check(self, config: Config, task: Synthesis) -> None:
        """ConfigError where the model cannot be asked for this, or not for less."""
        known, given = task.known, config.condition
        for name in self.classes:
            if name not in known.classes:
                can = f"choose one of {', '.join(known.classes)}" if known.classes else "this run has no classes"
                raise ConfigError(f"--class: the class {name!r} is unknown; {can}.")
        for name in self.covariates:
            if name not in known.covariates:
                can = f"known are {', '.join(known.covariates)}" if known.covariates else "this run has none"
                raise ConfigError(f"--covariate: {name!r} is unknown; {can}.")
        wanted = given.mask or given.image is not None
        if wanted and self.givens is None:
            what = "a label map" if given.mask else f"an image of {given.image and given.image.modality}"
            raise ConfigError(f"This run draws an image for {what}: give a manifest or a NIfTI file with --given.")
        if self.givens is not None and not wanted:
            raise ConfigError("--given: this run is given neither a label map nor an image; leave it out.")
        left_open = (known.classes and not self.classes) or set(known.covariates) - set(self.covariates)
        if left_open and not given.drop and self.givens is None:
            raise ConfigError(
                "This run was trained with condition.drop = 0 and must be told everything: "
                f"--class ({', '.join(known.classes) or 'none'}), --covariate ({', '.join(known.covariates) or 'none'})."
            )
        if config.sample.guidance != 1 and (not given.drop or not (self.classes or self.covariates or self.givens)):
            raise ConfigError(
                f"--guidance {config.sample.guidance:g} needs something to be guided to (--class, --covariate or --given), "
                "and a run trained with condition.drop above 0."
            )

    def of(self, number: int, seed: int) -> tuple[dict[str, Any], Given | None]:
        """What sample `number` is asked for, for its sidecar, and what it is given."""
        record: dict[str, Any] = {}
        if self.classes:
            record["class"] = self.classes[number % len(self.classes)]
        if self.covariates:
            record["covariates"] = dict(self.covariates)
        if self.givens is None:
            return record, None
        turn, place = divmod(number, len(self.givens))
        order = torch.randperm(len(self.givens), generator=generator(seed, "given", turn))
        given = self.givens[int(order[place])]
        return {**record, "given": given.record}, given

    def condition(self, task: Synthesis, asked: Sequence[tuple[dict[str, Any], Given | None]]) -> Condition | None:
        """The condition of some samples, a row each."""
        known, batch = task.known, {}
        # a case that is given has a class of its own
        own = [{} if given is None else given.values for _, given in asked]
        if known.classes:
            batch["class"] = torch.stack(
                [self._class(known, record, values) for (record, _), values in zip(asked, own, strict=True)]
            )
        if known.covariates:
            told = scaled(known, self.covariates)
            batch["covariates"] = torch.stack([told.where(~told.isnan(), v.get("covariates", told)) for v in own])
        for name in ("label", "given"):
            if all(name in values for values in own):
                batch[name] = torch.stack([values[name] for values in own])
        return task.condition(batch)

    def _class(self, known: Known, record: Mapping[str, Any], values: Mapping[str, Tensor]) -> Tensor:
        if "class" in record:
            return torch.tensor(known.classes.index(record["class"]))
        return values.get("class", torch.tensor(NO_CLASS))


def numbers(options: Sequence[str]) -> dict[str, float]:
    """Covariates from NAME=NUMBER; ConfigError for anything else."""
    values = {}
    for option in options:
        name, _, text = option.partition("=")
        try:
            values[name] = float(text)
        except ValueError:
            raise ConfigError(f"--covariate {option!r}: give NAME=NUMBER, for instance age=61.") from None
    return values
