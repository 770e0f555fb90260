import torch

from meddiff.tasks.diagnosis import evidence, levels

SHAPE = (1, 4, 4)
SPREAD = 0.5


class TwoGaussians:
    """The exact denoiser of N(mean_c, SPREAD^2) in every voxel, given the class."""

    means = torch.tensor([-0.2, 0.3])

    def __call__(self, x, sigma, cond=None):
        mean = self.means[cond.label].view(-1, 1, 1, 1)
        weight = SPREAD**2 / (SPREAD**2 + sigma**2)
        return mean + weight * (x - mean)


def noise(seed, n):
    def draw(k):
        ways = [torch.Generator().manual_seed(1000 * seed + 100 * k + i) for i in range(n)]
        return torch.stack([torch.randn(SHAPE, generator=g) for g in ways])

    return draw


def test_the_evidence_of_exact_denoisers_is_the_likelihood_ratio():
    x0 = 0.05 + SPREAD * torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0))
    found = evidence(TwoGaussians(), x0, 2, levels(400, 1e-3, 1e3), noise(1, 8))
    square = [((x0 - m) ** 2).flatten(1).sum(1).double() / (2 * SPREAD**2) for m in TwoGaussians.means]
    exact = square[0] - square[1]  # log p(x | 1) - log p(x | 0)
    torch.testing.assert_close(found[:, 1] - found[:, 0], exact, atol=0.1, rtol=0)  # 400 levels
    assert exact.abs().max() > 2


def test_classes_that_the_model_cannot_tell_apart_have_equal_evidence():
    model = TwoGaussians()
    model.means = torch.tensor([0.1, 0.1])
    found = evidence(model, torch.zeros(2, *SHAPE), 2, levels(8, 0.1, 10), noise(2, 2))
    assert torch.equal(found[:, 0], found[:, 1])


def test_an_image_has_the_same_evidence_in_every_batch():
    x0 = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(3))
    sigmas = levels(6, 0.1, 10)
    whole = evidence(TwoGaussians(), x0, 2, sigmas, noise(4, 4))
    torch.testing.assert_close(evidence(TwoGaussians(), x0[:2], 2, sigmas, noise(4, 2)), whole[:2])


def test_levels_are_even_in_the_logarithm():
    grid = levels(4, 0.1, 10)
    steps = grid.log().diff()
    torch.testing.assert_close(steps, steps[0].expand(3))
    assert 0.1 < grid[-1] < grid[0] < 10
