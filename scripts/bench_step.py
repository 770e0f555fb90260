"""One network evaluation and one training step against MONAI's DiffusionModelUNet with the same weights.

    python scripts/bench_step.py [--quick] [--json FILE] [--device cuda] [--scale 2]

2D: 8 x 1 x 64 x 64; 3D: 2 x 1 x 32 x 32 x 32; --scale multiplies the edges. Contenders take turns; ratios are of medians of the same
run, greater is better. MONAI runs as its users run it, in fp32 and under bf16 autocast, with AdamW as it comes; ours with the
fused one, as our trainer. `error_*` is the relative L2 distance to MONAI's fp32 output; on CUDA fp32 has torch's defaults, TF32 in
convolutions. Ratios without 2d or 3d in their name are the smaller of the two. A CPU without fast bf16 is measured in fp32 alone.
`*_MiB`, on CUDA: the most that tensors of one act took, weights and optimizers of all contenders not counted.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement, product

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from meddiff.engines.trainer import computes_bf16
from meddiff.networks.monai_weights import from_monai_weights
from meddiff.networks.unet import UNet


@dataclass(frozen=True)
class Case:
    """A network and what it is shown."""

    dims: int
    size: tuple[int, ...]  # (B, 1, *spatial)
    channels: tuple[int, ...]
    attention: tuple[bool, ...]


CASES = {
    "2d": Case(2, (8, 1, 64, 64), (64, 128, 256), (False, False, True)),
    "3d": Case(3, (2, 1, 32, 32, 32), (64, 128, 128), (False, False, True)),
}
HEAD = 64  # channels of an attention head


def networks(case: Case) -> tuple[nn.Module, UNet]:
    """MONAI's network with random weights, none of them 0 as at the start of training, and ours with the same."""
    torch.manual_seed(0)
    monai = DiffusionModelUNet(
        spatial_dims=case.dims,
        in_channels=1,
        out_channels=1,
        num_res_blocks=2,
        channels=case.channels,
        attention_levels=case.attention,
        norm_num_groups=32,
        num_head_channels=HEAD,
    )
    for parameter in monai.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    ours = UNet(
        spatial_dims=case.dims,
        in_channels=1,
        out_channels=1,
        channels=case.channels,
        attention=case.attention,
        head_channels=HEAD,
        norm_groups=32,
        middle_attention=True,
        plain=True,
    )
    return monai, from_monai_weights(ours, monai.state_dict())


def autocast(device: torch.device, bf16: bool) -> AbstractContextManager:
    return torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else nullcontext()


def last(net: nn.Module, dims: int) -> nn.Module:
    """The network with the channels of its weights side by side, as `train.channels_last`: faster on a CPU, slower on CUDA."""
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    return net.to(memory_format=layout)  # type: ignore[call-overload,no-any-return]


def inference(net: nn.Module, x: Tensor, t: Tensor, bf16: bool) -> Callable[[], Tensor]:
    def act() -> Tensor:
        with torch.no_grad(), autocast(x.device, bf16):
            return net(x, t)

    return act


def training(net: nn.Module, x: Tensor, t: Tensor, bf16: bool, fused: bool = False) -> Callable[[], Tensor]:
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=fused)
    target = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.device)

    def act() -> Tensor:
        with autocast(x.device, bf16):
            out = net(x, t)
        loss = (out.float() - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return act


def wait(device: torch.device) -> None:
    """A GPU is handed its work and goes on by itself."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def medians(contenders: dict[str, Callable[[], Tensor]], rounds: int, device: torch.device) -> dict[str, float]:
    """Milliseconds, the contenders taking turns, and on CUDA MiB; a first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    memory: dict[str, float] = {}
    for _ in range(rounds + 1):
        for name, act in contenders.items():
            before = 0
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
                before = torch.cuda.memory_allocated(device)
            wait(device)
            began = time.perf_counter()
            act()
            wait(device)
            times[name].append((time.perf_counter() - began) * 1e3)
            if device.type == "cuda":
                memory[f"{name}_MiB"] = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    return {f"{name}_ms": statistics.median(values[1:]) for name, values in times.items()} | memory


def bench(name: str, case: Case, rounds: int, device: torch.device) -> dict[str, float]:
    """Times, ratios and errors of one case."""
    x = torch.randn(case.size, generator=torch.Generator().manual_seed(0)).to(device)
    t = torch.full((len(x),), 500.0, device=device)
    monai, ours = (net.to(device) for net in networks(case))
    if device.type == "cpu":
        last(ours, case.dims)
    kinds = ("fp32", "bf16") if device.type == "cuda" or computes_bf16() else ("fp32",)
    nets = {"monai": monai, "meddiff": ours}
    work = {f"{who}_{kind}": inference(nets[who], x, t, kind == "bf16") for who in nets for kind in kinds}
    truth = work["monai_fp32"]()
    answers = {kind: f"meddiff_{kind}" for kind in kinds} | {f"monai_{kind}": f"monai_{kind}" for kind in kinds[1:]}
    errors = {k: float((work[who]().float() - truth).norm() / truth.norm()) for k, who in answers.items()}
    result = {f"{name}_inference_{k}": v for k, v in medians(work, rounds, device).items()}
    steps = {
        f"{who}_{kind}": training(nets[who], x, t, kind == "bf16", fused=who == "meddiff")
        for who in nets
        for kind in kinds
    }
    result |= {f"{name}_training_{k}": v for k, v in medians(steps, rounds, device).items()}
    for act, (own, other) in product(("inference", "training"), combinations_with_replacement(kinds[::-1], 2)):
        mine, theirs = (result[f"{name}_{act}_{who}_ms"] for who in (f"meddiff_{own}", f"monai_{other}"))
        result[f"{name}_{act}_{own}_vs_monai_{other}"] = theirs / mine
    return result | {f"{name}_error_{k}": v for k, v in errors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 9")
    parser.add_argument("--json", help="write the medians here")
    parser.add_argument("--device", default="cpu", help="cuda, mps or cpu")
    parser.add_argument("--scale", type=int, default=1, help="so many times the edges of the images")
    options = parser.parse_args()
    result: dict[str, float] = {}
    for name, case in CASES.items():
        case = replace(case, size=(*case.size[:2], *(options.scale * n for n in case.size[2:])))
        result |= bench(name, case, 3 if options.quick else 9, torch.device(options.device))
    for key in [key.removeprefix("2d_") for key in result if key.startswith("2d_") and "_vs_" in key]:
        result[key] = min(result[f"{name}_{key}"] for name in CASES)
    for key, value in result.items():
        print(f"{key:44} {value:10.2f}" if value > 0.01 else f"{key:44} {value:10.1e}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
