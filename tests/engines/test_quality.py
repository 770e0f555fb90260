import pytest
import torch
import torch.nn.functional as F

from meddiff.engines.encoder import contrastive_loss, damaged, shifted, train_encoder, trained_encoder
from meddiff.engines.quality import LEAST, Judge
from meddiff.errors import MetricError
from meddiff.metrics.radiomics import radiomics
from meddiff.seeds import generator

N = 24


def heads(n, seed, dims=2):
    """Images of a disc with two spots, each in its own place, and fine texture."""
    g = generator(seed, "heads")
    grids = torch.meshgrid(*[torch.linspace(-1, 1, 16)] * dims, indexing="ij")
    images = []
    for _ in range(n):
        centres = torch.rand(3, dims, generator=g) - 0.5
        at = [sum((x - c) ** 2 for x, c in zip(grids, centre, strict=True)) for centre in centres]
        image = -1 + 0.8 * (at[0] < 0.6) + 0.5 * torch.exp(-at[1] / 0.05) + 0.5 * torch.exp(-at[2] / 0.02)
        images.append(image + 0.05 * torch.randn(image.shape, generator=g))
    return torch.stack(images)[:, None].clamp(-1, 1)


def patients(n):
    return [f"p{i // 4}" for i in range(n)]


@pytest.fixture(scope="module")
def encoder():
    return train_encoder(heads(200, 0), torch.device("cpu"), 120).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def judge(encoder):
    return Judge(heads(200, 0), heads(N, 1), patients(N), {"radiomic": radiomics, "encoder": encoder}, 100)


def test_another_draw_scores_as_training_images_do_and_lies_in_its_interval(judge):
    found = judge.judge(heads(N, 2))
    for name in ("radiomic/kid", "encoder/kid", "encoder/frechet", "encoder/coverage", "sliced_wasserstein", "ms_ssim"):
        figure = found[name]
        assert abs(figure.value - figure.train) < 4 * figure.train_std, name
        assert figure.low <= figure.value <= figure.high, name
        assert figure.n == N


def test_a_feature_that_hardly_varies_does_not_outweigh_all_others():
    def features(images):  # the last one as the median of images that are mostly air, of which one is not
        corner = images[:, 0, 0, 0]
        return torch.stack([images.mean((1, 2, 3)), torch.where(corner > 0.9, 1.2, 1 + 1e-4 * corner)], 1).double()

    held_out = heads(N, 1)
    held_out[0, 0, 0, 0] = 1
    found = Judge(heads(200, 0), held_out, patients(N), {"own": features}, 10).judge(heads(N, 2))["own/kid"]
    assert abs(found.value) < 1
    assert abs(found.value - found.train) < 4 * found.train_std


@pytest.mark.parametrize("damage", ["blur", "noise", "contrast"])
def test_damage_to_every_image_is_noticed_in_both_spaces(judge, damage):
    images = heads(N, 2)
    changed = {
        "blur": F.avg_pool2d(images, 3, 1, 1, count_include_pad=False),
        "noise": images + 0.2 * torch.randn(images.shape, generator=generator(0, "noise")),
        "contrast": -1 + 0.75 * (images + 1),
    }[damage]
    found = judge.judge(changed)
    for space in ("radiomic", "encoder"):
        figure = found[f"{space}/kid"]
        assert figure.value > figure.train + 6 * figure.train_std, space
        assert found[f"{space}/coverage"].value < found[f"{space}/coverage"].train, space


def test_a_collapsed_set_does_not_cover_and_repeats_itself(judge):
    found = judge.judge(heads(1, 2).repeat(N, 1, 1, 1))
    assert found["encoder/coverage"].value < 0.3
    assert found["encoder/recall"].value == 0
    assert found["ms_ssim"].value == pytest.approx(1, abs=1e-5)
    assert found["ms_ssim"].train < 0.9


def test_copies_of_the_held_out_images_are_perfect_by_every_metric(judge):
    found = judge.judge(judge.held_out.images)
    assert found["encoder/coverage"].value == found["radiomic/precision"].value == 1
    assert found["sliced_wasserstein"].value == pytest.approx(0, abs=1e-6)
    assert found["encoder/frechet"].value == pytest.approx(0, abs=1e-4)


def test_the_same_sets_give_the_same_figures(judge):
    assert judge.judge(heads(N, 2)) == judge.judge(heads(N, 2))


def test_few_images_are_compared_as_far_as_they_can_be(encoder, caplog):
    few = Judge(heads(20, 0), heads(4, 1), patients(4), {"encoder": encoder}, 10)
    assert f"need {LEAST} images" in caplog.text
    assert set(few.judge(heads(4, 2))) == {"encoder/kid", "sliced_wasserstein", "ms_ssim"}


def test_sets_of_another_size_are_refused(judge, encoder):
    with pytest.raises(MetricError, match="24 held-out images, found 5"):
        judge.judge(heads(5, 2))
    with pytest.raises(MetricError, match="one n of 2 at least"):
        Judge(heads(20, 0), heads(1, 1), ["p"], {"encoder": encoder}, 10)


def test_the_contrastive_loss_is_a_softmax_over_everything_else():
    z = F.normalize(torch.randn(5, 3, generator=generator(0)), dim=1)
    logits = z @ z.T / 0.2
    expected = 0.0
    for i, partner in enumerate((2, 3, 0, 1)):
        others = torch.stack([logits[i, j] for j in range(5) if j != i])
        expected += float(others.logsumexp(0) - logits[i, partner]) / 4
    assert float(contrastive_loss(z[:4], z[4:])) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_shift_moves_voxels_and_changes_none(dims):
    images = heads(4, 0, dims)
    moved = shifted(images, generator(0))
    assert moved.shape == images.shape
    for image, other in zip(images, moved, strict=True):
        inside = set(image.flatten().tolist()) | {-1.0}
        assert set(other.flatten().tolist()) <= inside
    assert damaged(images, generator(0)).shape == images.shape


@pytest.mark.parametrize("dims", [2, 3])
def test_the_encoder_is_kept_and_is_that_of_its_images(tmp_path, dims, caplog):
    device = torch.device("cpu")
    one, again = (trained_encoder(heads(8, 0, dims), tmp_path, device, 2) for _ in range(2))
    assert one.sha256 == again.sha256
    torch.testing.assert_close(one.features(heads(3, 1, dims)), again.features(heads(3, 1, dims)), rtol=0, atol=0)
    (kept,) = tmp_path.glob("encoder_*.safetensors")
    assert trained_encoder(heads(8, 5, dims), tmp_path, device, 2).sha256 != one.sha256
    kept.write_bytes(kept.read_bytes()[:100])
    assert trained_encoder(heads(8, 0, dims), tmp_path, device, 2).sha256 == one.sha256
    assert "is damaged" in caplog.text
