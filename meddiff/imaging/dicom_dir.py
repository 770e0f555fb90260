"""DICOMDIR (PS3.3 F): the files of a medium by its directory, none of them outside the medium's folder."""

import warnings
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pydicom
from pydicom.uid import MediaStorageDirectoryStorage

from meddiff.errors import DicomError
from meddiff.imaging.dicom_header import BoundedFile, plain, read_header

NAME = "DICOMDIR"


@dataclass(frozen=True)
class Directory:
    """What one DICOMDIR names."""

    files: tuple[Path, ...]  # that are there
    missing: tuple[str, ...]  # names of files that are not
    outside: tuple[str, ...]  # names that lead out of the folder, which are not followed


def is_directory(path: Path) -> bool:
    """Whether the file is named as the directory of a medium."""
    return path.name.upper() == NAME


def read_directory(path: Path) -> Directory:
    """The files that a DICOMDIR names; DicomError where it is damaged or is none.

    A link that leads out of the folder counts as outside, as does a name with `..` or a root.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's about odd values
            read_header(path)  # refuses what is deflated
            with BoundedFile(path) as file:
                dataset = pydicom.dcmread(file)
            if dataset.file_meta.get("MediaStorageSOPClassUID") != MediaStorageDirectoryStorage:
                raise ValueError("its SOP class is another")
            records = dataset.get("DirectoryRecordSequence") or []
            named = [record.get("ReferencedFileID") for record in records]
            names = ["/".join(map(str, plain(name))) for name in named if name]
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as e:  # pydicom raises many kinds for damaged files
        raise DicomError(
            f"{path}: cannot be read as a DICOMDIR ({type(e).__name__}: {e}). Scan its folder instead."
        ) from e
    files: dict[Path, None] = {}
    missing, outside = [], []
    root = path.parent.resolve()
    for name in dict.fromkeys(names):
        parts = PurePosixPath(name.replace("\\", "/")).parts
        found = next((p for p in (path.parent.joinpath(*parts), path.parent / name.lower()) if p.is_file()), None)
        if not parts or ".." in parts or parts[0] == "/" or (found and not found.resolve().is_relative_to(root)):
            outside.append(name)
        elif found:
            files[found] = None
        else:
            missing.append(name)
    return Directory(tuple(files), tuple(missing), tuple(outside))
