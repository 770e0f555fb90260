"""Does this build keep the epsilon that it claims? One training run on canaries, and on builds that are broken on purpose.

    python scripts/audit_dp.py [--epsilon 3 --delta 1e-5 --steps 10 --batch 100 --canaries 300 --guesses 200] [--json FILE]

Every canary is a patient that the noise has to hide at worst, and is put into the data by the toss of a coin; the weights are asked
for the coins (Steinke, Nasr and Jagielski 2023). Right guesses bound epsilon from below with 95 % confidence: above the claim the
build is broken. Two more builds, one without noise and one without clipping, have to be found out. Exit code 1 unless all is as it
should be. Seconds.
"""

import argparse
import json
import sys
from collections.abc import Callable

import torch
from opacus.optimizers import DPOptimizer

from meddiff.config import TrainConfig
from meddiff.engines.canaries import canary_scores
from meddiff.privacy.one_run import epsilon_bound
from meddiff.privacy_config import PrivacyConfig
from meddiff.seeds import secret


def intact(optimizer: DPOptimizer) -> None:
    pass


def silent(optimizer: DPOptimizer) -> None:
    optimizer.noise_multiplier = 0.0


def unclipped(optimizer: DPOptimizer) -> None:
    optimizer.noise_multiplier *= optimizer.max_grad_norm / 1e9  # the noise stays as it was
    optimizer.max_grad_norm = 1e9


BUILDS: dict[str, Callable[[DPOptimizer], None]] = {
    "as_it_is": intact,
    "without_noise": silent,
    "without_clipping": unclipped,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=100, help="canaries to be expected in a step")
    parser.add_argument("--canaries", type=int, default=300, help="half of them are in the data")
    parser.add_argument("--guesses", type=int, default=200)
    parser.add_argument("--json", help="write the bounds here")
    given = parser.parse_args()
    privacy = PrivacyConfig(epsilon=given.epsilon, delta=given.delta, images_per_patient=1, noise_multiplicity=1)
    train = TrainConfig(steps=given.steps, batch=given.batch, lr=1.0, warmup=0, privacy=privacy)
    coins = torch.rand(given.canaries, generator=secret()) < 0.5
    bounds = {}
    for name, change in BUILDS.items():
        scores = canary_scores(train, coins, change)
        bounds[name] = epsilon_bound(scores.numpy(), coins.numpy(), given.guesses, given.delta)
        print(f"{name:17} epsilon at least {bounds[name]:.3f}, claimed {given.epsilon:g}")
    if given.json:
        with open(given.json, "w") as file:
            json.dump({"claimed": given.epsilon, **bounds}, file, indent=2)
    caught = min(bounds["without_noise"], bounds["without_clipping"]) > given.epsilon
    print("as it should be" if caught and bounds["as_it_is"] <= given.epsilon else "NOT as it should be")
    sys.exit(not (caught and bounds["as_it_is"] <= given.epsilon))


if __name__ == "__main__":
    main()
