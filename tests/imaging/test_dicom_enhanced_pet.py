"""Enhanced PET by functional groups: SUVbw from the tags that PS3.3 C.8.22 names, or a refusal with the tag and the frame."""

import copy

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedPETImageStorage, LegacyConvertedEnhancedPETImageStorage

from meddiff.errors import DicomError
from meddiff.imaging.dicom import find_series, read_series

FRAMES, SHAPE, HALF_LIFE, DOSE, WEIGHT = 4, (8, 6), 6586.2, 350e6, 72.5
SLOPES = (2.0, 2.5, 3.0, 3.5)  # Bq/ml for a stored one, frame by frame
STORED = np.random.default_rng(0).integers(0, 30_000, (FRAMES, *SHAPE)).astype("<u2")


def item(**tags):
    """A sequence of one item."""
    ds = Dataset()
    for keyword, value in tags.items():
        setattr(ds, keyword, value)
    return [ds]


def mapping(slope, unit="Bq/ml"):
    code = item(CodeValue=unit, CodingSchemeDesignator="UCUM", CodeMeaning=unit)
    return item(MeasurementUnitsCodeSequence=code, RealWorldValueSlope=slope, RealWorldValueIntercept=0.0)


def agent(number=1, dose=DOSE):
    return item(
        RadiopharmaceuticalAgentNumber=number,
        RadionuclideTotalDose=dose,
        RadionuclideHalfLife=HALF_LIFE,
        RadiopharmaceuticalStartDateTime="20260101233000",
    )[0]


def write(path, change=lambda ds: None, sop_class=EnhancedPETImageStorage):
    """Four frames, 4 mm apart, injected 45 minutes before the moment that decay is corrected to, across midnight."""
    base = pydicom.dcmread(get_testdata_file("eCT_Supplemental.dcm", download=False), stop_before_pixels=True)
    ds = pydicom.FileDataset("", Dataset(), file_meta=base.file_meta, preamble=bytes(128))
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = sop_class
    ds.Modality, ds.PatientID, ds.PatientWeight, ds.ImageType = "PT", "PLANTED-1", WEIGHT, ["ORIGINAL", "PRIMARY"]
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = (
        f"2.25.{k}" for k in range(1, 5)
    )
    ds.Rows, ds.Columns, ds.NumberOfFrames = *SHAPE, FRAMES
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.AttenuationCorrected = ds.DecayCorrected = "YES"
    ds.DecayCorrectionDateTime = "20260102001500"
    ds.RadiopharmaceuticalInformationSequence = [agent()]
    ds.SharedFunctionalGroupsSequence = item(
        PixelMeasuresSequence=item(PixelSpacing=[2, 3], SliceThickness=4),
        PlaneOrientationSequence=item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        RadiopharmaceuticalUsageSequence=item(RadiopharmaceuticalAgentNumber=1),
    )
    ds.PerFrameFunctionalGroupsSequence = [
        item(
            FrameContentSequence=item(StackID="1", InStackPositionNumber=k + 1),
            PlanePositionSequence=item(ImagePositionPatient=[-9, -8, 4 * k]),
            PixelValueTransformationSequence=item(RescaleSlope=1, RescaleIntercept=0, RescaleType="US"),
            RealWorldValueMappingSequence=mapping(SLOPES[k]),
        )[0]
        for k in range(FRAMES)
    ]
    ds.PixelData = STORED.tobytes()
    change(ds)
    ds.save_as(path, enforce_file_format=True)
    return path


def suv(stored=STORED, dose=DOSE):
    """By the definition: activity a gram over what is left of the dose after 45 minutes; (columns, rows, slices)."""
    left = dose * 0.5 ** (45 * 60 / HALF_LIFE)
    return (stored * np.reshape(SLOPES, (-1, 1, 1)) / (left / (WEIGHT * 1000))).T


def test_each_frame_is_suv_by_its_own_mapping(tmp_path):
    volume = read_series([write(tmp_path / "x.dcm")])
    np.testing.assert_allclose(volume.array, suv(), rtol=1e-6)
    assert (volume.modality, volume.unit) == ("PT", "SUVbw")
    np.testing.assert_allclose(
        volume.geometry.lps(), [[3, 0, 0, -9], [0, 2, 0, -8], [0, 0, 4, 0], [0, 0, 0, 1]], rtol=0, atol=1e-4
    )


def test_two_agents_are_told_apart_by_the_frame(tmp_path):
    def two(ds):
        ds.RadiopharmaceuticalInformationSequence = [agent(), agent(2, DOSE / 2)]
        del ds.SharedFunctionalGroupsSequence[0].RadiopharmaceuticalUsageSequence
        for group in ds.PerFrameFunctionalGroupsSequence:
            group.RadiopharmaceuticalUsageSequence = item(RadiopharmaceuticalAgentNumber=2)

    np.testing.assert_allclose(read_series([write(tmp_path / "x.dcm", two)]).array, suv(dose=DOSE / 2), rtol=1e-6)


def test_a_mapping_to_suv_needs_no_dose(tmp_path):
    def stored_as_suv(ds):
        del ds.RadiopharmaceuticalInformationSequence, ds.PatientWeight
        for group in ds.PerFrameFunctionalGroupsSequence:
            group.RealWorldValueMappingSequence = mapping(2.0, "kBq/ml") + mapping(0.25, "{SUVbw}g/ml")

    np.testing.assert_array_equal(read_series([write(tmp_path / "x.dcm", stored_as_suv)]).array, STORED.T / 4)


def test_time_points_are_volumes_of_their_own(tmp_path):
    def dynamic(ds):
        for k, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
            group.FrameContentSequence[0].TemporalPositionIndex = 1 + k // 2
            group.PlanePositionSequence[0].ImagePositionPatient = [-9, -8, 4 * (k % 2)]

    series, refused = find_series([write(tmp_path / "x.dcm", dynamic)])
    assert ([one.volume for one in series], refused) == ([0, 1], [])
    later = read_series(series[1].files, volume=series[1].volume)
    np.testing.assert_allclose(later.array, suv()[..., 2:], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda ds: ds.pop("PatientWeight"), "Frame 1 of 4: PatientWeight is missing"),
        (lambda ds: ds.pop("DecayCorrected"), "DecayCorrected is missing, not YES"),
        (lambda ds: setattr(ds, "AttenuationCorrected", "NO"), "AttenuationCorrected is NO, not YES"),
        (lambda ds: ds.pop("DecayCorrectionDateTime"), "DecayCorrectionDateTime is missing"),
        (lambda ds: setattr(ds, "DecayCorrectionDateTime", "20260101220000"), "corrected to -5400 s after the injection"),
        (lambda ds: ds.pop("RadiopharmaceuticalInformationSequence"), "RadiopharmaceuticalInformationSequence is missing"),
        (lambda ds: ds.RadiopharmaceuticalInformationSequence[0].pop("RadionuclideTotalDose"), "RadionuclideTotalDose is missing"),
        (lambda ds: ds.RadiopharmaceuticalInformationSequence[0].pop("RadionuclideHalfLife"), "RadionuclideHalfLife is missing"),
        (lambda ds: ds.RadiopharmaceuticalInformationSequence[0].pop("RadiopharmaceuticalStartDateTime"),
         "RadiopharmaceuticalStartDateTime is missing"),
        (lambda ds: ds.PerFrameFunctionalGroupsSequence[2].pop("RealWorldValueMappingSequence"),
         "Frame 3 of 4: MeasurementUnitsCodeSequence is missing; Bq/ml or"),
        (lambda ds: setattr(ds.PerFrameFunctionalGroupsSequence[1], "RealWorldValueMappingSequence", mapping(1.0, "{counts}")),
         r"Frame 2 of 4: MeasurementUnitsCodeSequence is \{counts\}; Bq/ml or"),
        (lambda ds: ds.PerFrameFunctionalGroupsSequence[3].RealWorldValueMappingSequence[0].pop("RealWorldValueSlope"),
         "Frame 4 of 4: RealWorldValueSlope or RealWorldValueIntercept is missing"),
        (lambda ds: ds.PerFrameFunctionalGroupsSequence[3].RealWorldValueMappingSequence.extend(mapping(9.0)),
         "Frame 4 of 4: RealWorldValueMappingSequence maps to Bq/ml in pieces"),
        (lambda ds: ds.PerFrameFunctionalGroupsSequence[1].pop("PlanePositionSequence"),
         "Frame 2 of 4: ImagePositionPatient is missing"),
    ],
)  # fmt: skip
def test_a_frame_that_is_no_suv_is_refused_with_the_tag(tmp_path, change, match):
    with pytest.raises(DicomError, match=match):
        read_series([write(tmp_path / "x.dcm", change)])


def classic(ds):
    """As a converter leaves the attributes of the single images: partly in the groups for what it could not place."""
    for keyword in ("AttenuationCorrected", "DecayCorrected", "DecayCorrectionDateTime"):
        del ds[keyword]
    drug = item(
        RadionuclideTotalDose=DOSE, RadionuclideHalfLife=HALF_LIFE, RadiopharmaceuticalStartDateTime="20260101233000"
    )
    del ds.RadiopharmaceuticalInformationSequence
    ds.SeriesDate, ds.SeriesTime = "20260102", "001500"
    ds.SharedFunctionalGroupsSequence[0].UnassignedSharedConvertedAttributesSequence = item(
        Units="BQML",
        DecayCorrection="START",
        CorrectedImage=["DECY", "ATTN"],
        RadiopharmaceuticalInformationSequence=drug,
    )
    for k, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        del group.RealWorldValueMappingSequence
        group.PixelValueTransformationSequence = item(RescaleSlope=SLOPES[k], RescaleIntercept=0, RescaleType="US")
        group.UnassignedPerFrameConvertedAttributesSequence = item(
            AcquisitionDate="20260102", AcquisitionTime=f"00150{k}"
        )


def test_a_legacy_converted_image_is_suv_as_its_single_images_were(tmp_path):
    path = write(tmp_path / "x.dcm", classic, LegacyConvertedEnhancedPETImageStorage)
    np.testing.assert_allclose(read_series([path]).array, suv(), rtol=1e-6)

    def without(ds):
        classic(ds)
        del ds.PerFrameFunctionalGroupsSequence[2].UnassignedPerFrameConvertedAttributesSequence[0].AcquisitionTime

    with pytest.raises(DicomError, match="Frame 3 of 4: AcquisitionDate and AcquisitionTime is missing"):
        read_series([write(tmp_path / "y.dcm", without, LegacyConvertedEnhancedPETImageStorage)])


def test_a_ct_that_measures_something_else_has_the_values_of_that_mapping(tmp_path):
    ds = pydicom.dcmread(get_testdata_file("eCT_Supplemental.dcm", download=False))
    whole = read_series([ds.filename])
    for group in ds.PerFrameFunctionalGroupsSequence:
        source = group if "RealWorldValueMappingSequence" in group else ds.SharedFunctionalGroupsSequence[0]
        flow = copy.deepcopy(source.RealWorldValueMappingSequence)
        flow[0].RealWorldValueSlope = 2.0
        group.RealWorldValueMappingSequence = flow
    ds.SharedFunctionalGroupsSequence[0].pop("RealWorldValueMappingSequence", None)
    ds.save_as(tmp_path / "x.dcm")
    volume = read_series([tmp_path / "x.dcm"])
    np.testing.assert_array_equal(volume.array, 2 * (whole.array + 1024) - 1024)
    assert volume.unit == "ml/100ml/s"
