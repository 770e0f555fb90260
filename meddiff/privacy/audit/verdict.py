"""The verdict, by limits that were fixed before."""

from collections.abc import Mapping
from typing import Literal

from meddiff.audit_config import AuditConfig
from meddiff.privacy.audit.statistics import LEVEL, Attack, Rate

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]


def judge(
    gate: Mapping[str, Rate],  # planted copies found, by change
    copies: Rate,  # of the synthetic images
    excess_p: float,  # of so many by chance, that of the threshold included
    membership: Mapping[str, Attack],
    settings: AuditConfig,
) -> tuple[Verdict, list[str]]:
    """FAIL where a limit is surely passed, PASS where everything is surely within and the gate held, else INCONCLUSIVE.

    A failed gate does not save a set that has copies: what a weak detector finds at its own false-positive rate is there.
    """
    s = settings
    failed, open_ = [], []
    blind = [f"{name} {rate.value:.2f}" for name, rate in gate.items() if rate.value < s.recall]
    if blind:
        open_.append(f"the detector misses planted copies (found, of 1: {', '.join(blind)}; needed {s.recall:.2f})")
    if copies.low > s.copies_fail and excess_p <= (1 - LEVEL) / 2:
        failed.append(f"the copy rate is surely above {s.copies_fail:.1%}: at least {copies.low:.2%}")
    elif copies.high > s.copies_pass:
        open_.append(f"the copy rate may be {copies.high:.2%}, at most {s.copies_pass:.1%} is allowed")
    for name, one in membership.items():
        where = f"at {s.false_positives:.0%} false positives"
        if one.tpr_low > s.membership_fail:
            failed.append(f"the attack {name} finds at least {one.tpr_low:.1%} of the training patients {where}")
        elif one.tpr_high > s.membership_pass:
            open_.append(
                f"the attack {name} may find {one.tpr_high:.1%} of the training patients {where}, at most "
                f"{s.membership_pass:.1%} is allowed"
            )
    if failed:
        return "FAIL", [*failed, *open_]
    return ("INCONCLUSIVE", open_) if open_ else ("PASS", ["every figure is surely within its limit"])
