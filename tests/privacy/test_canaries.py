"""Every row of PS3.15 Table E.1-1, at the top and two deep, and every odd place: nothing of it comes out."""

import logging

import pydicom
import pytest
from planted import KEPT, leaks, pixels_of, planted, rows, write
from pydicom.datadict import keyword_for_tag, tag_for_keyword

from meddiff.cli import main
from meddiff.privacy.folder import deidentify
from meddiff.privacy.tables import allowed

KEY = b"a key of this test, 32 bytes or so"
CT = "1.2.840.10008.5.1.4.1.1.2"


def written(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_no_row_of_the_standards_table_comes_out(tmp_path, capsys, caplog):
    pytest.importorskip("dicomanonymizer", reason="the list of the 655 rows is in the dicom-anonymizer wheel")
    tags = rows()
    assert len(tags) >= 654
    source = planted(tags)
    path = write(tmp_path / "in" / "Canary^Name" / "CANARY_FILE.dcm", source, trailer=b"CANARYEND")
    assert len(leaks(path.read_bytes())) > 400  # the texts among them; the others are UIDs, dates and numbers
    write(tmp_path / "in" / "CANARY_2.dcm", source)  # a duplicate stays behind and is told of
    (tmp_path / "in" / "CANARY.txt").write_text("CANARY")
    with caplog.at_level(logging.DEBUG), pytest.raises(SystemExit) as end:
        main(["deidentify", str(tmp_path / "in"), str(tmp_path / "out"), "--key", str(tmp_path / "key")])
    assert end.value.code == 1
    out = written(tmp_path / "out")
    assert len(out) == 2
    assert {str(p): leaks(content) for p, content in out.items()} == {str(p): set() for p in out}
    assert not leaks("\n".join(map(str, out)).encode())
    said = capsys.readouterr()
    assert "duplicate" in said.err
    assert not leaks((said.err + said.out + caplog.text).replace(str(tmp_path), "").encode())


def test_no_attribute_on_the_allow_list_passes_free_text(tmp_path):
    """Stronger than the table: text in every attribute that may pass, the table's or not."""
    tags = [t for k in allowed(CT).kinds if k not in KEPT and (t := tag_for_keyword(k)) is not None]
    write(tmp_path / "in" / "a.dcm", planted(tags, everywhere=False))
    assert deidentify(tmp_path / "in", tmp_path / "out", KEY) == []
    for path, content in written(tmp_path / "out").items():
        assert leaks(content) == set(), path


@pytest.mark.parametrize("charset", ["ISO_IR 100", ["", "ISO 2022 IR 87"], "GB18030", "ISO_IR 192"])
def test_text_in_other_character_sets_does_not_pass(tmp_path, charset):
    source = planted([])
    source.SpecificCharacterSet = charset
    source.PatientName = "Canary^Käthe" if charset == "ISO_IR 100" else "Canary^山田"
    source.StudyDescription = "MR CANARY 山田" if charset != "ISO_IR 100" else "MR CANARY Käthe"
    write(tmp_path / "in" / "a.dcm", source)
    assert deidentify(tmp_path / "in", tmp_path / "out", KEY) == []
    (path,) = (tmp_path / "out").rglob("*.dcm")
    content = path.read_bytes()
    assert leaks(content) == set()
    assert "山田".encode("gb18030") not in content
    assert "山田".encode() not in content
    assert pydicom.dcmread(path).StudyDescription == "MR"


def test_pixels_and_geometry_are_unchanged(tmp_path):
    source = planted(rows() if _has_rows() else [])
    write(tmp_path / "in" / "a.dcm", source)
    deidentify(tmp_path / "in", tmp_path / "out", KEY)
    (path,) = (tmp_path / "out").rglob("*.dcm")
    out = pydicom.dcmread(path)
    assert (pixels_of(out) == pixels_of(source)).all()
    assert out.PatientAge == "090Y"
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "Rows", "Columns",
                    "RescaleSlope", "RescaleIntercept", "KVP", "XRayTubeCurrent", "PatientPosition"):  # fmt: skip
        assert out[keyword].value == source[keyword].value, keyword
    assert out.preamble == bytes(128)
    assert {keyword_for_tag(e.tag) for e in out.file_meta} == {
        "FileMetaInformationGroupLength",
        "FileMetaInformationVersion",
        "MediaStorageSOPClassUID",
        "MediaStorageSOPInstanceUID",
        "TransferSyntaxUID",
        "ImplementationClassUID",
        "ImplementationVersionName",
    }


def _has_rows():
    try:
        rows()
    except ImportError:
        return False
    return True
