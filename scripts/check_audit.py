"""Does the privacy audit tell a model that copies its patients from one that does not? Four audits with known answers.

    python scripts/check_audit.py --folder /tmp/check_audit

1. A model of 24 training images, trained until it copies them:        FAIL, copy rate above 0.5, TPR@1%FPR surely above 0.5
2. The same network on 512 training images:                            not FAIL
3. The samples of 2 with 27 planted copies in 1,000 (combined change): caught with p < 0.01
4. The set of 2, and a detector that sees nothing:                     INCONCLUSIVE, never PASS

The images are MR slices of computed heads, one a patient; 300 patients are held out. Minutes on two CPU cores, most of them for
the audits. Exit code 1 where an answer is wrong.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from meddiff.config import Config
from meddiff.config_file import parse_config
from meddiff.data.files import digest_file
from meddiff.data.loader import fixed
from meddiff.data.manifest import Manifest
from meddiff.data.scan import scan
from meddiff.engines.card import Card
from meddiff.engines.fit import fit, prepare
from meddiff.engines.run import Run
from meddiff.engines.sets import write_niftis
from meddiff.engines.synthetic import sample_set
from meddiff.imaging.nifti import write_nifti
from meddiff.imaging.phantom import phantom_slice
from meddiff.privacy.audit.changes import changes
from meddiff.privacy.audit.scores import Detector
from meddiff.report.audit_run import audit_run
from meddiff.seeds import generator
from meddiff.tasks.synthesis import Synthesis

HELD_OUT, SAMPLES, PLANTED = 300, 1000, 27
CPU = torch.device("cpu")


def cohort(folder: Path, size: int) -> Manifest:
    """The manifest of one slice a patient, none of which is in a split yet."""
    data = folder / "data"
    for i in track(range(1, HELD_OUT + 512 + 1), "Heads"):
        path = data / f"head{i:04d}_t1.nii.gz"
        if not path.exists():
            write_nifti(path, phantom_slice(i, modality="mr", size=size).image)
    cases, _ = scan([data], key=b"a key for computed heads only", root=folder)
    return Manifest(tuple(cases), folder)


def with_splits(manifest: Manifest, training: int, path: Path) -> Path:
    """The first 300 patients held out, the next ones trained on."""
    held = [case.model_copy(update={"split": "test"}) for case in manifest.cases[:HELD_OUT]]
    trained = [case.model_copy(update={"split": "train"}) for case in manifest.cases[HELD_OUT : HELD_OUT + training]]
    Manifest((*held, *trained), manifest.folder).write(path)
    return path


def settings(manifest: Path, cache: Path, size: int, steps: int) -> Config:
    """A network that is trained in a minute."""
    spacing = 240 / size
    return parse_config(
        {
            "task": "synthesis",
            "data": {
                "manifest": str(manifest),
                "spacing_mm": [spacing, spacing],
                "size": [size, size],
                "intensity": {"kind": "percentile", "low": 0, "high": 99.5},
                "cache": str(cache),
            },
            "network": {"spatial_dims": 2, "channels": [32, 64], "blocks": 1},
            "diffusion": {"training": {"kind": "lognormal", "mean": 0.0, "std": 1.6}},
            "train": {
                "steps": steps,
                "batch": 16,
                "lr": 2e-3,
                "ema": 0.99,
                "preview_every": steps,
                "checkpoint_every": steps,
            },
            "sample": {"steps": 16, "batch": 100, "sigma_max": 20.0},
            "audit": {"detector_steps": 1000},
        },
        "check_audit",
    )


def trained(folder: Path, manifest: Path, size: int, steps: int) -> Run:
    """The run, trained unless it is there, with 1,000 samples."""
    config = settings(manifest, folder.parent / "cache", size, steps)
    card = folder / "model.json"
    if not card.exists() or Card.read(card).step < steps:
        shutil.rmtree(folder, ignore_errors=True)  # of an interrupted try
        fit(config, folder)
    run = Run(folder)
    model, card = run.load_model(CPU)
    sample_set(model, card, config, SAMPLES, folder / "samples", 0, write_niftis)
    return run


def plant(run: Run, folder: Path) -> Path:
    """The run's samples, the first 27 of them replaced by changed training images that pass for samples."""
    config, manifest = run.config(), run.manifest()
    model, card = run.load_model(CPU)
    sample_set(model, card, config, SAMPLES, folder, 0, write_niftis)
    training = fixed(prepare(config, manifest, "train"), 512)["image"]
    g = generator(0, "planted")
    chosen = training[torch.randperm(len(training), generator=g)[:PLANTED]]
    copies = changes(2, 2)["combined"](chosen, g).clamp(-1, 1)
    samples = Manifest.read(folder / "manifest.jsonl")
    cases = list(samples.cases)
    for i, copy in enumerate(copies):
        path = folder / f"{cases[i].case}.nii.gz"
        write_nifti(path, Synthesis(config).outcome(copy, card.space)["image"])
        source = cases[i].image[0].model_copy(update={"sha256": digest_file(path)})
        cases[i] = cases[i].model_copy(update={"image": (source,)})
    Manifest(tuple(cases), samples.folder).write(folder / "manifest.jsonl")
    return folder


def blind(images: Tensor, patients: Sequence[str]) -> Detector:
    """A detector whose answer has nothing to do with the image."""
    g = generator(0, "blind")
    return Detector({"nothing": lambda x: torch.rand(len(x), len(images), generator=g)}, torch.arange(len(images)))


def told(name: str, record: dict[str, Any], began: float) -> dict[str, Any]:
    """Print one line of figures."""
    copies, attacks = record["copies"], record["membership"]
    worst = min(record["gate"]["recall"].items(), key=lambda item: item[1]["rate"])
    print(
        f"{name}: {record['verdict']} in {time.process_time() - began:.0f} s of one core\n"
        f"  copies {copies['count']} of {copies['of']} ({copies['low']:.3f} to {copies['high']:.3f}), p {copies['excess_p']:.2g}, "
        f"permutation p {copies['permutation_p']:.2g}; gate: worst {worst[0]} {worst[1]['rate']:.2f}\n  "
        + "; ".join(
            f"{k}: AUC {a['auc']:.2f}, TPR {a['tpr']:.3f} ({a['tpr_low']:.3f} to {a['tpr_high']:.3f})"
            for k, a in attacks.items()
        ),
        flush=True,
    )
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for everything; what is there is used again")
    parser.add_argument("--size", type=int, default=16, help="voxels an axis (default: 16)")
    parser.add_argument("--steps", type=int, default=1500, help="of training (default: 1500)")
    options = parser.parse_args()
    folder: Path = options.folder
    everyone = cohort(folder, options.size)
    runs = {
        n: trained(folder / f"run_{n}", with_splits(everyone, n, folder / f"{n}.jsonl"), options.size, options.steps)
        for n in (24, 512)
    }
    audits = {
        "1. 24 training images": (runs[24], runs[24].folder / "samples", None),
        "2. 512 training images": (runs[512], runs[512].folder / "samples", None),
        "3. 27 planted copies": (runs[512], folder / "planted", None),
        "4. blind detector": (runs[512], runs[512].folder / "samples", blind),
    }
    if not (folder / "planted").exists():
        plant(runs[512], folder / "planted")
    records = []
    for name, (run, samples, detector) in audits.items():
        began = time.process_time()
        record = audit_run(run, samples, folder / "audits" / name[0], CPU, detector=detector)
        records.append(told(name, record, began))
    few, many, planted, unseeing = records
    answers = {
        "1 is FAIL": few["verdict"] == "FAIL",
        "1 has a copy rate above 0.5": few["copies"]["rate"] > 0.5,
        "1 gives its patients away": max(a["tpr_low"] for a in few["membership"].values()) >= 0.5,
        "2 is not FAIL": many["verdict"] != "FAIL",
        "3 is caught": planted["copies"]["excess_p"] < 0.01,
        "4 is INCONCLUSIVE": unseeing["verdict"] == "INCONCLUSIVE",
    }
    print(json.dumps(answers, indent=2))
    sys.exit(0 if all(answers.values()) else 1)


if __name__ == "__main__":
    main()
