"""One data set under the allow-list, at every depth: what comes out is built anew and holds only what was let through."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

from meddiff.privacy.keyed import Keyed, Person
from meddiff.privacy.tables import DEVICE, SAFE_PRIVATE, Allowed
from meddiff.privacy.values import ARRAYS, REMOVED, checked, coded, table_fits

DEEPEST = 16  # nested sequences; an image has no more than six
PROFILE = {  # PS3.16 CID 7050
    "113100": "Basic Application Confidentiality Profile",
    "113105": "Clean Descriptors Option",
    "113107": "Retain Longitudinal Temporal Information Modified Dates Option",
    "113108": "Retain Patient Characteristics Option",
    "113111": "Retain Safe Private Option",
}
RETAIN_DEVICE = {"113109": "Retain Device Identity Option"}
CODE = ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")
TABLES = {"LUTData", *(f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue"))}
TEXT = {"LO", "SH", "LT", "ST", "UT", "UC"}
SAFE_GROUPS = {group for group, _, _ in SAFE_PRIVATE}
FRAMES = {"PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"}  # an item for each frame, also if empty


@dataclass
class Cleaner:
    """The rules for the files of one SOP class and patient; counts what it did by action and rule, never by value."""

    allowed: Allowed
    keyed: Keyed
    person: Person
    retain_device: bool = False
    actions: Counter = field(default_factory=Counter)

    def __call__(self, dataset: Dataset) -> Dataset:
        """The data set without identity; pixels are not looked at."""
        out = self._dataset(dataset, 0)
        out.SpecificCharacterSet = "ISO_IR 192"
        out.PatientIdentityRemoved = "YES"
        out.LongitudinalTemporalInformationModified = "MODIFIED"
        out.DeidentificationMethod = f"meddiff {version('meddiff')}, PS3.15 Annex E, allow-list"
        out.DeidentificationMethodCodeSequence = Sequence(
            [_code(value, meaning) for value, meaning in profile(self.retain_device).items()]
        )
        return out

    def _dataset(self, dataset: Dataset, depth: int) -> Dataset:
        out = Dataset()
        code = coded(dataset) if depth and "CodeValue" in dataset else {}
        if code is None:  # a private code may say anything, and its meaning is free text
            self.actions["drop", "unknown-code"] += 1
            return out
        for tag, element in self._elements(dataset):
            keyword = keyword_for_tag(tag)
            if tag.is_private:
                self._private(element, out)
            elif keyword in CODE:
                if keyword in code:
                    self._add(out, keyword, code[keyword], "keep", "known-code")
            elif keyword in TABLES and not table_fits(dataset, keyword):
                self.actions["drop", "no-lookup-table"] += 1
            else:
                self._public(keyword, element, out, depth)
        return out

    def _elements(self, dataset: Dataset) -> Iterator[tuple[BaseTag, DataElement]]:
        """The elements that may pass and can be read at all; pydicom converts values only here, and raises many kinds."""
        for tag in sorted(dataset.keys()):
            if tag.is_private_creator or tag.element == 0:
                continue
            if tag.is_private and tag.group not in SAFE_GROUPS:
                self.actions["drop", "private"] += 1
                continue
            keyword = keyword_for_tag(tag)
            if not tag.is_private and keyword not in self.allowed.kinds and keyword not in CODE:
                self.actions["drop", "not-listed"] += 1
                continue
            try:
                yield tag, dataset[tag]
            except Exception:
                self.actions["drop", "unreadable"] += 1

    def _public(self, keyword: str, element: DataElement, out: Dataset, depth: int) -> None:
        kind = self.allowed.kinds[keyword]
        if element.VR not in dictionary_VR(element.tag).split(" or "):
            self.actions["drop", "wrong-vr"] += 1
            return
        if keyword in ("PatientName", "PatientID"):
            self._add(out, keyword, self.person.name, "replace", "pseudonym")
        elif kind in ("empty", "dummy"):
            self._without(keyword, element.VR, out, "identifying")
        elif kind == "device" or (keyword in DEVICE and self.retain_device):
            if self.retain_device and not element.is_empty:
                self._add(out, keyword, element.value, "keep", "retain-device")
            else:
                self._without(keyword, element.VR, out, "device")
        elif element.is_empty:
            self._add(out, keyword, element.value, "keep", "empty", element.VR)
        elif element.VR == "SQ":
            self._sequence(keyword, element, out, depth)
        else:
            self._checked(keyword, element, out)

    def _checked(self, keyword: str, element: DataElement, out: Dataset) -> None:
        vr = element.VR
        new = checked(keyword, vr, element.value, self.keyed, self.person)
        if new is None:
            self._without(keyword, vr, out, f"value-{vr}")
        elif vr in ("DA", "DT"):
            self._add(out, keyword, new, "shift", "date", vr)
        elif vr == "UI":
            kept = str(new) == str(element.value)
            self._add(out, keyword, new, "keep" if kept else "replace", "standard-uid" if kept else "uid", vr)
        elif vr in ("LO", "SH"):
            self._add(out, keyword, new, "clean", "vocabulary", vr)
        else:
            self._add(out, keyword, new, "keep", "checked", vr)

    def _sequence(self, keyword: str, element: DataElement, out: Dataset, depth: int) -> None:
        if depth >= DEEPEST:
            self.actions["drop", "too-deep"] += 1
            return
        items = [self._dataset(item, depth + 1) for item in element.value]
        if keyword not in FRAMES:
            items = [item for item in items if len(item)]
        if items or keyword in self.allowed.type2:
            self._add(out, keyword, Sequence(items), "keep", "sequence")
        else:
            self.actions["drop", "sequence-without-content"] += 1

    def _without(self, keyword: str, vr: str, out: Dataset, rule: str) -> None:
        """An attribute whose value may not pass: valid and meaningless for type 1, empty for type 2, else dropped."""
        type1, type2 = self.allowed.type1, self.allowed.type2
        if keyword in type1 and vr in REMOVED.keys() | TEXT:
            self._add(out, keyword, REMOVED.get(vr, "REMOVED"), "dummy", rule, vr)
        elif keyword in type1 | type2:
            if vr not in ARRAYS:
                self._add(out, keyword, Sequence() if vr == "SQ" else None, "empty", rule, vr)
        else:
            self.actions["drop", rule] += 1

    def _private(self, element: DataElement, out: Dataset) -> None:
        creator = element.private_creator
        key = (element.tag.group, creator or "", element.tag.element & 0xFF)
        number = checked("", element.VR, element.value, self.keyed, self.person)
        if element.VR not in SAFE_PRIVATE.get(key, ()) or number is None:
            self.actions["drop", "private"] += 1
            return
        out.private_block(key[0], key[1], create=True).add_new(key[2], element.VR, number)
        self.actions["keep", "safe-private"] += 1

    def _add(self, out: Dataset, keyword: str, value: Any, action: str, rule: str, vr: str | None = None) -> None:
        tag = tag_for_keyword(keyword)
        assert tag is not None, keyword
        out.add(DataElement(tag, vr or dictionary_VR(tag), value))
        self.actions[action, rule] += 1


def profile(retain_device: bool) -> dict[str, str]:
    """Codes and meanings of the profile and its options that are applied (PS3.15 E.2, E.3)."""
    return dict(sorted({**PROFILE, **(RETAIN_DEVICE if retain_device else {})}.items()))


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item
