"""Derive meddiff/privacy/standard.json, the allow-list, from published tables of the DICOM standard.

    pip download --no-deps dicom-standard==0.1.0 && unzip dicom_standard-0.1.0-py3-none-any.whl -d tables
    pip install highdicom dicom-anonymizer
    python scripts/make_allow_list.py tables/dicom_standard-0.1.0.data/data/standard

highdicom (MIT) has the attributes of each module of PS3.3, with their types; dicom-standard (MIT) their defined terms and the
option columns of PS3.15 Table E.1-1; dicom-anonymizer (BSD) the 655 rows of that table's 2026c edition. Only keywords and
terms are stored, by module, in four classes:

    pass    may pass after a check of the value: numbers, terms, UIDs, dates, sequences; words of a closed vocabulary
    device  passes with Retain Device only
    empty   type 2 and must not pass: stays, without a value
    dummy   type 1 and must not pass: stays, with a value that says nothing

and, of all of them, which are of type 1 and 2 there, and so stay without their value when it may not pass.
"""

import json
import re
import sys
from importlib.resources import files
from pathlib import Path

from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword

SOP_CLASSES = {  # the images and the objects drawn on them that can be cleaned; all others are refused
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "MR",
    "1.2.840.10008.5.1.4.1.1.128": "PT",
    "1.2.840.10008.5.1.4.1.1.130": "PT",
    "1.2.840.10008.5.1.4.1.1.128.1": "PT",
    "1.2.840.10008.5.1.4.1.1.20": "NM",
    "1.2.840.10008.5.1.4.1.1.1": "CR",
    "1.2.840.10008.5.1.4.1.1.1.1": "DX",
    "1.2.840.10008.5.1.4.1.1.1.1.1": "DX",
    "1.2.840.10008.5.1.4.1.1.1.2": "MG",
    "1.2.840.10008.5.1.4.1.1.1.2.1": "MG",
    "1.2.840.10008.5.1.4.1.1.13.1.3": "MG",
    "1.2.840.10008.5.1.4.1.1.12.1": "XA",
    "1.2.840.10008.5.1.4.1.1.12.2": "RF",
    "1.2.840.10008.5.1.4.1.1.66.4": "SEG",
    "1.2.840.10008.5.1.4.1.1.481.2": "RTDOSE",
    "1.2.840.10008.5.1.4.1.1.481.3": "RTSTRUCT",
}
LEFT_OUT = re.compile(
    "clinical-trial|specimen|overlay|acquisition-context|icc-profile|^device$|frame-extraction|curve|approval"
)
NEVER = re.compile(  # carry text, pictures or other files of any kind, or who made them
    "Icon|Encrypted|MACParameters|DigitalSignature|HL7|Overlay|Curve|EncapsulatedDocument|PrivateCreator|PrivateGroup|"
    "ContributingEquipment|OriginalAttributes|ModifiedAttributes|Creator|Private|Conversion|Observer|Physician|Operator|Segmented\\w+LookupTable|"
    "Occupation|MedicalAlert|Allergies|PatientState|Admitting|Breed|Strain|Calendar|Genetic|NTPSource|Service|PatientID|"
    "ResponsiblePerson|IdentifierType|UniversalEntity|Authorization|Coercion|SyntheticData"
)
PERSONAL_DATE = re.compile("Birth|Death|Menstrual|Expir|Deidentification")  # not shifted but removed
CLEANED = {"ROIName", "StructureSetLabel"}  # rows that got the Clean Descriptors option after dicom-standard 0.1.0
BULK = {  # of the binary attributes
    "PixelData", "FloatPixelData", "DoubleFloatPixelData", "LUTData",
    "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
}  # fmt: skip
NUMBERS = {"DS", "IS", "US", "SS", "UL", "SL", "FL", "FD", "OF", "OD", "AT"}
WORDS = {"LO", "SH", "CS"}  # cleaned by a closed vocabulary, CS by the standard's terms
PATIENT = {
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PatientSex",
    "PatientSexNeutered",
    "SmokingStatus",
    "PregnancyStatus",
}
TERM = re.compile(r"<dt[^>]*>(?:\s*<[^>]+>)*\s*([A-Z0-9][A-Z0-9_ ]{0,15}?)\s*(?:<[^>]+>\s*)*</dt>")


def annex_e(tables: Path) -> dict[str, dict[str, str]]:
    """The rows of Table E.1-1 by keyword: the basic action of 2026c, and the options' columns."""
    options = {
        row["id"].upper(): row for row in json.loads((tables / "confidentiality_profile_attributes.json").read_text())
    }
    rows = {}
    for action in ("D", "U", "X_D", "X", "X_Z_D", "X_Z", "X_Z_U_STAR", "Z_D", "Z"):
        for tag in getattr(dicomfields_2026c, f"{action}_TAGS"):
            if len(tag) == 2 and keyword_for_tag(tag):
                rows[keyword_for_tag(tag)] = {**options.get(f"{tag[0]:04X}{tag[1]:04X}", {}), "basic": action}
    return rows


def terms(tables: Path) -> dict[str, list[str]]:
    """Enumerated values and defined terms of each CS attribute, from its description and the sections it refers to."""
    sections = json.loads((tables / "references.json").read_text())
    found: dict[str, set[str]] = {}
    for name in ("module_to_attributes.json", "macro_to_attributes.json"):
        for one in json.loads((tables / name).read_text()):
            tag = one["tag"].strip("()").replace(",", "")
            keyword = "" if "X" in tag.upper() else keyword_for_tag(int(tag, 16))
            if not keyword or dictionary_VR(keyword) != "CS":
                continue
            texts = [one["description"], *(sections.get(ref["sourceUrl"], "") for ref in one["externalReferences"])]
            found.setdefault(keyword, set()).update(t for text in texts for t in TERM.findall(text))
    return {keyword: sorted(values) for keyword, values in sorted(found.items()) if values}


def classify(keyword: str, types: set[str], rows: dict[str, dict[str, str]]) -> str | None:
    """The class of one attribute of a module, None for what is dropped."""
    vr, row = dictionary_VR(keyword).split(" or ")[0], rows.get(keyword)
    instead = "dummy" if "1" in types else "empty" if types & {"2", "2C"} else None
    if keyword in BULK:
        return "pass"
    if keyword in CLEANED:
        return "pass"
    if NEVER.search(keyword) or vr in {"OB", "OW", "UN", "OL", "OV", "UC", "UR", "LT", "ST", "UT", "PN"}:
        return instead if vr not in {"OB", "OW", "SQ"} else None
    if row is None:
        return instead if vr in {"DA", "DT", "TM"} else "pass"
    if vr in {"DA", "DT", "TM"} and not PERSONAL_DATE.search(keyword):
        return "pass"
    if keyword in PATIENT or vr == "UI" or row["basic"] == "X_Z_U_STAR":
        return "pass"
    if row.get("rtnDevIdOpt") and vr in WORDS:
        return "device"
    if row.get("cleanDescOpt") == "C" and vr in WORDS:
        return "pass"
    return "empty" if vr == "SQ" and instead else instead


def main(tables: Path, output: Path) -> None:
    standard = files("highdicom") / "_standard"
    iods, modules_of, attributes = (
        json.loads((standard / f"{name}.json").read_text())
        for name in ("sop_class_iod_map", "iod_module_map", "module_attribute_map")
    )
    rows = annex_e(tables)
    classes, used = {}, set()
    for uid, modality in SOP_CLASSES.items():
        names = [m["key"] for m in modules_of[iods[uid]] if not LEFT_OUT.search(m["key"])]
        classes[uid] = {"modality": modality, "modules": names}
        used.update(names)
    modules: dict[str, dict[str, list[str]]] = {}
    passing = set()
    for name in sorted(used):
        types: dict[str, set[str]] = {}
        for one in attributes.get(name, []):
            hidden = any(
                NEVER.search(step) or (step in rows and rows[step]["basic"] != "X_Z_U_STAR") for step in one["path"]
            )
            if tag_for_keyword(one["keyword"]) is not None and not hidden:
                types.setdefault(one["keyword"], set()).add(one["type"])
        kinds: dict[str, list[str]] = {}
        for keyword in sorted(types):
            kind = classify(keyword, types[keyword], rows)
            if kind:
                passing.add(keyword)
                text = dictionary_VR(keyword) in ("LO", "SH")
                needed_type = "type1" if types[keyword] & ({"1", "1C"} if text else {"1"}) else None
                needed_type = needed_type or ("type2" if types[keyword] & {"2", "2C"} else None)
                for name_of_list in filter(None, (kind, needed_type)):
                    kinds.setdefault(name_of_list, []).append(keyword)
        modules[name] = kinds
    needed = {keyword: values for keyword, values in terms(tables).items() if keyword in passing}
    content = {"sop_classes": classes, "modules": modules, "terms": needed}
    lines = json.dumps(content, separators=(",", ":"), sort_keys=True)
    output.write_text(re.sub(r'(\]|\}),"', r'\1,\n"', lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parents[1] / "meddiff" / "privacy" / "standard.json")
