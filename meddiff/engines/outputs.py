"""Results of a scan as files: NIfTI on the scan's own grid, DICOM that refers to its source, and a JSON sidecar."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from meddiff.config import Config
from meddiff.data.files import digest_file
from meddiff.data.inputs import Scan
from meddiff.engines.card import Card, versions
from meddiff.engines.checkpoint import write_atomic
from meddiff.engines.restore import Clean
from meddiff.engines.segment import Segmented
from meddiff.errors import DicomError, RunError
from meddiff.imaging.dicom_derived import write_derived
from meddiff.imaging.dicom_seg import write_seg
from meddiff.imaging.nifti import write_nifti, write_nifti_channels
from meddiff.imaging.volume import Volume


def check_format(scan: Scan, format: str) -> None:
    """DicomError where DICOM SEG alone is asked for and the scan is no DICOM series."""
    if format == "seg" and not scan.series:
        raise DicomError("DICOM SEG refers to DICOM images, and this scan is NIfTI. Use --format nifti.")


def write_segmented(
    folder: Path, scan: Scan, result: Segmented, volume: Volume, card: Card, config: Config, seed: int, format: str
) -> None:
    """CASE_label, CASE_probability and CASE_entropy as NIfTI, CASE_seg.dcm, CASE.json, in `format` nifti, seg or both.

    DicomError as in `check_format`; RunError where the folder cannot be written.
    """
    check_format(scan, format)
    stem = _stem(folder, scan)
    files = []
    if format != "seg":
        label, probability, entropy = (stem(f"_{what}.nii.gz") for what in ("label", "probability", "entropy"))
        write_nifti(label, result.label)
        write_nifti_channels(probability, result.probability, volume.geometry)
        write_nifti(entropy, Volume(result.entropy, volume.geometry, "OT", "share of ln K"))
        files += [label, probability, entropy]
    if format != "nifti" and scan.series:
        names = {number: name for name, number in card.labels.items()}
        made_by = {"weights": card.weights[:16], "seed": str(seed), "samples": str(result.ensemble.samples)}
        files.append(write_seg(stem("_seg.dcm"), result.label, names, scan.paths, parameters=made_by))
    facts = {
        "labels": card.labels,
        "volumes_ml": result.volumes(),
        "samples": result.ensemble.samples,
        "within_tolerance": result.ensemble.enough,
    }
    _sidecar(stem(".json"), scan, card, config, seed, facts, [file.name for file in files])


def write_restored(
    folder: Path,
    scan: Scan,
    result: Clean,
    card: Card,
    config: Config,
    seed: int,
    estimate: str,
    format: str,
    mask: Path | None = None,  # of what was filled in
) -> None:
    """CASE_restored as NIfTI or as the derived series CASE_restored/, CASE_std as NIfTI, and CASE.json.

    DicomError where dicom is asked for and the scan is no DICOM series; RunError where the folder cannot be written.
    """
    if format == "dicom" and not scan.series:
        raise DicomError("A derived DICOM series refers to DICOM images, and this scan is NIfTI. Use --format nifti.")
    stem = _stem(folder, scan)
    undone = config.data.degradation.kind if config.data.degradation else "mask" if mask else "white noise"
    if format == "dicom":
        series = stem("_restored")
        _whole(
            series,
            lambda partial: write_derived(
                partial,
                result.image,
                scan.paths,
                series_description=f"Restored ({undone}), meddiff"[:64],
                derivation=f"meddiff, posterior {estimate}, weights {card.weights[:16]}, seed {seed}",
            ),
        )
        files = [series.name]
    else:
        write_nifti(stem("_restored.nii.gz"), result.image)
        files = [stem("_restored.nii.gz").name]
    if result.std is not None:
        write_nifti(stem("_std.nii.gz"), result.std)
        files.append(stem("_std.nii.gz").name)
    settings = config.data.degradation
    facts = {
        "estimate": estimate,
        "undone": undone,
        "trained_for": settings.model_dump(mode="json") if settings else "clean images",
        "mask_sha256": digest_file(mask) if mask else None,
        "sigma": result.sigma,
        "unit": result.image.unit,
    }
    _sidecar(stem(".json"), scan, card, config, seed, facts, files)


def _stem(folder: Path, scan: Scan) -> Callable[[str], Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be made ({error}). Choose a folder that you may write with -o.") from error
    return lambda suffix: folder / f"{scan.name}{suffix}"


def _whole(folder: Path, write: Callable[[Path], Any]) -> None:
    """A folder of files under its final name only when all are there; the former one is replaced."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sidecar(
    path: Path, scan: Scan, card: Card, config: Config, seed: int, facts: Mapping[str, Any], files: list[str]
) -> None:
    record = {
        "case": scan.name,
        "input_sha256": scan.sha256,
        "files": files,
        **facts,
        "weights": card.weights,
        "step": card.step,
        "seed": seed,
        "process": config.diffusion.process,
        "sample": config.sample.model_dump(mode="json", exclude={"batch"}),
        "versions": versions(),
    }
    write_atomic(path, json.dumps(record, indent=2, default=_plain).encode())


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value)} is not JSON")
