"""`meddiff info`: what a path holds."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from meddiff.cli.console import begin
from meddiff.errors import ImageError

if TYPE_CHECKING:
    from meddiff.engines.card import Card


def command(
    path: Annotated[Path, typer.Argument(help="A run, a manifest, a NIfTI file, or a folder of DICOM.")],
) -> None:
    """Say what a path holds: a run, a manifest, a volume, or the series of a folder.

    Example: `meddiff info runs/ct`
    """
    begin(False)
    from rich.console import Console

    out = Console()
    if not path.exists():
        raise ImageError(f"{path}: does not exist. Check the path.")
    if (path / "config.yaml").is_file():
        out.print(_run(path))
    elif path.suffix == ".jsonl":
        out.print(_manifest(path))
    elif path.name.endswith((".nii", ".nii.gz")):
        from meddiff.imaging.nifti import read_nifti

        out.print(_facts(str(path), {"volume": repr(read_nifti(path))}))
    else:
        out.print(_series(path))


def _facts(title: str, facts: dict[str, object]) -> Table:
    table = Table("", "", title=title, show_header=False)
    for name, value in facts.items():
        table.add_row(name, str(value))
    return table


def _run(path: Path) -> Table:
    from meddiff.engines.card import Card, build_model
    from meddiff.engines.run import Run

    run = Run.open(path)
    config, manifest = run.config(), run.manifest()
    facts: dict[str, object] = {
        "task": f"{config.task}, {config.network.spatial_dims}D, {list(config.data.size)} voxels of {list(config.data.spacing_mm)} mm",
        "data": f"{len(manifest.split('train'))} training cases, manifest {manifest.digest[:12]}",
    }
    if run.card_path.exists():
        card = Card.read(run.card_path)
        model = build_model(config, card.sigma_data, tuple(card.labels), card.classes, card.latents)
        facts |= {
            "network": f"{sum(p.numel() for p in model.parameters()):,} parameters, levels {list(config.network.channels)}",
            "trained": f"{card.step} of {config.train.steps} steps, weights {card.weights[:12]}",
            **({"distilled": f"from weights {card.teacher[:12]}"} if card.teacher else {}),
            "units": f"{card.space.modality}, {card.space.unit}; sigma_data {card.sigma_data}",
            **_asked(card),
            **_promised(card),
            "sampler": f"{config.sample.sampler}, {config.sample.steps} evaluations, {config.sample.grid} grid",
        }
    else:
        facts["trained"] = "no weights yet"
    return _facts(str(path), facts)


def _asked(card: "Card") -> dict[str, object]:
    """What can be asked of a model beside an image."""
    known = {"labels": card.labels, "classes": card.classes, "covariates": card.covariates}
    asked: dict[str, object] = {name: ", ".join(values) for name, values in known.items() if values}
    if card.latents:
        latents = card.latents
        asked["latents"] = f"{len(latents.mean)} channels, 1/{latents.factor} of the size along each axis"
    return asked


def _promised(card: "Card") -> dict[str, object]:
    """What a private run promises its patients."""
    if card.privacy is None:
        return {}
    own = card.privacy
    return {
        "privacy": f"epsilon {own.epsilon:.3f}, delta {own.delta:g} for each of {own.patients} patients, spent in {own.steps} steps"
    }


def _manifest(path: Path) -> Table:
    from meddiff.data.manifest import Manifest

    manifest = Manifest.read(path)
    table = Table(
        "split", "cases", "patients", "modality", "layout", "with labels", title=f"{path} ({manifest.digest[:12]})"
    )
    for split in ("train", "val", "test"):
        cases = manifest.split(split)
        kinds = Counter(s.modality for case in cases for s in case.image)
        layouts = sorted({case.layout for case in cases})
        labelled = sum(case.label is not None for case in cases)
        shown = ", ".join(f"{name} {n}" for name, n in kinds.items())
        table.add_row(
            split, str(len(cases)), str(len({c.patient for c in cases})), shown, ", ".join(layouts), str(labelled)
        )
    return table


def _series(path: Path) -> Table:
    from meddiff.imaging.dicom import find_series

    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    series, refused = find_series(files)
    if not series:
        why = f" {refused[0].path.name}: {refused[0].detail}" if refused else ""
        raise ImageError(f"{path}: holds no run, manifest, NIfTI file or DICOM series.{why}")
    table = Table("modality", "unit", "description", "slices", "geometry", title=f"{path}: {len(refused)} other files")
    for one in series:
        table.add_row(one.modality, one.unit, one.description, str(len(one.files)), repr(one.geometry))
    return table
