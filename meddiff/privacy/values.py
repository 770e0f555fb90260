"""Values that may pass: numbers that are numbers, terms that are defined, known codes, new UIDs, shifted dates.

`checked` answers with the value to write, or with None where nothing may be written. No branch returns text of the input
that is not matched against a closed list or a strict pattern.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import pydicom.sr._concepts_dict as concepts
import pydicom.sr._snomed_dict as snomed
from pydicom.datadict import dictionary_has_tag
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import UID_dictionary

from meddiff.privacy.keyed import Keyed, Person, capped_age, shifted
from meddiff.privacy.tables import terms
from meddiff.privacy.vocabulary import PATTERNS, cleaned

DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")  # PS3.5 section 6.2, DS
INTEGER = re.compile(r"[+-]?\d{1,12}")
NOISE, LARGEST = (
    1e-25,
    1e12,
)  # of binary numbers: below is rounding noise, and text that is read as one is mostly outside
WHOLE = {"US", "SS", "UL", "SL", "UV", "SV"}
REAL = {"FL", "FD"}
ATOM = r"([munkc]?(g|m|s|l|L|mol|Bq|Gy|Sv|Pa|Hz|eV|V|A|J|W)|min|h|d|deg|HU|\[hnsf'U\]|%)[1-4]?"
UNIT = rf"(\d{{1,3}}({ATOM})?|{ATOM})"
UNITS = re.compile(rf"{UNIT}([./]{UNIT}){{0,3}}")  # UCUM, of quantities in images
ARRAYS = {"OF", "OD", "OL", "OV", "OW", "OB"}
REMOVED = {
    "CS": "OTHER",
    "DA": "19000101",
    "DT": "19000101000000",
    "TM": "000000",
    "UI": "2.25.0",
}  # valid, and say nothing


def checked(keyword: str, vr: str, value: Any, keyed: Keyed, person: Person) -> Any:
    """The value to write for an attribute that may pass, or None; several values pass together or keep their places."""
    values = value if isinstance(value, (list, tuple, MultiValue)) else [value]
    if vr in ARRAYS:
        return value if isinstance(value, bytes) else None
    new = [_one(keyword, vr, one, keyed, person) for one in values]
    if keyword in ("ImageType", "FrameType"):  # the places have a meaning (PS3.3 C.7.6.1.1.2)
        new = ["OTHER" if one is None else one for one in new]
    elif vr == "CS" and keyword not in PATTERNS:
        new = [one for one in new if one is not None]
    elif vr in ("LO", "SH"):
        new = ["" if one is None else one for one in new] if any(new) else []
    if not new or any(one is None for one in new):
        return None
    return new if len(new) > 1 else new[0]


def table_fits(dataset: Dataset, keyword: str) -> bool:
    """Whether a lookup table has as many bytes as its descriptor says (PS3.3 C.11.1.1): anything else is no table."""
    descriptor = dataset.get(keyword.removesuffix("Data") + "Descriptor")
    if not isinstance(descriptor, (list, MultiValue)) or len(descriptor) != 3:
        return False
    entries = int(descriptor[0]) or 65536
    data = dataset[keyword].value
    size = len(data) if isinstance(data, bytes) else 2 * len(data)
    return size in (2 * entries, entries + entries % 2)


def _one(keyword: str, vr: str, value: Any, keyed: Keyed, person: Person) -> Any:
    if vr in WHOLE:
        return int(value) if isinstance(value, int) else None
    if vr in REAL:
        if not isinstance(value, (int, float)) or not abs(value) <= LARGEST:  # so that NaN goes too
            return None
        return value if abs(value) >= NOISE else 0.0
    if vr == "AT":  # a pointer to an attribute of the standard; four other bytes are no pointer
        return value if isinstance(value, int) and dictionary_has_tag(value) else None
    text = str(getattr(value, "original_string", value)).strip(" \0")
    if vr == "DS":
        return text if DECIMAL.fullmatch(text) and len(text) <= 16 else None
    if vr == "IS":
        return text if INTEGER.fullmatch(text) else None
    if vr == "UI":
        return text if not text or text in UID_dictionary else keyed.uid(text)
    if vr in ("DA", "DT", "TM"):
        return shifted(text, vr, person.days)
    if vr == "AS":
        return capped_age(text)
    if keyword in PATTERNS and PATTERNS[keyword].fullmatch(text):
        return text
    if vr == "CS":
        return text if text in terms().get(keyword, ()) else None
    if vr in ("LO", "SH"):
        return cleaned(text)[: 16 if vr == "SH" else 64].strip() or None
    return None


def coded(item: Dataset) -> Mapping[str, str] | None:
    """Code, scheme and meaning of an item (PS3.3 section 8.8), the meaning from pydicom's dictionary; None if unknown."""
    value, scheme = str(item.get("CodeValue", "")), str(item.get("CodingSchemeDesignator", ""))
    meaning = _meanings().get((scheme, value))
    if meaning is None and scheme in ("SRT", "SNM3", "99SDM"):
        meaning = _meanings().get(("SCT", snomed.mapping["SRT"].get(value, "")))
    if meaning is None and scheme == "UCUM" and UNITS.fullmatch(value):
        meaning = value
    return (
        None if meaning is None else {"CodeValue": value, "CodingSchemeDesignator": scheme, "CodeMeaning": meaning[:64]}
    )


@lru_cache(1)
def _meanings() -> Mapping[tuple[str, str], str]:
    schemes: Any = concepts.concepts  # {scheme: {keyword: {code: (meaning, groups)}}}
    return {
        (scheme, code): meaning
        for scheme, by_keyword in schemes.items()
        for codes in by_keyword.values()
        for code, (meaning, *_) in codes.items()
    }
