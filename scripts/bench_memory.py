"""Peak memory of one training step at 1 x 1 x 64 x 64 x 64 against MONAI's DiffusionModelUNet with the same weights.

    python scripts/bench_memory.py [--quick] [--json FILE]

Each contender has a process of its own. Memory is what the process took at most beyond what it held after its imports: weights,
gradients, the optimiser's state, activations. Smaller is better. A CPU without fast bf16 is measured in fp32 alone.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

CONTENDERS = {
    "monai_fp32": {},
    "monai_bf16": {"bf16": True},
    "meddiff_fp32": {},
    "meddiff_fp32_checkpointing": {"checkpointing": True},
    "meddiff_bf16": {"bf16": True},
    "meddiff_bf16_checkpointing": {"bf16": True, "checkpointing": True},
}
CHANNELS, HEAD = (32, 64, 128), 32


def resident_mib() -> float:
    """What this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def step(name: str, size: int) -> float:
    """MiB that one training step took at most, in this process."""
    import torch
    from monai.networks.nets import DiffusionModelUNet

    from meddiff.networks.monai_weights import from_monai_weights
    from meddiff.networks.unet import UNet

    torch.manual_seed(0)
    settings = CONTENDERS[name]
    before = resident_mib()
    attention = (False, False, True)
    net: torch.nn.Module = DiffusionModelUNet(
        spatial_dims=3, in_channels=1, out_channels=1, channels=CHANNELS, attention_levels=attention, num_res_blocks=2,
        num_head_channels=HEAD, norm_num_groups=32,
    )  # fmt: skip
    if name.startswith("meddiff"):
        ours = UNet(
            spatial_dims=3, in_channels=1, out_channels=1, channels=CHANNELS, attention=attention, head_channels=HEAD,
            norm_groups=32, middle_attention=True, plain=True, checkpointing=settings.get("checkpointing", False),
        )  # fmt: skip
        net = from_monai_weights(ours, net.state_dict()).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), fused=name.startswith("meddiff"))
    x = torch.randn(1, 1, size, size, size)
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.get("bf16", False)):
        out = net(x, torch.tensor([500.0]))
    (out.float() - x).square().mean().backward()
    optimizer.step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="32 x 32 x 32")
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--step", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = 32 if options.quick else 64
    if options.step:
        print(step(options.step, size))
        return
    from meddiff.engines.trainer import computes_bf16

    result: dict[str, float] = {}
    for name in (name for name, settings in CONTENDERS.items() if computes_bf16() or not settings.get("bf16")):
        command = [sys.executable, __file__, "--step", name, *(["--quick"] if options.quick else [])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        mib = float(done.stdout.split()[-1])
        result[f"{name}_mib"] = round(mib)
        result[f"{name}_vs_monai_fp32"] = round(mib / result["monai_fp32_mib"], 2)
        print(f"{name:28} {mib:8.0f} MiB {result[f'{name}_vs_monai_fp32']:6.2f}", flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
