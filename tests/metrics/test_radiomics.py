import pytest
import torch
from scipy import stats
from skimage.feature import graycomatrix, graycoprops

from meddiff.errors import MetricError
from meddiff.metrics.radiomics import LEVELS, NAMES, radiomics


def images(n=3, size=(16, 12), seed=0):
    return torch.rand(n, 1, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def named(batch):
    return dict(zip(NAMES, radiomics(batch).T, strict=True))


def test_texture_is_scikit_image_s():
    batch = images()
    found = named(batch)
    for i, image in enumerate(batch[:, 0].numpy()):
        levels = ((image + 1) / 2 * LEVELS).astype("uint8")
        for d in (1, 4):
            # the diagonals of scikit-image are rounded for d > 1, so offsets are given as its angles do for d = 1 only
            if d == 1:
                angles = [0, torch.pi / 4, torch.pi / 2, 3 * torch.pi / 4]
                p = graycomatrix(levels, [1], angles, LEVELS, symmetric=True).sum(3, keepdims=True).astype(float)
            else:
                p = (
                    graycomatrix(levels, [4], [0, torch.pi / 2], LEVELS, symmetric=True)
                    .sum(3, keepdims=True)
                    .astype(float)
                )
                diagonal = 4 * 2**0.5
                p += graycomatrix(levels, [diagonal], [torch.pi / 4, 3 * torch.pi / 4], LEVELS, symmetric=True).sum(
                    3, keepdims=True
                )
            p /= p.sum()
            for ours, theirs in (
                ("contrast", "contrast"),
                ("dissimilarity", "dissimilarity"),
                ("homogeneity", "homogeneity"),
                ("energy", "ASM"),
                ("correlation", "correlation"),
            ):
                assert float(found[f"{ours}_{d}"][i]) == pytest.approx(graycoprops(p, theirs)[0, 0], rel=1e-9), (
                    ours,
                    d,
                )
            assert float(found[f"joint_entropy_{d}"][i]) == pytest.approx(stats.entropy(p.ravel(), base=2), rel=1e-6)


@pytest.mark.parametrize("size", [(16, 12), (8, 9, 10)])
def test_first_order_features_are_scipy_s(size):
    batch = images(size=size)
    found = named(batch)
    for i, image in enumerate(batch[:, 0].numpy()):
        for name, value in (
            ("mean", image.mean()),
            ("std", image.std()),
            ("skewness", stats.skew(image.ravel())),
            ("kurtosis", stats.kurtosis(image.ravel())),
            ("body", (image > -0.9).mean()),
        ):
            assert float(found[name][i]) == pytest.approx(value, rel=1e-9), name


def test_a_constant_image_has_no_texture_and_finite_features():
    found = named(torch.full((1, 1, 16, 16), 0.25))
    assert torch.isfinite(torch.stack(list(found.values()))).all()
    for name in ("std", "skewness", "kurtosis", "entropy", "contrast_1", "joint_entropy_4", "detail_1", "detail_4"):
        assert float(found[name]) == pytest.approx(0, abs=1e-9), name
    assert float(found["correlation_1"]) == 1


def test_detail_is_found_at_its_own_scale():
    stripes = {s: (torch.arange(16) // s % 2 * 2 - 1).double().expand(1, 1, 16, 16) for s in (1, 2, 4)}
    for scale, image in stripes.items():
        found = named(image)
        assert {s: round(float(found[f"detail_{s}"]), 9) for s in (1, 2, 4)} == {
            s: float(s == scale) for s in (1, 2, 4)
        }


def test_texture_in_3d_does_not_depend_on_the_axis():
    batch = images(size=(8, 9, 10))
    torch.testing.assert_close(radiomics(batch), radiomics(batch.permute(0, 1, 4, 2, 3)))


def test_images_without_room_or_with_nan_are_refused():
    with pytest.raises(MetricError, match="at least 8 voxels"):
        radiomics(images(size=(16, 6)))
    with pytest.raises(MetricError, match="NaN"):
        radiomics(images() * torch.nan)
