"""Names of labels as coded concepts: what a segment is, in SNOMED CT as PS3.16 uses it."""

from typing import Any

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

CONTEXT_GROUPS = (7153, 7152, 7154, 7155, 7160)  # CNS, heart, abdomen, thorax, pelvis (PS3.16)
LESIONS = 7159
SYNONYMS = {  # in lower case; the names that data sets use, to those of the standard
    "csf": "CerebrospinalFluid",
    "grey matter": "GrayMatter",
    "ventricle": "BrainVentricle",
    "ventricles": "BrainVentricle",
    "brainstem": "BrainStem",
    "lungs": "Lung",
    "kidneys": "Kidney",
    "tumor": "Neoplasm",
    "tumour": "Neoplasm",
    "metastasis": "NeoplasmSecondary",
    "oedema": "Edema",
    "haemorrhage": "Hemorrhage",
    "bleeding": "Hemorrhage",
    "bone": "BoneTissue",
    "fat": "AdiposeTissue",
    "muscle": "MuscleTissue",
}
OTHERS = {"Skull", "Scalp", "Skin", "BoneTissue", "AdiposeTissue", "MuscleTissue", "SoftTissue", "Blood", "Head"}
TISSUES = {"GrayMatter", "WhiteMatter", "BoneTissue", "AdiposeTissue", "MuscleTissue", "SoftTissue"}
SUBSTANCES = {"CerebrospinalFluid", "Blood"}


def segment_codes(name: str) -> tuple[Code, Code]:
    """Category (CID 7150) and type (CID 7151) of a label by its name.

    A name that is not known is (Tissue, Tissue), the most general type of the standard; its own words stay in the segment's
    label.

    >>> segment_codes("Grey matter")[1].meaning
    'Gray Matter'
    """
    words = name.replace("_", " ").replace("-", " ").lower().split()
    keyword = SYNONYMS.get(" ".join(words)) or "".join(word.capitalize() for word in words)
    if keyword != "Normal" and keyword in dir(_group(LESIONS)):
        return codes.SCT.MorphologicallyAbnormalStructure, getattr(_group(LESIONS), keyword)
    if keyword in OTHERS:
        return _category(keyword), getattr(_group(7151), keyword)
    for number in CONTEXT_GROUPS:
        if keyword in dir(_group(number)):
            return _category(keyword), getattr(_group(number), keyword)
    return codes.SCT.Tissue, codes.SCT.Tissue


def _group(number: int) -> Any:
    return getattr(codes, f"cid{number}")


def _category(keyword: str) -> Code:
    if keyword in TISSUES:
        return codes.SCT.Tissue
    return codes.SCT.BodySubstance if keyword in SUBSTANCES else codes.SCT.AnatomicalStructure
