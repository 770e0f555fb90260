"""Signed distances in millimetres, negative inside, and the random fields that roughen them; points are (3, n).

A distance is right to first order near the surface, where `share` turns it into the share of a voxel's volume.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Waves:
    """A band-limited random field, the mean-free sum of plane waves; standard deviation about 1."""

    vectors: np.ndarray  # (n, 3) rad/mm
    phases: np.ndarray  # (n,)

    @classmethod
    def draw(cls, rng: np.random.Generator, n: int, wavelength_mm: tuple[float, float]) -> "Waves":
        """`n` waves in directions spread over the sphere, lengths uniform in the given range."""
        vectors = rng.normal(size=(n, 3))
        vectors *= 2 * np.pi / np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors /= rng.uniform(*wavelength_mm, size=(n, 1))
        return cls(vectors.astype(np.float32), rng.uniform(0, 2 * np.pi, size=n).astype(np.float32))

    def __call__(self, p: np.ndarray) -> np.ndarray:
        """Value at points (3, n), shape (n,)."""
        return _scale(self) * np.cos(self._angle(p)).sum(0)

    def with_gradient(self, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Value (n,) and gradient (3, n) in 1/mm at points (3, n)."""
        angle = self._angle(p)
        return _scale(self) * np.cos(angle).sum(0), -_scale(self) * (self.vectors.T @ np.sin(angle))

    def _angle(self, p: np.ndarray) -> np.ndarray:
        return self.vectors @ p + self.phases[:, None]


def _scale(waves: Waves) -> np.float32:
    return np.float32(np.sqrt(2 / len(waves.phases)))


def share(distance: np.ndarray, width: float) -> np.ndarray:
    """Share of a voxel `width` mm wide that lies inside a surface at `distance` from its centre, 0 to 1."""
    return np.clip(np.float32(0.5) - distance * np.float32(1 / width), 0, 1)


def ellipsoid(p: np.ndarray, centre: tuple[float, ...], semi: tuple[float, ...]) -> np.ndarray:
    """Distance to an axis-aligned ellipsoid, first order: f (f - 1) / |grad f| with f the scaled radius."""
    q = (p - _column(centre)) / _column(semi)
    radius = np.sqrt(_squared(q))
    slope = np.sqrt(_squared(q / _column(semi)))
    return radius * (radius - 1) / np.maximum(slope, 1e-6)


def tube(p: np.ndarray, start: tuple[float, ...], end: tuple[float, ...], scale: float = 1.0) -> np.ndarray:
    """Distance to a rounded tube between two (x, y, z, radius), the radii times `scale` and linear in between."""
    a, b = _column(start[:3]), _column(end[:3])
    axis = b - a
    along = np.clip((axis.T @ (p - a))[0] / np.float32(_squared(axis)[0]), 0, 1)
    radius = np.float32(start[3] * scale) + along * np.float32((end[3] - start[3]) * scale)
    return np.sqrt(_squared(p - a - axis * along)) - radius


def smooth_union(a: np.ndarray, b: np.ndarray, blend_mm: float) -> np.ndarray:
    """Distance to the union with a fillet of about `blend_mm` where the two surfaces meet."""
    mix = np.maximum(np.float32(blend_mm) - np.abs(a - b), 0)
    return np.minimum(a, b) - mix * mix * np.float32(0.25 / blend_mm)


def smooth_overlap(a: np.ndarray, b: np.ndarray, blend_mm: float) -> np.ndarray:
    """Distance to the intersection, its edges rounded by about `blend_mm`."""
    return -smooth_union(-a, -b, blend_mm)


def _column(values: tuple[float, ...]) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


def _squared(p: np.ndarray) -> np.ndarray:
    return p[0] * p[0] + p[1] * p[1] + p[2] * p[2]
