import pydicom
import pytest

from meddiff.data.scan import scan
from meddiff.errors import DicomError
from meddiff.imaging.dicom_person import person
from meddiff.imaging.phantom import write_cohort


@pytest.fixture
def series(tmp_path):
    write_cohort(tmp_path / "d", 1, format="dicom", size=16, slices=3)
    files = sorted((tmp_path / "d").rglob("*.dcm"))

    def changed(**values):
        for path in files:
            header = pydicom.dcmread(path)
            for keyword, value in values.items():
                setattr(header, keyword, value)
            header.save_as(path)
        return files

    return changed


@pytest.mark.parametrize(("text", "years"), [("061Y", "61"), ("018M", "1.50"), ("006W", "0.11"), ("003D", "0.01")])
def test_an_age_is_in_years(series, text, years):
    assert person(series(PatientAge=text)[0], ["age"]) == {"age": years}


@pytest.mark.filterwarnings("ignore:.*Invalid value")
def test_what_is_absent_or_malformed_is_left_out(series):
    files = series(PatientSex="")
    assert person(files[0], ["sex", "age"]) == {}
    assert person(files[0], ["manufacturer"]) == {"manufacturer": "meddiff"}


def test_a_scan_records_what_is_named_and_nothing_else(series, tmp_path):
    series(PatientAge="045Y", PatientSex="F")
    for record, classes in ([(), {}], [("sex", "age"), {"age": "45", "sex": "F"}]):
        cases, _ = scan([tmp_path / "d"], split=(1, 0, 0), key=b"k", record=record)
        assert cases[0].classes == classes
    with pytest.raises(DicomError, match="nothing called 'name' to record; choose from sex, age, manufacturer"):
        scan([tmp_path / "d"], key=b"k", record=["name"])
