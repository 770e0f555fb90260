"""What derived objects share: the headers of the series that they come from, and the equipment that made them."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pydicom
from highdicom import ContributingEquipment
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from meddiff.errors import DicomError
from meddiff.imaging.dicom import Series, find_series

MAKER = "meddiff"
VERSION = version("meddiff")
IDENTIFIERS = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
EMPTY_ALLOWED = (  # of type 2 (PS3.3 C.7.1.1, C.7.2.1): there, though maybe without a value
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
    "ReferringPhysicianName", "Manufacturer",
)  # fmt: skip
NO_DATE = "19000101"  # where the source has none, as today's would change the bytes


@dataclass(frozen=True, eq=False)
class Source:
    """One series of images that something is derived from."""

    series: Series
    headers: tuple[Dataset, ...]  # without pixels, in the order of the slices; text in UTF-8

    @property
    def moment(self) -> tuple[str, str]:
        """Date and time of the first slice, the latest ones that it states (DA, TM)."""
        first = self.headers[0]
        for kind in ("Content", "Acquisition", "Series", "Study"):
            date, time = first.get(f"{kind}Date"), first.get(f"{kind}Time")
            if date:
                return str(date), str(time or "000000")
        return NO_DATE, "000000"


def read_source(files: Sequence[Path]) -> Source:
    """The source among some files; DicomError unless all of them are one regular series with its identifiers."""
    found, refused = find_series([Path(path) for path in files])
    if refused:
        raise DicomError(f"{refused[0].path}: cannot be a source: {refused[0].reason}: {refused[0].detail}")
    if len(found) != 1:
        raise DicomError(f"The source is {len(found)} series in {len(files)} files; give the files of one series.")
    if len(found[0].files) != found[0].geometry.shape[2]:
        raise DicomError(
            f"{found[0].files[0]}: holds several slices; what is derived refers to one file a slice. Write NIfTI, or "
            "convert the source to single-frame images."
        )
    return Source(found[0], tuple(_header(path) for path in found[0].files))


def _header(path: Path) -> Dataset:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's about odd values, which are kept as they are
            header = pydicom.dcmread(path, stop_before_pixels=True)
            header.decode()
    except Exception as e:  # pydicom raises many kinds for damaged values, and repeats the values
        raise DicomError(f"{path}: its header cannot be read ({type(e).__name__}); export it again.") from e
    for keyword in IDENTIFIERS:
        if not header.get(keyword):
            raise DicomError(
                f"{path}: has no {keyword}, so that nothing can refer to it. Export the series again, or write NIfTI."
            )
    header.SpecificCharacterSet = "ISO_IR 192"
    for keyword in EMPTY_ALLOWED:
        if keyword not in header:
            setattr(header, keyword, "")
    if header.get("Modality") == "PT":
        header.Units, header.SUVType = "GML", "BW"  # what the values of a PET are once they are read
    if header.PatientSex not in ("M", "F", "O"):  # enumerated (PS3.3 C.7.1.1); any other word is refused by readers
        header.PatientSex = ""
    return header


def own_equipment(description: str) -> ContributingEquipment:
    """This program as contributing equipment (PS3.3 C.12.1.1.5)."""
    return ContributingEquipment(
        manufacturer=MAKER,
        purpose_of_reference=codes.DCM.ProcessingEquipment,
        manufacturer_model_name=MAKER,
        software_versions=VERSION,
        contribution_description=description,
    )
