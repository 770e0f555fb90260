"""The limits of `meddiff audit`, fixed in the config before a run and stored with its verdict."""

import hashlib

from pydantic import Field, model_validator

from meddiff.settings import Settings


class AuditConfig(Settings):
    """What the audit needs, and what it calls a failure. Whoever moves a limit after the run is told so by the audit."""

    synthetic: int = Field(1000, ge=1)  # images of the synthetic set, at least
    held_out: int = Field(300, ge=1)  # patients that the model was not trained on, at least
    false_positives: float = Field(0.01, gt=0, le=0.5)  # share of independent patients that the copy detector may flag
    recall: float = Field(0.95, gt=0, le=1)  # of planted copies, after each change, at least; else INCONCLUSIVE
    plants: int = Field(100, ge=20)  # planted copies of each change
    copies_fail: float = Field(0.01, ge=0, lt=1)  # FAIL where the copy rate is surely above
    copies_pass: float = Field(0.02, gt=0, lt=1)  # PASS needs a copy rate surely not above
    membership_fail: float = Field(0.02, ge=0, lt=1)  # the same for the true-positive rate of the attacks ...
    membership_pass: float = Field(0.03, gt=0, lt=1)  # ... at 1 % false positives
    size: int = Field(64, ge=8)  # voxels an axis that the detector sees at most; half of it in 3D
    detector_steps: int = Field(3000, ge=1)
    detector_batch: int = Field(64, ge=4)
    members: int = Field(1024, ge=2)  # images of each group, at most, that the attacks are tried on
    seed: int = 0

    @model_validator(mode="after")
    def _can_be_judged(self) -> "AuditConfig":
        least = round(1 / self.false_positives) - 1
        if self.held_out < least:
            raise ValueError(
                f"held_out = {self.held_out} patients cannot show a false-positive rate of {self.false_positives:g}; "
                f"{least} can"
            )
        if self.copies_fail > self.copies_pass or self.membership_fail > self.membership_pass:
            raise ValueError("a limit to fail must not be above the limit to pass")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of every setting: what a model's card holds, so that a limit moved after the training shows."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
