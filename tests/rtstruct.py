"""Structure sets for the tests, written with pydicom for an image series of ours."""

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import RTStructureSetStorage

from meddiff.imaging.dicom_write import decimal, file_meta, uid


def placed(geometry, ij, k):
    """Points given in the indices of slice `k`, as LPS mm, (points, 3)."""
    ij = np.asarray(ij, dtype=np.float64)
    index = np.column_stack([ij, np.full(len(ij), k), np.ones(len(ij))])
    return (index @ geometry.lps().T)[:, :3]


def box(low, high):
    """The outline of the voxels from `low` to `high`, both inside, in the indices of a slice."""
    (a, b), (c, d) = np.array(low) - 0.5, np.array(high) + 0.5
    return [(a, b), (c, b), (c, d), (a, d)]


def contour(mm, kind="CLOSED_PLANAR", **more):
    item = Dataset()
    item.ContourGeometricType, item.NumberOfContourPoints = kind, len(mm)
    item.ContourData = [decimal(value) for value in np.ravel(mm)]
    for keyword, value in more.items():
        setattr(item, keyword, value)
    return item


def write_rtstruct(path, image, rois, frame=None, series=None):
    """A structure set for the series of the file `image`; `rois` is number -> (name, contours)."""
    source = pydicom.dcmread(image, stop_before_pixels=True)
    frame = source.FrameOfReferenceUID if frame is None else frame
    ds = FileDataset(
        "", {}, file_meta=file_meta(RTStructureSetStorage, uid("rtstruct", path.name)), preamble=bytes(128)
    )
    ds.SOPClassUID, ds.SOPInstanceUID = RTStructureSetStorage, ds.file_meta.MediaStorageSOPInstanceUID
    ds.Modality, ds.SeriesInstanceUID, ds.StructureSetLabel = "RTSTRUCT", uid("series", path.name), "PLANTED"
    ds.PatientID, ds.PatientName, ds.StudyInstanceUID = source.PatientID, source.PatientName, source.StudyInstanceUID
    named, study, reference = Dataset(), Dataset(), Dataset()
    named.SeriesInstanceUID = source.SeriesInstanceUID if series is None else series
    study.RTReferencedSeriesSequence = [named]
    reference.FrameOfReferenceUID, reference.RTReferencedStudySequence = frame, [study]
    ds.ReferencedFrameOfReferenceSequence = [reference]
    ds.StructureSetROISequence, ds.ROIContourSequence = [], []
    for number, (name, contours) in rois.items():
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, frame
        drawn.ReferencedROINumber, drawn.ContourSequence = number, list(contours)
        ds.StructureSetROISequence.append(roi)
        ds.ROIContourSequence.append(drawn)
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path
