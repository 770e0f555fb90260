"""What sampling costs besides the network: microseconds per step with a network that does nothing.

    python scripts/bench_sampling.py [--quick] [--json FILE]

Medians over interleaved rounds, beside MONAI's DDIM loop on the same null network and the same size.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from monai.inferers import DiffusionInferer
from monai.networks.schedulers import DDIMScheduler
from torch import Tensor, nn

from meddiff.diffusion.denoiser import Preconditioned
from meddiff.diffusion.samplers import SAMPLERS
from meddiff.diffusion.sigmas import karras

STEPS = 50


class Null(nn.Module):
    """A network that costs nothing: it returns a tensor made beforehand."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.answer = torch.zeros(shape)

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        return self.answer


def microseconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) / STEPS * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", help="write the medians here")
    options = parser.parse_args()
    shape = (8, 1, 64, 64)
    x, sigmas = 80 * torch.randn(shape), karras(STEPS, 0.01, 80.0)
    model = Preconditioned(Null(shape))
    scheduler = DDIMScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(STEPS)
    inferer = DiffusionInferer(scheduler)
    contenders: dict[str, Callable[[], object]] = {
        f"meddiff_{name}_us": lambda name=name: SAMPLERS[name](model, x, sigmas, generators=[torch.Generator()] * 8)
        for name in SAMPLERS
    }
    contenders["monai_ddim_us"] = lambda: inferer.sample(x, model.network, scheduler, verbose=False)
    rounds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(5 if options.quick else 25):
        for name, act in contenders.items():
            rounds[name].append(microseconds(act))
    result = {name: round(statistics.median(values[1:]), 1) for name, values in rounds.items()}
    result["dpmpp_2m_vs_monai_ddim"] = round(result["monai_ddim_us"] / result["meddiff_dpmpp_2m_us"], 2)
    for name, value in result.items():
        print(f"{name:28} {value:8.1f}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
