"""Surfaces and tissues of an invented head, and the share of each tissue in each voxel of any grid.

Surfaces are signed distances in the head's own axes: x right, y anterior, z superior, mm, origin at the ventricles.
Sizes are those of an adult; nobody's head was used, and there is no face.
"""

from collections.abc import Iterator

import numpy as np

from meddiff.imaging.phantom_head import Head, Lesion
from meddiff.imaging.phantom_shapes import ellipsoid, share, smooth_overlap, smooth_union, tube

TISSUES = ("air", "skin", "fat", "muscle", "compact bone", "spongy bone", "csf", "grey", "white", "lesion")

_POINTS_MM = 2.0  # a voxel is the mean of points no further apart than this ...
_MOST_POINTS = 4  # ... but of no more than this many along an axis, so that small phantoms are quick
_SKIN_MM = 2.0
_MUSCLE_BELOW_MM = 7.5  # below the skin: the neck and the temples; elsewhere the scalp ends in fat
_CHUNK = 2**14  # points at a time, so that the intermediate arrays stay in the processor's cache
_HEMISPHERE_MM = (26.0, -4.0, 14.0)  # the point that the gyri of the right hemisphere are arranged around
_GYRAL_RADIUS_MM = 60.0  # distance from there at which gyri have their nominal width
_LATERAL_VENTRICLE_MM = (  # right side; tubes between two (x, y, z, radius)
    ((5.5, 32.0, 6.0, 3.4), (5.5, 20.0, 12.0, 4.8)),  # frontal horn
    ((5.5, 20.0, 12.0, 4.8), (9.5, -12.0, 19.0, 4.2)),  # body
    ((9.5, -12.0, 19.0, 4.2), (21.0, -36.0, 11.0, 5.5)),  # to the atrium
    ((21.0, -36.0, 11.0, 5.5), (22.0, -58.0, 6.0, 2.0)),  # occipital horn
    ((21.0, -36.0, 11.0, 5.5), (33.0, -20.0, -14.0, 2.2)),  # temporal horn
)
_DEEP_GREY_MM = (  # right side; centre and semi-axes
    ((11.0, -13.0, 3.0), (7.5, 14.0, 8.5)),  # thalamus
    ((14.5, 20.0, 8.0), (4.5, 10.0, 9.0)),  # head of the caudate nucleus
    ((26.0, 4.0, 1.0), (5.5, 16.0, 10.0)),  # putamen
)


def tissue_fractions(head: Head, affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Share of each of `TISSUES` in each voxel, (tissues, *shape) float32 with sum 1; `affine` goes from voxels to mm.

    A voxel is the mean over a sub-grid of points about 2 mm apart, each of which stands for its part of the voxel:
    thin structures lose contrast as in a scanner, and edges are one voxel wide at every size.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    parts = np.ceil(spacing / _POINTS_MM).clip(1, _MOST_POINTS).astype(int)
    width = float(np.cbrt(np.prod(spacing / parts)))
    inside = [(np.arange(n) + 0.5) / n - 0.5 for n in parts]
    offsets = np.stack(np.meshgrid(*inside, indexing="ij"), axis=-1).reshape(-1, 3)

    fractions = np.zeros((len(TISSUES), int(np.prod(shape))), np.float32)
    fractions[TISSUES.index("air")] = 1
    for voxels in _head_voxels(head, affine, shape, margin_mm=float(np.linalg.norm(spacing)), points=len(offsets)):
        p = _points(head, affine, _index(voxels, shape)[:, None] + offsets)
        found = _tissues_at(head, p, width)
        fractions[:, voxels] = found.reshape(len(TISSUES), len(voxels), len(offsets)).mean(-1)
    return fractions.reshape(len(TISSUES), *shape)


def _head_voxels(
    head: Head, affine: np.ndarray, shape: tuple[int, int, int], *, margin_mm: float, points: int
) -> Iterator[np.ndarray]:
    """Flat indices of the voxels that the head may reach, in chunks that suit the processor's cache."""
    every = np.arange(int(np.prod(shape)))
    near = []
    for voxels in (every[start : start + _CHUNK] for start in range(0, len(every), _CHUNK)):
        p = _points(head, affine, _index(voxels, shape))
        near.append(voxels[_scalp(head, p, _cavity(*_brain_parts(p)), thickness=0.0) < margin_mm + 3.0])
    chosen = np.concatenate(near)
    step = max(1, _CHUNK // points)
    yield from (chosen[start : start + step] for start in range(0, len(chosen), step))


def _index(voxels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    return np.stack(np.unravel_index(voxels, shape), axis=-1).astype(np.float64)  # (n, 3)


def _points(head: Head, affine: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Voxel indices (..., 3) as points (3, n) of the nominal head: pose, size and slow deformation taken out."""
    to_head = head.rotation.T @ affine[:3, :3]
    origin = head.rotation.T @ (affine[:3, 3] - head.shift_mm)
    p = (to_head @ index.reshape(-1, 3).T + origin[:, None]) / head.stretch[:, None]
    p = p.astype(np.float32)
    return p + np.float32(head.warp_mm) * np.stack([waves(p) for waves in head.warp])


def _tissues_at(head: Head, p: np.ndarray, width: float) -> np.ndarray:
    """Share of each tissue around each point, (tissues, n)."""
    cerebrum, cerebellum, stem = _brain_parts(p)
    cavity = _cavity(cerebrum, cerebellum, stem)
    thickness = head.thickness(p)
    bone = cavity - np.float32(head.skull_mm) * (1 + np.float32(0.12) * thickness)
    scalp = _scalp(head, p, cavity, thickness)
    table = np.float32(0.3 * head.skull_mm)  # the compact layer on either side of the spongy bone

    in_scalp, in_cavity = share(scalp, width), share(cavity, width)
    in_bone = np.minimum(share(bone, width), in_scalp)
    soft = in_scalp - in_bone
    skin = np.minimum(in_scalp - share(scalp + _SKIN_MM, width), soft)
    muscle = np.minimum(share(scalp + _MUSCLE_BELOW_MM, width), soft - skin)
    hard = in_bone - in_cavity
    spongy = np.clip(share(bone + table, width) - share(cavity - table, width), 0, hard)
    around = [1 - in_scalp, skin, soft - skin - muscle, muscle, hard - spongy, spongy]
    out = np.zeros((len(TISSUES), p.shape[1]), np.float32)
    out[: len(around)] = around

    inner = np.flatnonzero(in_cavity > 0)
    parts = cerebrum[inner], cerebellum[inner], stem[inner]
    out[len(around) :, inner] = in_cavity[inner] * _brain_at(head, p[:, inner], parts, thickness[inner], width)
    return out


def _brain_at(
    head: Head, p: np.ndarray, parts: tuple[np.ndarray, ...], thickness: np.ndarray, width: float
) -> np.ndarray:
    """Share of CSF, grey, white and lesion among what fills the skull, (4, n)."""
    cerebrum, cerebellum, stem = parts
    pial, core = _cerebrum_surface(head, p, cerebrum, thickness)
    folia, arbor = _cerebellum_surface(p, cerebellum)
    in_ventricles = share(_ventricles(head, p), width)
    in_brain = np.maximum.reduce([share(pial, width), share(folia, width), share(stem, width)]) * (1 - in_ventricles)
    in_core = np.maximum.reduce([share(core, width), share(arbor, width), share(stem, width)])
    in_core = np.minimum(in_core * (1 - share(_deep_grey(p), width)), in_brain)
    if head.lesion is None:
        return np.stack([1 - in_brain, in_brain - in_core, in_core, np.zeros_like(in_brain)])
    in_lesion = share(np.maximum(_lesion(head.lesion, p), cerebrum + 1.5), width)
    grey, white = (in_brain - in_core) * (1 - in_lesion), in_core * (1 - in_lesion)
    lesion = in_lesion * (1 - in_ventricles)  # it fills the sulci and pushes up to the ventricles
    return np.stack([1 - grey - white - lesion, grey, white, lesion])


def _brain_parts(p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances to the hulls of cerebrum and cerebellum and to the brain stem with the cord."""
    side = _right(p)
    front = ellipsoid(p, (0.0, 20.0, 4.0), (55.0, 60.0, 58.0))
    hull = smooth_union(front, ellipsoid(p, (0.0, -26.0, 7.0), (64.0, 58.0, 60.0)), 30.0)
    floor = -16.0 - np.float32(0.12) * p[1] - p[2]
    upper = smooth_overlap(hull, floor, 22.0)
    temporal = ellipsoid(side, (37.0, 2.0, -20.0), (25.0, 38.0, 20.0))
    vermis = ellipsoid(p, (0.0, -50.0, -33.0), (14.0, 25.0, 21.0))
    cerebellum = smooth_union(ellipsoid(side, (25.0, -50.0, -36.0), (26.0, 28.0, 19.0)), vermis, 8.0)
    stem = tube(p, (0.0, -14.0, -8.0, 13.0), (0.0, -22.0, -34.0, 13.0))
    stem = smooth_union(stem, tube(p, (0.0, -24.0, -40.0, 9.0), (0.0, -34.0, -80.0, 5.5)), 6.0)
    stem = np.minimum(stem, tube(p, (0.0, -34.0, -80.0, 5.5), (0.0, -34.0, -220.0, 5.0)))
    cerebrum = np.maximum(smooth_union(upper, temporal, 14.0), 1.6 - cerebellum)
    return cerebrum, cerebellum, stem


def _cavity(cerebrum: np.ndarray, cerebellum: np.ndarray, stem: np.ndarray) -> np.ndarray:
    """Distance to the inside of the skull and of the spinal canal, which the brain leaves to CSF by a few mm."""
    return smooth_union(smooth_union(cerebrum, cerebellum, 18.0), stem, 14.0) - np.float32(2.4)


def _right(p: np.ndarray) -> np.ndarray:
    """The points mirrored to the right side."""
    return np.concatenate([np.abs(p[:1]), p[1:]])


def _scalp(head: Head, p: np.ndarray, cavity: np.ndarray, thickness: np.ndarray | float) -> np.ndarray:
    """Distance to the skin: the skull wrapped, and blended into a neck and a blank lower front."""
    wrapped = cavity - np.float32(head.skull_mm + head.scalp_mm) - np.float32(0.8) * thickness
    neck = tube(p, (0.0, -24.0, -40.0, 50.0), (0.0, -34.0, -260.0, 54.0))
    front = ellipsoid(p, (0.0, 28.0, -48.0), (50.0, 54.0, 50.0))
    return smooth_union(smooth_union(wrapped, front, 30.0), neck, 30.0)


def _cerebrum_surface(
    head: Head, p: np.ndarray, cerebrum: np.ndarray, thickness: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the folded surface of the cortex and to that of the white matter below it."""
    hemisphere = np.maximum(cerebrum, -_fissure(p))
    depth = -hemisphere
    limit = np.float32(head.depth_mm) * (1 + np.float32(0.2) * thickness)
    taper = np.clip(1 - np.float32(0.6) * depth / limit, 0.3, 1.2)
    sulcus = np.maximum(_sulcal_distance(head, p) - np.float32(head.sulcus_mm) * taper, depth - limit)
    sulcus = np.minimum(sulcus, _sylvian(head, p, depth))
    pial = smooth_overlap(hemisphere, -sulcus, 2.0)
    return pial, pial + np.float32(head.cortex_mm)


def _fissure(p: np.ndarray) -> np.ndarray:
    """Distance to the gap between the hemispheres, which ends at the corpus callosum."""
    wobble = np.sin(p[1] * 0.06) + np.sin(p[2] * 0.07 + 1.0)
    callosum = ellipsoid(p, (0.0, -6.0, 2.0), (200.0, 42.0, 27.0))
    return np.maximum(np.abs(p[0] - wobble) - np.float32(1.2), -callosum)


def _sulcal_distance(head: Head, p: np.ndarray) -> np.ndarray:
    """Distance to the sheets that sulci run along: zeros of a random field, |g| / |grad g|, mostly normal to the hull.

    The field is read at q = r sqrt(R / |r|) with r from the middle of the hemisphere: half the variation along r.
    """
    right = p[0] > 0
    r = p - np.array(_HEMISPHERE_MM, np.float32)[:, None]
    r[0, ~right] += np.float32(2 * _HEMISPHERE_MM[0])
    length = np.maximum(np.sqrt((r * r).sum(0)), 1.0)
    stretch = np.sqrt(np.float32(_GYRAL_RADIUS_MM) / length)
    value, slope = np.empty_like(length), np.empty_like(length)
    for waves, side in zip(head.gyri, (~right, right), strict=True):
        unit = r[:, side] / length[side]
        g, gradient = waves.with_gradient(r[:, side] * stretch[side])
        along = (gradient * unit).sum(0)
        value[side] = g
        slope[side] = np.sqrt((gradient * gradient).sum(0) - np.float32(0.75) * along * along)
    return np.abs(value) / (stretch * slope + np.float32(0.04))


def _sylvian(head: Head, p: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Distance to the lateral fissure, the deep fold above the temporal lobe."""
    across = p[2] + 6.0 + np.float32(0.4) * p[1] + 2 * np.sin(p[1] * 0.11 + p[0] * 0.07)
    half = np.float32(0.3 + 0.8 * head.sulcus_mm) * np.clip(1.2 - depth / 24, 0.3, 1)
    sheet = np.abs(across) * np.float32(0.93) - half
    return np.maximum.reduce([sheet, depth - 22.0, np.abs(p[1] - 4.0) - 28.0, 36.0 - np.abs(p[0])])


def _cerebellum_surface(p: np.ndarray, cerebellum: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the foliated surface of the cerebellum and to the white matter in it."""
    height = p[2] + np.float32(0.25) * np.abs(p[0]) + np.sin(p[0] * 0.12) - np.float32(0.2) * p[1]
    sheet = np.abs(np.mod(height, 7.0) - 3.5)
    folia = np.maximum(cerebellum, -np.maximum(sheet - 0.6, -cerebellum - 8.0))
    return folia, np.maximum(folia + 2.2, cerebellum + 5.0)


def _ventricles(head: Head, p: np.ndarray) -> np.ndarray:
    """Distance to the ventricles: two butterfly wings, the slit of the third, the fourth behind the stem."""
    side = _right(p)
    scale = head.ventricle
    wings = [tube(side, start, end, scale) for start, end in _LATERAL_VENTRICLE_MM]
    lateral = wings[0]
    for wing in wings[1:]:
        lateral = smooth_union(lateral, wing, 4.0)
    lateral = np.maximum(lateral, 1.0 - side[0])  # the septum
    third = ellipsoid(p, (0.0, -4.0, -1.0), (1.6 + 1.0 * scale, 13.0, 9.0))
    fourth = ellipsoid(p, (0.0, -36.0, -34.0), (7.0, 3.0 + 1.5 * scale, 9.0))
    return np.minimum.reduce([lateral, third, fourth])


def _deep_grey(p: np.ndarray) -> np.ndarray:
    side = _right(p)
    return np.minimum.reduce([ellipsoid(side, centre, semi) for centre, semi in _DEEP_GREY_MM])


def _lesion(lesion: Lesion, p: np.ndarray) -> np.ndarray:
    return ellipsoid(p, lesion.centre_mm, lesion.semi_mm) + np.float32(1.2) * lesion.outline(p)
