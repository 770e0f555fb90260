"""What is given to a trained model: NIfTI files, DICOM series, folders of either, or a manifest -> scans with names."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from meddiff.data.files import absolute, digest_file, digest_files
from meddiff.data.layouts.found import refuse
from meddiff.data.manifest import Case, Manifest, load_image
from meddiff.data.scan import walk
from meddiff.errors import ManifestError
from meddiff.imaging.dicom import Refusal, find_series, read_series
from meddiff.imaging.dicom_dose import RTDOSE
from meddiff.imaging.nifti import read_nifti
from meddiff.imaging.volume import Volume

NIFTI = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Scan:
    """One scan to work on: what its results are called, and where it lies."""

    name: str
    paths: tuple[Path, ...]  # one NIfTI file, or the slices of a DICOM series
    series: bool
    case: tuple[Manifest, Case] | None = None  # where it comes from a manifest
    volume: int | None = None  # which of the volumes in its files, where they hold several

    def read(self, modality: str) -> Volume:
        """The volume; `modality` is what a NIfTI file, which cannot tell, is taken to be. Errors name the file."""
        if self.case is not None:
            return load_image(*self.case)
        if self.series:
            return read_series(self.paths, volume=self.volume)
        return read_nifti(self.paths[0], modality=modality)

    @property
    def sha256(self) -> str:
        """Of the file, or of the series' files."""
        return digest_files(self.paths) if self.series else digest_file(self.paths[0])


def find_scans(given: Sequence[Path], split: str | None = None) -> tuple[list[Scan], list[Refusal]]:
    """The scans in files, folders and manifests, and the files that are none; `split` chooses from manifests.

    A NIfTI file is called as its name, a series as the folder it lies in. ManifestError where there is no scan at all.
    """
    scans: list[Scan] = []
    refused: list[Refusal] = []
    for path in map(absolute, given):
        if path.is_dir():
            files = list(walk(path))
        elif path.is_file():
            files = [path]
        else:
            raise ManifestError(
                f"{path}: is neither a file nor a folder. Give a NIfTI file, a DICOM series or a manifest."
            )
        if path.name.endswith(".jsonl"):
            scans += _of_manifest(path, split)
            continue
        images = [file for file in files if file.name.endswith(NIFTI)]
        scans += [Scan(file.name.removesuffix(".gz").removesuffix(".nii"), (file,), False) for file in images]
        rest = [file for file in files if file not in set(images)]
        if rest:
            found, other = find_series(rest)
            doses = [series for series in found if series.modality == RTDOSE]
            scans += [
                Scan(series.files[0].parent.name, series.files, True, volume=series.volume)
                for series in found
                if series not in doses
            ]
            refused += [
                *other,
                *refuse((path for one in doses for path in one.files), "dose", "It is a dose, no scan."),
            ]
    if not scans:
        why = f" {refused[0].path}: {refused[0].detail}" if refused else ""
        raise ManifestError(f"{', '.join(map(str, given))}: no scan was found among {len(refused)} files.{why}")
    return _named_apart(scans), refused


def _of_manifest(path: Path, split: str | None) -> list[Scan]:
    manifest = Manifest.read(path)
    cases = manifest.cases if split is None else manifest.split(split)
    scans = []
    for case in cases:
        source = case.source()
        paths = tuple(manifest.resolve(source))
        scans.append(Scan(case.case, paths, source.files is not None, (manifest, case)))
    return scans


def _named_apart(scans: Sequence[Scan]) -> list[Scan]:
    """The scans, those of one name with a number behind it."""
    seen: dict[str, int] = {}
    apart = []
    for scan in scans:
        seen[scan.name] = n = seen.get(scan.name, 0) + 1
        apart.append(scan if n == 1 else replace(scan, name=f"{scan.name}_{n}"))
    return apart
