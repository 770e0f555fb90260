"""What is drawn once for an invented patient; the surfaces and every image follow from it."""

from dataclasses import dataclass

import numpy as np

from meddiff.imaging.phantom_shapes import Waves


@dataclass(frozen=True, eq=False)
class Lesion:
    """A blob in the brain: bleeding or infarct."""

    bleeding: bool
    centre_mm: tuple[float, ...]
    semi_mm: tuple[float, ...]
    outline: Waves  # what makes it irregular


@dataclass(frozen=True, eq=False)
class Head:
    """Pose, size, shape and state of one head; lengths in mm."""

    rotation: np.ndarray  # (3, 3), the head's axes in the scanner's
    shift_mm: np.ndarray  # (3,), the head's origin in the scanner
    stretch: np.ndarray  # (3,), size of this head over the nominal one
    warp: tuple[Waves, Waves, Waves]  # slow deformation, so that left and right differ
    warp_mm: float
    skull_mm: float
    scalp_mm: float
    thickness: Waves  # slow variation of skull, scalp and sulcal depth
    gyri: tuple[Waves, Waves]  # left, right: sulci run where the field is zero
    sulcus_mm: float  # half width of a sulcus at the surface; grows with atrophy
    depth_mm: float  # mean depth of the sulci
    cortex_mm: float
    ventricle: float  # radius over the nominal one
    lesion: Lesion | None


def draw_head(rng: np.random.Generator) -> Head:
    """A random head; about half have a lesion."""
    atrophy = rng.uniform()
    return Head(
        rotation=_rotation(np.radians(rng.normal(0, (4.0, 2.5, 4.0)).clip(-8, 8))),
        shift_mm=rng.uniform(-4, 4, size=3) + np.array((0.0, 4.0, 17.0)),
        stretch=rng.uniform(0.96, 1.04) * rng.uniform(0.97, 1.03, size=3),
        warp=(_slow(rng), _slow(rng), _slow(rng)),
        warp_mm=rng.uniform(0.6, 1.5),
        skull_mm=rng.uniform(6.0, 8.0),
        scalp_mm=rng.uniform(5.0, 8.0),
        thickness=Waves.draw(rng, 8, (50.0, 90.0)),
        gyri=(Waves.draw(rng, 40, (22.0, 30.0)), Waves.draw(rng, 40, (22.0, 30.0))),
        sulcus_mm=0.6 + 0.9 * atrophy,
        depth_mm=rng.uniform(13.0, 18.0),
        cortex_mm=rng.uniform(2.7, 3.2),
        ventricle=0.75 + 0.7 * atrophy + rng.uniform(-0.1, 0.25),
        lesion=_draw_lesion(rng) if rng.uniform() < 0.5 else None,
    )


def _draw_lesion(rng: np.random.Generator) -> Lesion:
    """Deep or below the cortex, on either side, 18 to 50 mm across."""
    direction = np.array([rng.choice([-1, 1]) * rng.uniform(0.35, 1), rng.uniform(-1, 1), rng.uniform(-0.1, 0.8)])
    direction *= rng.uniform(0.5, 0.8) / np.linalg.norm(direction)
    bleeding = bool(rng.uniform() < 0.5)
    radius = rng.uniform(9, 18) if bleeding else rng.uniform(11, 22)
    return Lesion(
        bleeding=bleeding,
        centre_mm=tuple(direction * (58.0, 74.0, 58.0) + np.array((0.0, 0.0, 10.0))),
        semi_mm=tuple(radius * rng.uniform(0.8, 1.2, size=3)),
        outline=Waves.draw(rng, 10, (14.0, 30.0)),
    )


def _slow(rng: np.random.Generator) -> Waves:
    return Waves.draw(rng, 5, (110.0, 200.0))


def _rotation(angles: np.ndarray) -> np.ndarray:
    """Rotation about x, then y, then z, by angles in radians; (3, 3)."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x
