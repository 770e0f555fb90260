"""Is what was asked for in the samples? Three questions to a run of `configs/synthesis_2d_ct_labels.yaml`, or one like it.

    python scripts/check_conditional.py RUN -o DIR [--lesions 200] [--pairs 512] [--guidance 2] [--steps 400]

1. Lesions: a small DenseNet, trained on the real training slices to tell whether the label of the run's classes is to be seen,
   with a threshold chosen on the split val, judges samples of either class; beside it, how it does on the real split test.
2. Intensities: the mean of every label's voxels in the drawn pairs and in the real training slices, in the scan's unit.
3. Use: a direct segmentation U-Net trained on the real training slices and one trained on the drawn pairs, equally long; Dice
   of both on the scans of the split test.

A run without label maps answers the first question only. Everything lies in DIR; what is there is taken up again.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks.nets import DenseNet
from torch import Tensor, nn

from meddiff.config import Config
from meddiff.config_file import parse_config
from meddiff.data.conditions import images_of
from meddiff.data.loader import fixed
from meddiff.data.manifest import Manifest, load_image, load_label
from meddiff.data.transforms import AXES
from meddiff.engines.asked import Asked
from meddiff.engines.card import Card, build_task
from meddiff.engines.fit import fit
from meddiff.engines.run import Run
from meddiff.engines.segment import segment
from meddiff.engines.sets import write_niftis
from meddiff.engines.synthetic import sample_set
from meddiff.metrics.calibration import auroc
from meddiff.metrics.overlap import dice_per_label
from meddiff.seeds import derive, generator

EVERYTHING = 10**6
CPU = torch.device("cpu")


def say(what: str) -> None:
    """Where it is, on stderr."""
    print(what, file=sys.stderr)


def slices(config: Config, card: Card, manifest: Manifest, split: str) -> dict[str, Tensor]:
    """All slices of a split with their labels (n, 1, *size) and whether they show the label of the run's classes (n,)."""
    images = images_of(config, card.known, manifest, manifest.split(split))
    batch = fixed(images, EVERYTHING)
    return {**batch, "class": build_task(config, card.known).classes(batch)}


def judge(train: dict[str, Tensor], val: dict[str, Tensor], steps: int, batch: int = 64) -> tuple[nn.Module, float]:
    """A classifier of slices, and the threshold with the best mean of sensitivity and specificity on `val`."""
    torch.manual_seed(derive(0, "judge"))
    model = DenseNet(2, 1, 1, init_features=16, growth_rate=12, block_config=(2, 3, 3))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    of = [torch.nonzero(train["class"] == c)[:, 0] for c in (0, 1)]
    model.train()
    say("Training the judge")
    for step in range(steps):
        random = generator(0, "judge", step)
        rows = torch.cat([rows[torch.randint(len(rows), (batch // 2,), generator=random)] for rows in of])
        x = train["image"][rows]
        flip = torch.rand(batch, generator=random) < 0.5
        x = torch.where(flip.view(-1, 1, 1, 1), x.flip(2), x)
        shift = torch.randint(-3, 4, (2,), generator=random).tolist()
        x = x.roll(shift, (2, 3)) + 0.02 * torch.randn(x.shape, generator=random)
        loss = nn.functional.binary_cross_entropy_with_logits(model(x)[:, 0], train["class"][rows].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    score, truth = said(model, val["image"]), val["class"] == 1
    choices = score.unique()
    worth = [((score[truth] >= t).float().mean() + (score[~truth] < t).float().mean()).item() for t in choices]
    return model, float(choices[int(np.argmax(worth))])


@torch.no_grad()
def said(model: nn.Module, images: Tensor) -> Tensor:
    """The logit of every image, (n,)."""
    return torch.cat([model(part)[:, 0] for part in images.split(256)])


def drawn(run: Run, config: Config, n: int, folder: Path, classes: tuple[str, ...]) -> Manifest:
    """Samples of the run, in turn of the classes."""
    model, card = run.load_model(CPU)
    say(f"Drawing {n} samples of {' and '.join(classes)}")
    return sample_set(model, card, config, n, folder, 0, write_niftis, Asked(classes))


def in_model_units(manifest: Manifest, card: Card, axis: str) -> Tensor:
    """The images of a set of slices, (n, 1, *size)."""
    arrays = [load_image(manifest, case).array.squeeze(AXES[axis]) for case in manifest.cases]
    return torch.from_numpy(np.stack(arrays))[:, None] * card.space.scale + card.space.offset


def lesions(run: Run, card: Card, config: Config, folder: Path, n: int, steps: int) -> dict[str, float]:
    """How many samples of either class the judge finds to be of it, and how often it is right on real slices."""
    manifest = run.manifest()
    train, val, test = (slices(config, card, manifest, split) for split in ("train", "val", "test"))
    for name, part in (("train", train), ("val", val), ("test", test)):
        if len(part["class"].unique()) < 2:
            raise SystemExit(
                f"The split {name} has slices of one class only: there is nothing to judge by. Use more patients."
            )
    model, threshold = judge(train, val, steps)
    score, truth = said(model, test["image"]), test["class"] == 1
    result = {
        "judge_auroc_real": auroc(score.numpy(), truth.numpy()),
        "judge_sensitivity_real": (score[truth] >= threshold).float().mean().item(),
        "judge_specificity_real": (score[~truth] < threshold).float().mean().item(),
        "real_test_slices": len(score),
    }
    absent, present = card.classes
    for name, there in ((present, True), (absent, False)):
        made = drawn(run, config, n, folder / ("present" if there else "absent"), (name,))
        found = said(model, in_model_units(made, card, config.data.axis)) >= threshold
        result["asked_and_found" if there else "not_asked_and_not_found"] = (found == there).float().mean().item()
    return result


def tissues(real: dict[str, Tensor], pairs: Manifest, card: Card, config: Config) -> dict[str, tuple[float, float]]:
    """Mean value of every label's voxels in the scan's unit: (real, drawn)."""
    image = (real["image"] - card.space.offset) / card.space.scale
    maps = torch.from_numpy(
        np.stack([load_label(pairs, case).array.squeeze(AXES[config.data.axis]) for case in pairs.cases])
    )
    values = (in_model_units(pairs, card, config.data.axis)[:, 0] - card.space.offset) / card.space.scale
    return {
        name: (image[real["label"] == k].mean().item(), values[maps == number].mean().item())
        for k, (name, number) in enumerate(card.labels.items(), 1)
    }


def learnt(config: Config, data: Path, run: Path, steps: int, scans: Manifest) -> dict[str, float]:
    """Dice of a direct segmentation that learns from the manifest `data`, mean over the scans of the split test."""
    tree: dict[str, Any] = config.model_dump(mode="json")
    tree |= {"task": "segmentation", "condition": {}, "sample": {"steps": 1}}
    tree["data"] |= {"manifest": str(data), "paired": False}
    tree["network"] |= {"channels": [32, 48, 64], "attention": None}
    tree["diffusion"] = {"process": "direct"}
    tree["train"] = {"steps": steps, "batch": 16, "lr": 1e-3, "precision": "bf16", "checkpoint_every": steps}
    tree["train"] |= {"validate_every": steps, "preview_every": steps}
    settings = parse_config(tree, "segmentation")
    trained = Run(run)
    if not trained.card_path.exists():
        say(f"Learning to segment from {data}")
        shutil.rmtree(run, ignore_errors=True)  # of a run that was cut short
        fit(settings, run)
    model, card = trained.load_model(CPU)
    rows = []
    for case in scans.split("test"):
        result = segment(model, settings, card, load_image(scans, case), case.case, 0)
        rows.append(dice_per_label(result.label.array, load_label(scans, case).array, card.labels))
    return {name.removeprefix("dice/"): float(np.mean([row[name] for row in rows])) for name in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--lesions", type=int, default=200, help="samples of each class for the judge (default: 200)")
    parser.add_argument("--pairs", type=int, default=512, help="pairs to learn segmentation from (default: 512)")
    parser.add_argument("--guidance", type=float, default=1.0, help="of the samples (default: 1)")
    parser.add_argument("--steps", type=int, default=400, help="of the judge and of each segmentation (default: 400)")
    options = parser.parse_args()
    run = Run.open(options.run)
    card = Card.read(run.card_path)
    tree = run.config().model_dump(mode="json")
    tree["sample"]["guidance"] = options.guidance
    config = parse_config(tree, str(options.run))
    folder, result = options.output, {"guidance": options.guidance}
    result |= lesions(run, card, config, folder, options.lesions, options.steps)
    print(f"Judged by a classifier of real slices (real test: AUROC {result['judge_auroc_real']:.3f}, sensitivity "
          f"{result['judge_sensitivity_real']:.3f}, specificity {result['judge_specificity_real']:.3f}, "
          f"{result['real_test_slices']} slices):")  # fmt: skip
    print(f"  {card.classes[1]!r} asked for and found in {result['asked_and_found']:.1%} of {options.lesions}, "
          f"{card.classes[0]!r} in {result['not_asked_and_not_found']:.1%}")  # fmt: skip
    if config.data.paired:
        pairs = drawn(run, config, options.pairs, folder / "pairs", card.classes)
        print(f"Mean {card.space.unit} of each label, real and drawn:")
        for name, (real, synthetic) in tissues(
            slices(config, card, run.manifest(), "train"), pairs, card, config
        ).items():
            print(f"  {name:14} {real:8.1f} {synthetic:8.1f}   difference {synthetic - real:+.1f}")
            result[f"value/{name}"], result[f"value_drawn/{name}"] = real, synthetic
        scans = run.manifest()
        real = learnt(config, run.manifest_path, folder / "learnt_real", options.steps, scans)
        ours = learnt(config, folder / "pairs" / "manifest.jsonl", folder / "learnt_drawn", options.steps, scans)
        print(f"Dice on {len(scans.split('test'))} real test scans, learnt from real slices and from drawn pairs:")
        for name in real:
            print(f"  {name:14} {real[name]:8.4f} {ours[name]:8.4f}")
        means = [float(np.mean(list(d.values()))) for d in (real, ours)]
        print(f"  {'mean':14} {means[0]:8.4f} {means[1]:8.4f}   ratio {means[1] / means[0]:.3f}")
        result |= {"dice_real": means[0], "dice_drawn": means[1], "ratio": means[1] / means[0]}
    (folder / "check.json").write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
