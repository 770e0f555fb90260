"""The allow-list: what each SOP class may keep, from `standard.json`, which scripts/make_allow_list.py derives.

What a table does not name is dropped. PS3.3 says which attributes an image of a kind has, PS3.15 Table E.1-1 which of them
identify; an attribute of the first that is not in the second may pass once its value is checked.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Literal

from meddiff.privacy.vocabulary import TERMS

Kind = Literal["pass", "device", "empty", "dummy"]
ORDER: tuple[Kind, ...] = ("empty", "dummy", "device", "pass")  # a later one wins where modules differ
OWN: dict[str, Kind] = {  # what the tables leave out and an anonymous image still has
    "PatientName": "pass",  # the pseudonym
    "PatientID": "pass",
    "PatientBirthDate": "empty",
    "AccessionNumber": "empty",
    "StudyID": "empty",
    "ReferringPhysicianName": "empty",
    "AcquisitionContextSequence": "empty",
    "RescaleSlope": "pass",  # numbers that scanners add to images whose IOD has no place for them
    "RescaleIntercept": "pass",
    "RescaleType": "pass",
    "SpacingBetweenSlices": "pass",
    "TemporalPositionIdentifier": "pass",
    "NumberOfTemporalPositions": "pass",
    "DiffusionBValue": "pass",
    "DiffusionGradientOrientation": "pass",
}
DEVICE = {  # free text that names the scanner: verbatim with Retain Device, else the words of the vocabulary
    "Manufacturer", "ManufacturerModelName", "SoftwareVersions", "DetectorManufacturerName",
    "DetectorManufacturerModelName", "ManufacturerModelVersion", "TransmitCoilName", "ReceiveCoilName",
    "TransmitCoilManufacturerName", "ReceiveCoilManufacturerName",
}  # fmt: skip
SAFE_PRIVATE: Mapping[tuple[int, str, int], frozenset[str]] = {  # after PS3.15 Table E.3.10-1: numbers only
    (0x0019, "SIEMENS MR HEADER", 0x0C): frozenset({"IS"}),  # b value
    (0x0019, "SIEMENS MR HEADER", 0x0E): frozenset({"FD"}),  # diffusion gradient direction
    (0x0019, "SIEMENS MR HEADER", 0x27): frozenset({"FD"}),  # b matrix
    (0x0043, "GEMS_PARM_01", 0x39): frozenset({"IS"}),  # b value, first of four
    (0x0019, "GEMS_ACQU_01", 0x23): frozenset({"DS"}),  # table speed
    (0x0019, "GEMS_ACQU_01", 0x24): frozenset({"DS"}),  # mid scan time
    (0x0019, "GEMS_ACQU_01", 0x27): frozenset({"DS"}),  # rotation period
    (0x0045, "GEMS_HELIOS_01", 0x01): frozenset({"SS"}),  # detector rows
    (0x0045, "GEMS_HELIOS_01", 0x02): frozenset({"FL"}),  # detector row width
    (0x2001, "Philips Imaging DD 001", 0x03): frozenset({"FL"}),  # b value
    (0x7053, "Philips PET Private Group", 0x00): frozenset({"DS"}),  # SUV scale
    (0x7053, "Philips PET Private Group", 0x09): frozenset({"DS"}),  # activity concentration scale
    (0x00E1, "ELSCINT1", 0x21): frozenset({"DS"}),  # dose-length product
    (0x01F1, "ELSCINT1", 0x07): frozenset({"DS"}),  # table velocity
    (0x01F1, "ELSCINT1", 0x27): frozenset({"DS"}),  # rotation time
}


@dataclass(frozen=True)
class Allowed:
    """The allow-list of one SOP class: the same at every depth of its sequences."""

    modality: str
    kinds: Mapping[str, Kind]  # by keyword
    type1: frozenset[str]  # keywords that must have a value somewhere (PS3.5 section 7.4) ...
    type2: frozenset[str]  # ... and that must be there, if empty


@lru_cache(1)
def _standard() -> dict:
    return json.loads((files("meddiff.privacy") / "standard.json").read_text(encoding="utf-8"))


@lru_cache
def allowed(sop_class: str) -> Allowed | None:
    """The allow-list of a SOP class; None for the classes that are refused."""
    found = _standard()["sop_classes"].get(sop_class)
    if found is None:
        return None
    kinds: dict[str, Kind] = {}
    for kind in ORDER:
        for name in found["modules"]:
            kinds.update(dict.fromkeys(_standard()["modules"][name].get(kind, ()), kind))
    type1, type2 = (
        frozenset(keyword for name in found["modules"] for keyword in _standard()["modules"][name].get(kind, ()))
        for kind in ("type1", "type2")
    )
    return Allowed(found["modality"], {**kinds, **OWN}, type1, type2 | OWN.keys())


@lru_cache(1)
def terms() -> Mapping[str, frozenset[str]]:
    """The defined terms of each CS attribute, by keyword."""
    listed = {keyword: frozenset(values) for keyword, values in _standard()["terms"].items()}
    return {**listed, **{keyword: listed.get(keyword, frozenset()) | own for keyword, own in TERMS.items()}}
