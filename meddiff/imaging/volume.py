"""An image or a label map that knows where it is."""

from dataclasses import dataclass

import numpy as np

from meddiff.errors import GeometryError
from meddiff.imaging.geometry import Geometry


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels and their geometry."""

    array: np.ndarray  # (I, J, K), float32 for images, integer for label maps; index order of the geometry
    geometry: Geometry
    modality: str = "OT"  # DICOM's word (PS3.3 C.7.3.1.1.1): CT, MR, PT, SEG; OT for anything else
    unit: str = "a.u."  # "HU" for CT, "label" for label maps, "a.u." where the number means nothing by itself

    def __post_init__(self) -> None:
        if self.array.shape != self.geometry.shape:
            raise GeometryError(
                f"The array has shape {self.array.shape}, its geometry {self.geometry.shape}; index order is (I, J, K)."
            )

    def __repr__(self) -> str:
        low, high = self.array.min(), self.array.max()
        return f"Volume({self.modality}, {self.array.dtype}, {low:.4g} to {high:.4g} {self.unit}, {self.geometry!r})"
