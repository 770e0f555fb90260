import pytest
import torch

from meddiff.errors import MetricError
from meddiff.metrics.diversity import ms_ssim_pairs


def images(n, size=(32, 32), seed=0):
    smooth = torch.rand(n, 1, *(s // 4 for s in size), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(smooth, size=size, mode="bilinear" if len(size) == 2 else "trilinear")


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (64, 64), (16, 16, 16)])
def test_a_set_of_one_image_is_similar_throughout_and_a_set_of_many_is_not(size):
    one, many = images(1, size).expand(8, -1, *size), images(8, size)
    torch.testing.assert_close(ms_ssim_pairs(one), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-5)
    assert ms_ssim_pairs(many).mean() < 0.6


def test_a_set_of_two_modes_lies_between():
    two = images(2).repeat(32, 1, 1, 1)
    similar = ms_ssim_pairs(two)
    assert set((similar > 0.999).tolist()) == {True, False}


def test_no_image_is_in_two_pairs_and_the_draw_repeats():
    assert len(ms_ssim_pairs(images(9))) == 4
    assert torch.equal(ms_ssim_pairs(images(9)), ms_ssim_pairs(images(9)))
    assert not torch.equal(ms_ssim_pairs(images(9)), ms_ssim_pairs(images(9), seed=1))


def test_one_image_has_no_pair():
    with pytest.raises(MetricError, match="at least 2 images"):
        ms_ssim_pairs(images(1))
