"""Real values as the 16-bit numbers of a DICOM image, with the line back to them (PS3.3 C.11.1)."""

from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from meddiff.errors import DicomError
from meddiff.imaging.dicom_write import CT_INTERCEPT, decimal

HIGHEST = 32767  # of a signed 16-bit number


@dataclass(frozen=True, eq=False)
class Stored:
    """value = numbers * slope + intercept, to half a slope."""

    numbers: np.ndarray  # int16, shape of the values
    slope: float
    intercept: float

    def describe(self, ds: Dataset, modality: str) -> None:
        """Put the line into a header; an MR image of whole numbers needs none."""
        if modality == "MR" and (self.slope, self.intercept) == (1, 0):
            return
        ds.RescaleSlope, ds.RescaleIntercept = decimal(self.slope), decimal(self.intercept)
        if modality != "PT":  # whose Units say it (PS3.3 C.8.9.1)
            ds.RescaleType = "HU" if modality == "CT" else "US"


def quantised(what: object, values: np.ndarray, modality: str) -> Stored:
    """The values in 16 bits: whole numbers as they are, others in the smallest step, a power of two, that spans them.

    PET keeps an intercept of 0 (PS3.3 C.8.9.4.1.4). DicomError where a value is not finite; `what` names it in the message.
    """
    values = values.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise DicomError(f"{what}: values from {low:g} to {high:g} cannot be stored; repair what made them.")
    whole = bool((values == np.rint(values)).all())
    usual = CT_INTERCEPT if modality == "CT" else 0
    fits = whole and max(abs(low - usual), abs(high - usual)) <= HIGHEST
    intercept = float(usual if fits or modality == "PT" else np.rint((low + high) / 2))
    reach = max(abs(low - intercept), abs(high - intercept))
    exact = reach == 0 or (whole and reach <= HIGHEST)
    power = 0.0 if exact else np.ceil(np.log2(reach / (HIGHEST - 1)))  # - 1: its decimal may be a little smaller
    slope = float(decimal(2.0**power))
    return Stored(np.rint((values - intercept) / slope).astype(np.int16), slope, intercept)
