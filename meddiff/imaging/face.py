"""Removal of the face from a scan of a head: a plane that touches the brain from before and below, and nothing behind it.

After Quickshear (Schimke and Hale 2011), with the brain found here instead of by another program: tissue that the skull
separates from the scalp. The plane keeps `MARGIN_MM` from the convex hull of the brain, so that no brain voxel is touched
where the brain was found whole. Where no brain of a plausible size is found, FaceError: nothing is removed by guess.
"""

import numpy as np
import SimpleITK as sitk

from meddiff.errors import ImageError
from meddiff.imaging.volume import Volume

WORKING_MM = 2.0  # grid on which the brain is looked for
NECKS_MM = (
    6.0,
    8.0,
    10.0,
)  # erosions that break nerves, vessels and the neck's connections to the brain, in this order
MARGIN_MM = 8.0  # between the brain's hull and the plane
SPINE_MM = 10.0  # in front of the brain's middle: what lies behind is spared, so that the spinal cord is
BRAIN_ML = (500.0, 2400.0)  # of infants and adults, with the liquor that is found with it
BRAIN_MM = ((85, 175), (110, 210), (75, 190))  # extent right-left, front-back, bottom-top
ANGLES = np.radians(np.arange(15, 61, 5))  # of the plane's normal below the horizontal
BRAIN_HU = (0.0, 120.0)


class FaceError(ImageError):
    """No head or no brain is found in a scan, so no face can be removed from it."""


def face_mask(volume: Volume) -> np.ndarray:
    """True for the voxels before and below the brain: eyes, nose, mouth, and the air before them; the volume's shape.

    FaceError where the scan shows no whole brain.
    """
    image = _on_working_grid(volume)
    brain = _brain(image, volume.modality)
    front, offset = _plane(brain[:, 1:], _mm(_head(image, volume.modality), image)[:, 1:])
    middle = brain[:, 1].mean() + SPINE_MM
    affine = volume.geometry.affine
    y, z = (
        affine[row, 3] + sum(
            affine[row, axis] * np.arange(n).reshape([-1 if a == axis else 1 for a in range(3)])
            for axis, n in enumerate(volume.geometry.shape)
        )
        for row in (1, 2)
    )  # fmt: skip
    return np.asarray((y * front[0] + z * front[1] > offset) & (y > middle))


def without_face(volume: Volume) -> tuple[Volume, np.ndarray]:
    """The scan with its lowest value in `face_mask`, and that mask."""
    mask = face_mask(volume)
    array = volume.array.copy()
    array[mask] = array.min()
    return Volume(array, volume.geometry, volume.modality, volume.unit), mask


def _on_working_grid(volume: Volume) -> sitk.Image:
    """The scan on a RAS grid of cubes that holds all of it; coordinates are RAS mm."""
    corners = volume.geometry.corners_mm()
    low, high = corners.min(0), corners.max(0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.T.astype(np.float32)))
    affine, spacing = volume.geometry.affine, np.array(volume.geometry.spacing_mm)
    image.SetSpacing(spacing.tolist())
    direction = affine[:3, :3] / spacing
    u, _, v = np.linalg.svd(direction)
    image.SetDirection((u @ v).ravel().tolist())  # the nearest rotation; a sheared grid is off by its shear only
    image.SetOrigin(affine[:3, 3].tolist())
    size = [max(int(np.ceil(e / WORKING_MM)), 1) for e in high - low]
    smooth = sitk.SmoothingRecursiveGaussian(image, 1.0) if min(image.GetSize()) >= 4 else image
    return sitk.Resample(
        smooth, size, sitk.Transform(), sitk.sitkLinear, low.tolist(), [WORKING_MM] * 3, np.eye(3).ravel().tolist(),
        float(volume.array.min()),
    )  # fmt: skip


def _head(image: sitk.Image, modality: str) -> sitk.Image:
    """Everything that is no air, filled."""
    threshold = -300.0 if modality == "CT" else 0.5 * _otsu(image)
    mask = sitk.BinaryMorphologicalClosing(image > threshold, [3] * 3)
    return sitk.BinaryFillhole(_largest(mask))


def _brain(image: sitk.Image, modality: str) -> np.ndarray:
    """RAS positions, (n, 3) mm, of the largest soft tissue that stays whole when thin connections are broken."""
    if modality == "CT":
        tissue = sitk.BinaryMedian(sitk.And(image > BRAIN_HU[0], image < BRAIN_HU[1]), [1] * 3)
    else:
        tissue = image > _otsu(image)
    near = sitk.BinaryDilate(tissue, [1] * 3)
    for neck in NECKS_MM:
        radius = [round(neck / WORKING_MM)] * 3
        core = _largest(sitk.BinaryErode(tissue, radius, sitk.sitkBall, 0.0, 1.0, False))
        grown = sitk.BinaryDilate(core, [radius[0] + 1] * 3, sitk.sitkBall)
        points = _mm(sitk.BinaryFillhole(sitk.And(grown, near)), image)
        if _is_brain(points):
            return points
    shown = " x ".join(f"{e:.0f}" for e in np.ptp(points, axis=0))
    raise FaceError(
        f"No whole brain is found: the likeliest tissue has {_ml(points):.0f} ml and {shown} mm, a brain has "
        f"{BRAIN_ML[0]:.0f} to {BRAIN_ML[1]:.0f} ml. Remove the face with another program, or leave out --strip-face."
    )


def _is_brain(points: np.ndarray) -> bool:
    extent = zip(np.ptp(points, axis=0), BRAIN_MM, strict=True)
    return BRAIN_ML[0] <= _ml(points) <= BRAIN_ML[1] and all(low <= e <= high for e, (low, high) in extent)


def _ml(points: np.ndarray) -> float:
    return len(points) * WORKING_MM**3 / 1000


def _otsu(image: sitk.Image) -> float:
    values = sitk.GetArrayViewFromImage(image)
    high = float(np.percentile(values, 99.5))
    clipped = sitk.Clamp(image, sitk.sitkFloat32, float(values.min()), high)
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.Execute(clipped)
    return float(otsu.GetThreshold())


def _largest(mask: sitk.Image) -> sitk.Image:
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(mask))
    if not sitk.GetArrayViewFromImage(parts).any():
        raise FaceError("No head is found: the scan shows no body of its size. Leave out --strip-face for it.")
    return parts == 1


def _mm(mask: sitk.Image, image: sitk.Image) -> np.ndarray:
    """RAS positions of the voxels of a mask, (n, 3) mm."""
    k, j, i = np.nonzero(sitk.GetArrayViewFromImage(mask))
    return np.array(image.GetOrigin()) + WORKING_MM * np.stack([i, j, k], axis=1)


def _plane(brain: np.ndarray, head: np.ndarray) -> tuple[np.ndarray, float]:
    """Normal (forward, up) and offset in mm of the plane that cuts off most of the front half of the head."""
    front = head[head[:, 0] > brain[:, 0].mean()]
    best: tuple[int, np.ndarray, float] | None = None
    for angle in ANGLES:
        normal = np.array([np.cos(angle), -np.sin(angle)])
        offset = float((brain @ normal).max()) + MARGIN_MM
        cut = int((front @ normal > offset).sum())
        if best is None or cut > best[0]:
            best = (cut, normal, offset)
    assert best is not None
    return best[1], best[2]
