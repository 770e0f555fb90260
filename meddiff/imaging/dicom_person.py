"""What the header of a scan says of the person in it, as far as a model may be asked for it; read only when it is wanted."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import pydicom

from meddiff.errors import DicomError

ATTRIBUTES = {"sex": "PatientSex", "age": "PatientAge", "manufacturer": "Manufacturer"}
SEXES = ("F", "M", "O")  # PS3.3 C.7.1.1
AGE = re.compile(r"(\d{3})([DWMY])")  # PS3.5 section 6.2, AS
PER_YEAR = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}


def check_attributes(names: Sequence[str]) -> None:
    """DicomError for a name that is none of ATTRIBUTES."""
    unknown = sorted(set(names) - set(ATTRIBUTES))
    if unknown:
        raise DicomError(f"There is nothing called {unknown[0]!r} to record; choose from {', '.join(ATTRIBUTES)}.")


def person(path: Path, names: Sequence[str]) -> dict[str, str]:
    """The values of some of ATTRIBUTES in one file that has been read before; what is not there or malformed is left out.

    Age is in years, with two decimals below ten.
    """
    tags = [ATTRIBUTES[name] for name in names]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's about odd values, which are left out here
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SpecificCharacterSet", *tags])
        texts = {name: str(header.get(tag) or "").strip() for name, tag in zip(names, tags, strict=True)}
    found = {name: _value(name, text) for name, text in texts.items()}
    return {name: value for name, value in sorted(found.items()) if value}


def _value(name: str, text: str) -> str:
    if name == "sex":
        return text if text in SEXES else ""
    if name == "age":
        match = AGE.fullmatch(text)
        if not match:
            return ""
        years = int(match[1]) / PER_YEAR[match[2]]
        return f"{years:.0f}" if years >= 10 else f"{years:.2f}"
    return text
