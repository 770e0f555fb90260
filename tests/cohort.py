"""A small phantom cohort, its manifest and a config, for tests of everything above the data."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from meddiff.config import Config
from meddiff.config_file import parse_config
from meddiff.data.scan import scan, write_scan
from meddiff.imaging.phantom import write_cohort

KEY = b"a key for tests only"
SMALL_AUDIT = {  # the section `audit` for a handful of patients; its verdicts mean nothing
    "synthetic": 6,
    "held_out": 1,
    "false_positives": 0.5,
    "plants": 20,
    "detector_steps": 2,
    "detector_batch": 4,
}


@cache
def cohort(format: str = "nifti", patients: int = 8, size: int = 24) -> Path:
    """The manifest of a cohort that is made once a test session."""
    folder = Path(mkdtemp(prefix="meddiff-cohort-"))
    write_cohort(folder / "data", patients, format=format, size=size)
    cases, refused = scan([folder / "data"], split=(0.5, 0.25, 0.25), key=KEY, root=folder)
    write_scan(folder / "m.jsonl", cases, refused)
    return folder / "m.jsonl"


def tree(manifest: Path, cache: Path, dims: int = 2, **train) -> dict:
    """A config of a network that is trained in seconds."""
    return {
        "task": "synthesis",
        "data": {
            "manifest": str(manifest),
            "spacing_mm": [15] * dims if dims == 2 else [15, 15, 15],
            "size": [16] * dims,
            "intensity": {"kind": "window", "low": -200, "high": 400},
            "cache": str(cache),
        },
        "network": {"spatial_dims": dims, "channels": [8, 16], "blocks": 1},
        "train": {
            "steps": 6,
            "batch": 4,
            "checkpoint_every": 2,
            "validate_every": 3,
            "preview_every": 6,
            "warmup": 2,
            **train,
        },
        "sample": {"steps": 5, "batch": 4},
        "evaluate": {"n": 12, "projections": 50, "encoder_steps": 4, "draws": 4},
    }


def config(manifest: Path, cache: Path, dims: int = 2, **train) -> Config:
    """`tree`, parsed."""
    return parse_config(tree(manifest, cache, dims, **train), "test")


def conditioned(cache: Path, *, dims: int = 2, train: dict | None = None, **settings) -> Config:
    """A config of synthesis with a condition; `settings` that are no part of it go to `data`."""
    parts = {
        name: settings.pop(name) for name in ("classes", "covariates", "mask", "image", "drop") if name in settings
    }
    whole = tree(cohort(), cache, dims, **(train or {}))
    return parse_config({**whole, "condition": parts, "data": {**whole["data"], **settings}}, "test")
