"""Peak memory of one 3D training step at 64 x 64 x 64, with and without gradient checkpointing, each in a process of its own.

python scripts/bench_memory.py [--quick] [--json FILE]
"""

import argparse
import json
import resource
import subprocess
import sys


def step(checkpointing: bool, size: int) -> float:
    """Peak resident memory of this process in GiB after one step."""
    import torch

    from meddiff.diffusion.denoiser import Preconditioned
    from meddiff.diffusion.losses import denoising_loss
    from meddiff.networks.unet import UNet

    net = UNet(
        spatial_dims=3, in_channels=1, out_channels=1, channels=(32, 64, 128), blocks=2, checkpointing=checkpointing
    )
    model = Preconditioned(net)
    optimizer = torch.optim.AdamW(model.parameters())
    x0 = torch.randn(1, 1, size, size, size)
    denoising_loss(model, x0, torch.randn_like(x0), torch.ones(1)).mean().backward()
    optimizer.step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="32 x 32 x 32")
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--step", choices=("plain", "checkpointing"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = 32 if options.quick else 64
    if options.step:
        print(step(options.step == "checkpointing", size))
        return
    result = {}
    for kind in ("plain", "checkpointing"):
        command = [sys.executable, __file__, "--step", kind, *(["--quick"] if options.quick else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        result[f"{kind}_gib"] = round(float(done.stdout.split()[-1]), 2)
        print(f"{kind:14} {result[f'{kind}_gib']:6.2f} GiB")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
