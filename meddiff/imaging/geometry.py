"""Where the voxels of a volume are: shape, and an affine from voxel index to RAS millimetres. Pure numpy.

RAS: the first patient axis points to the right, the second to the front, the third to the head. DICOM's own axes are
LPS (PS3.3 C.7.6.2.1.1); they exist at the DICOM border only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np

from meddiff.errors import GeometryError

LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))  # negative and positive end of each RAS axis
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Geometry:
    """A grid of voxels in the patient."""

    shape: tuple[int, int, int]  # voxels (I, J, K)
    affine: np.ndarray  # (4, 4) float64, index of a voxel's centre -> RAS mm

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        affine = np.array(self.affine, dtype=np.float64)
        if len(shape) != 3 or min(shape) < 1:
            raise GeometryError(f"A volume has three axes of at least one voxel; found shape {shape}.")
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.array_equal(affine[3], [0, 0, 0, 1]):
            raise GeometryError(
                f"An affine is a finite (4, 4) matrix with the last row 0 0 0 1; found {affine.tolist()}."
            )
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if lengths.min() == 0 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
            raise GeometryError(
                f"The affine {affine.tolist()} is singular: two voxel axes have one direction. Repair the header."
            )
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def from_lps(cls, shape: Sequence[int], affine_lps: np.ndarray) -> "Geometry":
        """From an affine to DICOM's patient axes."""
        i, j, k = shape
        return cls((i, j, k), LPS @ np.asarray(affine_lps, dtype=np.float64))

    @classmethod
    def make(cls, shape: Sequence[int], spacing_mm: Sequence[float], orientation: str = "RAS") -> "Geometry":
        """An upright grid with its centre at 0.

        >>> Geometry.make((4, 4, 2), (1, 1, 3), "LPS").orientation
        'LPS'
        """
        i, j, k = shape
        affine = np.eye(4)
        for axis, letter in enumerate(orientation):
            patient = next(a for a, ends in enumerate(LETTERS) if letter in ends)
            affine[:3, axis] = 0
            affine[patient, axis] = spacing_mm[axis] * (1 if letter == LETTERS[patient][1] else -1)
        affine[:3, 3] = -affine[:3, :3] @ ((np.array([i, j, k]) - 1) / 2)
        return cls((i, j, k), affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between the centres of neighbours, per voxel axis."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return i, j, k

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000

    @property
    def orientation(self) -> str:
        """The nearest patient axis of each voxel axis, for instance "LPS"; each patient axis is used once."""
        directions = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        best = max(permutations(range(3)), key=lambda p: sum(abs(directions[p[i], i]) for i in range(3)))
        return "".join(LETTERS[axis][int(directions[axis, i] > 0)] for i, axis in enumerate(best))

    def corners_mm(self) -> np.ndarray:
        """The centres of the eight corner voxels, (8, 3) RAS mm."""
        index = np.array(list(product(*((0, n - 1) for n in self.shape))))
        return index @ self.affine[:3, :3].T + self.affine[:3, 3]

    def close(self, other: "Geometry", tolerance_mm: float = 1e-3) -> bool:
        """Whether both have one shape and every corner voxel, and its size, agrees within the tolerance."""
        return (
            self.shape == other.shape
            and float(np.abs(self.corners_mm() - other.corners_mm()).max()) <= tolerance_mm
            and float(np.abs(self.affine[:3, :3] - other.affine[:3, :3]).max()) <= tolerance_mm
        )

    def lps(self) -> np.ndarray:
        """The affine to DICOM's patient axes, (4, 4)."""
        return LPS @ self.affine

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.shape))
        spacing = " x ".join(f"{s:.4g}" for s in self.spacing_mm)
        return f"Geometry({size} voxels, {spacing} mm, {self.orientation})"
