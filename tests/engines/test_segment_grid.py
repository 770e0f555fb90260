"""Where results lie: on the scan's own grid whatever its axes, and the same in windows as whole."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from meddiff.config_file import parse_config
from meddiff.diffusion.answered import AnsweredLabels
from meddiff.diffusion.posterior import Posterior
from meddiff.engines.card import Card, build_model
from meddiff.engines.segment import segment
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.nifti import read_nifti, write_nifti
from meddiff.imaging.volume import Volume
from meddiff.tasks.task import Space

LABELS = {"a": 1, "b": 3}
CODES = ["".join(c) for order in permutations(("LR", "PA", "IS")) for c in product(*order)]
TURN = np.array([[0.8, -0.6, 0], [0.48, 0.64, -0.6], [0.36, 0.48, 0.8]])  # no axis of it lies along R, A or S


def config(size, spacing_mm, **sample):
    return parse_config(
        {
            "task": "segmentation",
            "data": {
                "manifest": "none.jsonl",
                "spacing_mm": [spacing_mm] * len(size),
                "size": size,
                "intensity": {"kind": "window", "low": -3, "high": 3},
            },
            "network": {"spatial_dims": len(size), "channels": [8, 16], "blocks": 1},
            "train": {"steps": 1},
            "sample": {"steps": 3, "samples": 1, "sigma_min": 0.3, "batch": 32, **sample},
        },
        "test",
    )


def card():
    space = Space((5.0, 5.0, 5.0), "axial", 1 / 3, 0.0, "MR", "a.u.")
    return Card(sigma_data=0.5, space=space, labels=LABELS, manifest="", train_cases=1, train_items=1)


def random(model):
    """The model with weights that have something to say, as those of a trained one have."""
    torch.manual_seed(0)
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=0.3)
    return model.eval().requires_grad_(False)


def smooth(shape, affine):
    """A scan of smooth random shapes."""
    grain = torch.randn(1, 1, *[-(-n // 3) for n in shape], generator=torch.Generator().manual_seed(3))
    array = nn.functional.interpolate(grain, shape, mode="trilinear")[0, 0].numpy()
    return Volume(array, Geometry(shape, affine), "MR", "a.u.")


@pytest.fixture(scope="module")
def turned():
    """What a model says of a scan and of its 48 rearrangements, which nibabel makes."""
    settings = config([16, 16], 6.0)
    return settings, random(build_model(settings, 0.5, tuple(LABELS)))


@pytest.mark.parametrize("direction", [np.eye(3), TURN], ids=["straight", "oblique"])
def test_label_maps_of_all_48_axis_orders_have_the_affine_of_the_scan_to_the_bit(turned, tmp_path, direction):
    settings, model = turned
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = direction * (5.0, 5.1, 7.0), (-31.3, 12.7, 4.1)
    write_nifti(tmp_path / "scan.nii.gz", smooth((14, 12, 6), affine))
    scan = nib.load(tmp_path / "scan.nii.gz")
    found = {}
    for codes in CODES:
        turn = nib.orientations.ornt_transform(
            nib.io_orientation(scan.affine), nib.orientations.axcodes2ornt(tuple(codes))
        )
        nib.save(scan.as_reoriented(turn), tmp_path / "in.nii.gz")
        volume = read_nifti(tmp_path / "in.nii.gz", modality="MR")
        write_nifti(tmp_path / "out.nii.gz", segment(model, settings, card(), volume, "case", 0).label)
        given, label = nib.load(tmp_path / "in.nii.gz"), nib.load(tmp_path / "out.nii.gz")
        assert given.shape == label.shape
        assert np.array_equal(given.affine, label.affine), codes
        found[codes] = np.asarray(nib.as_closest_canonical(label).dataobj)
    assert len(found) == 48
    assert sorted(np.unique(found["RAS"])) == [0, 1, 3]
    for codes, label in found.items():  # at the edge of two labels rounding may decide
        assert (label == found["RAS"]).mean() > 0.995, codes


class Local(nn.Module):
    """A network that sees two voxels around each, and nothing else: no norm that looks at the whole image."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv3d(inputs, 8, 3, padding=1), nn.Tanh(), nn.Conv3d(8, outputs, 3, padding=1))

    def forward(self, x, c_noise, cond=None):
        image = cond.image if cond else None
        return self.layers(x if image is None else torch.cat([x, image], dim=1))


def test_windows_inside_the_sampler_give_what_the_whole_volume_gives_where_the_network_is_local():
    shape = (44, 40, 19)
    volume = smooth(shape, np.diag([5.0, 5, 5, 1]))
    classes = len(LABELS) + 1
    model = random(Posterior(AnsweredLabels(Local(1, classes), Local(2 * classes + 1, classes), 1), classes))
    results = []
    for size in ((16, 16, 16), shape):
        samples = []
        result = segment(
            model, config(list(size), 5.0, steps=6, overlap=8), card(), volume, "case", 0, on_sample=samples.append
        )
        results.append([result.probability, *(p.numpy() for p in samples)])
    for windows, whole in zip(*results, strict=True):
        assert whole.std() > 0.1
        np.testing.assert_allclose(windows, whole, rtol=0, atol=1e-4)
