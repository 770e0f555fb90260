"""Make a cohort of real anatomy: random smooth warps of the MNI152 head that nilearn ships, with tissue labels.

    python scripts/mni_cohort.py data/mni --subjects 48

Each subject is the T1-weighted template under its own affine and B-spline warp, with its own contrast and bias field. The
result is a BIDS-like folder: sub-001/anat/sub-001_T1w.nii.gz and sub-001_dseg.nii.gz (1 CSF, 2 grey, 3 white matter).
The cohort shows real anatomy at one remove: its subjects are all warps of one template.
"""

import argparse
import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nilearn import datasets
from rich.progress import track

from meddiff.imaging.geometry import Geometry
from meddiff.imaging.nifti import write_nifti
from meddiff.imaging.volume import Volume
from meddiff.seeds import derive

LABELS = {1: "csf", 2: "grey matter", 3: "white matter"}
MESH = 5  # B-spline cells per axis
WARP_MM = 5.0  # standard deviation of the control points' displacement


def to_sitk(image: nib.Nifti1Image) -> sitk.Image:
    """The template as a SimpleITK image, in LPS."""
    out = sitk.GetImageFromArray(np.ascontiguousarray(image.get_fdata(dtype=np.float32).T))
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    out.SetSpacing(spacing.tolist())
    out.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    out.SetOrigin(lps[:3, 3].tolist())
    return out


def grid(image: sitk.Image, spacing_mm: float) -> sitk.Image:
    """An empty image over the same space, with cubic voxels."""
    size = [int(n * s / spacing_mm) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    out = sitk.Image(size, sitk.sitkFloat32)
    out.SetSpacing([spacing_mm] * 3)
    out.SetDirection(image.GetDirection())
    out.SetOrigin(image.GetOrigin())
    return out


def warp(template: sitk.Image, rng: np.random.Generator) -> sitk.Transform:
    """A small rotation, zoom and shear-free affine, after a smooth B-spline displacement."""
    centre = template.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in template.GetSize()])
    zoom = sitk.ScaleTransform(3, rng.normal(1.0, 0.04, 3).tolist())
    zoom.SetCenter(centre)
    turn = sitk.Euler3DTransform(centre, *np.deg2rad(rng.normal(0, 3, 3)).tolist())
    spline = sitk.BSplineTransformInitializer(template, [MESH] * 3, order=3)
    spline.SetParameters(rng.normal(0, WARP_MM, len(spline.GetParameters())).tolist())
    return sitk.CompositeTransform([turn, zoom, spline])


def bias(like: sitk.Image, rng: np.random.Generator) -> np.ndarray:
    """A smooth multiplicative field around 1, (K, J, I)."""
    coarse = sitk.GetImageFromArray(rng.normal(0, 0.12, (4, 4, 4)))
    size = like.GetSize()
    field = sitk.Resample(coarse, size, sitk.Transform(), sitk.sitkBSpline, (0, 0, 0), [3.0 / (n - 1) for n in size])
    return np.exp(sitk.GetArrayFromImage(field))


def subject(
    templates: list[sitk.Image], spacing_mm: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, sitk.Image]:
    """T1-weighted image and labels, (I, J, K), and the grid they lie on."""
    on = grid(templates[0], spacing_mm)
    change = warp(templates[0], rng)
    t1, grey, white = (sitk.GetArrayFromImage(sitk.Resample(t, on, change, sitk.sitkLinear, 0.0)) for t in templates)
    brain = t1 > 0.08 * np.percentile(t1, 99)
    tissue = np.argmax([np.full_like(t1, 0.35), grey, white], axis=0) + 1
    contrast = np.clip(t1 / np.percentile(t1[brain], 99), 0, None) ** rng.uniform(0.85, 1.2)
    image = 1000 * contrast * bias(on, rng) + rng.normal(0, 8, t1.shape)
    return np.maximum(image, 0).T.astype(np.float32), np.where(brain, tissue, 0).T.astype(np.int16), on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--subjects", type=int, default=48)
    parser.add_argument("--spacing", type=float, default=2.0, help="mm, of cubic voxels (default: 2)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    loaders = (datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    blur = options.spacing / 2
    templates = [sitk.SmoothingRecursiveGaussian(to_sitk(load(resolution=1)), blur) for load in loaders]
    options.folder.mkdir(parents=True, exist_ok=True)
    with (options.folder / "dseg.tsv").open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerows([("index", "name"), *LABELS.items()])
    for number in track(range(1, options.subjects + 1), "Warping"):
        rng = np.random.default_rng(derive(options.seed, "mni", number))
        image, label, on = subject(templates, options.spacing, rng)
        direction = np.array(on.GetDirection()).reshape(3, 3) * np.array(on.GetSpacing())
        lps = np.block([[direction, np.array(on.GetOrigin())[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]])
        place = Geometry.from_lps(image.shape, lps)
        anat = options.folder / f"sub-{number:03d}" / "anat"
        write_nifti(anat / f"sub-{number:03d}_T1w.nii.gz", Volume(image, place, "MR"))
        write_nifti(anat / f"sub-{number:03d}_dseg.nii.gz", Volume(label, place, "SEG", "label"))


if __name__ == "__main__":
    main()
