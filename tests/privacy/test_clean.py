import struct

import pydicom
import pytest
from planted import rows
from pydicom.datadict import dictionary_VR, keyword_for_tag, private_dictionary_VR
from pydicom.dataset import Dataset

from meddiff.privacy.clean import Cleaner, profile
from meddiff.privacy.keyed import Keyed, Person, capped_age, shifted
from meddiff.privacy.tables import SAFE_PRIVATE, _standard, allowed
from meddiff.privacy.vocabulary import cleaned

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
KEYED = Keyed(b"a key of this test")
PERSON = Person("P0123456789ab", 100)


def clean(ds, sop_class=CT, **options):
    ds.SOPClassUID = sop_class
    rules = allowed(sop_class)
    assert rules is not None
    return Cleaner(rules, KEYED, PERSON, **options)(ds)


def test_what_passes_of_the_standards_table_passes_by_an_option():
    """Basic Profile: X unless an option keeps or cleans it; UIDs are new, dates shifted, text cleaned."""
    pytest.importorskip("dicomanonymizer", reason="the rows are in the dicom-anonymizer wheel")
    characteristics = {
        "PatientAge",
        "PatientSex",
        "PatientSexNeutered",
        "PatientSize",
        "PatientWeight",
        "SmokingStatus",
    }
    references = {"ReferencedImageSequence", "SourceImageSequence"}
    pseudonyms = {"PatientName", "PatientID", "PatientIdentityRemoved", "PregnancyStatus"}
    listed = {keyword_for_tag(tag) for tag in rows()}
    for sop_class in _standard()["sop_classes"]:
        for keyword, kind in allowed(sop_class).kinds.items():
            if keyword not in listed or kind != "pass":
                continue
            vr = dictionary_VR(keyword)
            by_value = vr in {"UI", "DA", "DT", "TM", "LO", "SH"}
            assert by_value or keyword in characteristics | references | pseudonyms, (keyword, vr)


def test_nothing_that_is_not_listed_passes():
    ds = Dataset()
    ds.PatientComments, ds.ImageComments, ds.InstitutionName = "a", "b", "c"
    ds.add_new(0x00091001, "LO", "private")
    out = clean(ds)
    assert {keyword_for_tag(e.tag) for e in out} == {
        "SpecificCharacterSet",
        "SOPClassUID",
        "PatientIdentityRemoved",
        "DeidentificationMethod",
        "DeidentificationMethodCodeSequence",
        "LongitudinalTemporalInformationModified",
    }


@pytest.mark.parametrize(
    ("keyword", "value", "expected"),
    [
        ("BodyPartExamined", "HEAD", "HEAD"),
        ("BodyPartExamined", "MILLER", None),
        ("FilterType", "MILLER", "REMOVED"),
        ("FilterType", "WEDGE", "WEDGE"),
        ("SeriesDescription", "Mr Miller T2 FLAIR", "MR T2 FLAIR"),
        ("ConvolutionKernel", "B30f", "B30f"),
        ("ConvolutionKernel", "Miller", None),
        ("KVP", "120.0", "120.0"),
        ("PatientAge", "093Y", "090Y"),
        ("PatientSex", "F", "F"),
        ("PatientBirthDate", "19610207", ""),
        ("StudyID", "4711", ""),
        ("InstitutionName", "General", None),
        ("StudyDate", "20240301", "20231122"),
    ],
)
def test_a_value_passes_only_when_it_is_what_its_attribute_may_say(keyword, value, expected):
    ds = Dataset()
    setattr(ds, keyword, value)
    out = clean(ds)
    assert (str(out[keyword].value or "") if keyword in out else None) == expected


def test_a_text_where_a_number_belongs_does_not_pass():
    with pydicom.config.disable_value_validation():
        ds = Dataset()
        ds.add_new("KVP", "LO", "MILLER")  # the VR of the file is believed only where it is the standard's
        ds.add_new("XRayTubeCurrent", "IS", "12")
        out = clean(ds)
    assert "KVP" not in out or not out.KVP
    assert out.XRayTubeCurrent == 12


def test_meanings_of_codes_come_from_the_dictionary_and_unknown_codes_go():
    known, private = Dataset(), Dataset()
    known.CodeValue, known.CodingSchemeDesignator, known.CodeMeaning = "T-D1100", "SRT", "Mr Miller's head"
    private.CodeValue, private.CodingSchemeDesignator, private.CodeMeaning = "MILLER", "99LOCAL", "Mr Miller"
    ds = Dataset()
    ds.AnatomicRegionSequence = [known, private]
    (item,) = clean(ds).AnatomicRegionSequence
    assert (item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning) == (
        "T-D1100",
        "SRT",
        "Head structure (body structure)",
    )


def test_a_private_number_on_the_safe_list_stays_and_all_else_private_goes():
    ds = Dataset()
    block = ds.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    block.add_new(0x0C, "IS", "1000")
    block.add_new(0x0B, "DS", "1")
    ds.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", b"text")
    out = clean(ds, MR)
    assert out.private_block(0x0019, "SIEMENS MR HEADER")[0x0C].value == 1000
    assert sum(e.tag.is_private for e in out) == 2  # it and its creator
    assert "113111" in profile(False)


def test_the_safe_list_is_of_numbers_as_the_vendors_define_them():
    for (group, creator, element), vrs in SAFE_PRIVATE.items():
        assert vrs == {private_dictionary_VR((group, 0x1000 | element), creator)}
        assert vrs <= {"DS", "IS", "FD", "FL", "SS", "US"}


def test_rounding_noise_in_a_direction_is_zero_and_text_in_it_is_nothing():
    for value, expected in (
        ([1.0, 1e-33, 0.0], [1.0, 0.0, 0.0]),
        (list(struct.unpack("<3d", b"JOHN MILLERBORN IN 1961 ")), None),
    ):
        ds = Dataset()
        ds.DiffusionGradientOrientation = value
        assert clean(ds, MR).get("DiffusionGradientOrientation") == expected


def test_nesting_without_end_is_cut():
    ds = top = Dataset()
    for _ in range(100):
        item = Dataset()
        item.ReferencedFrameNumber = 1
        top.SourceImageSequence = [item]
        top = item
    depth, out = 0, clean(ds)
    while "SourceImageSequence" in out:
        out, depth = out.SourceImageSequence[0], depth + 1
    assert depth == 16


def test_a_uid_is_valid_new_and_follows_from_the_key_alone():
    new = KEYED.uid("1.2.3")
    assert pydicom.uid.UID(new).is_valid
    assert new == Keyed(KEYED.key).uid("1.2.3") == "2.25." + new[5:]
    assert len({new, KEYED.uid("1.2.4"), Keyed(b"another key of it").uid("1.2.3")}) == 3
    assert "key of this" not in repr(KEYED)


def test_a_person_is_named_as_by_the_scan_and_moved_by_days_of_their_own():
    from meddiff.data.keys import pseudonym

    people = [KEYED.person(f"patient {n}", "") for n in range(200)]
    assert people[0].name == pseudonym(KEYED.key, "patient 0")
    assert all(1 <= one.days <= 3650 for one in people)
    assert len({one.days for one in people}) > 150
    assert KEYED.person(" ", "1.2") == KEYED.person("", "1.2") != KEYED.person("", "1.3")


@pytest.mark.parametrize("value", ["2024", "202413", "20240230", "MILLER", "20240301MILLER", "00010101"])
def test_what_is_no_whole_date_is_no_date(value):
    assert shifted(value, "DA", 400) is None
    assert shifted(value, "DT", 400) is None


@pytest.mark.parametrize(
    ("age", "expected"), [("090Y", "090Y"), ("091Y", "090Y"), ("999M", "999M"), ("45", None), ("abc", None)]
)
def test_nobody_is_older_than_ninety(age, expected):
    assert capped_age(age) == expected


def test_a_description_without_a_known_word_is_empty():
    assert cleaned("Miller, John (1961)") == ""
