import itertools

import pytest
import torch
from oracles import Enumerated
from torch import nn

from meddiff.diffusion import categorical
from meddiff.diffusion.losses import label_loss
from meddiff.diffusion.noise import draw
from meddiff.diffusion.posterior import LabelPosterior, drawn, one_hot
from meddiff.diffusion.samplers import ancestral, euler
from meddiff.diffusion.sigmas import karras
from meddiff.errors import ConfigError

CASES, MAPS = 4, 750  # independent label maps in a case, so that 3,000 are drawn by four generators


def generators(n, seed=0):
    return [torch.Generator().manual_seed(seed * 10_000 + i) for i in range(n)]


def correlated(classes, voxels, seed=0):
    """A prior in which neighbours like to be alike, and some labels are liked better."""
    field = torch.randn(voxels, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    maps = torch.tensor(list(itertools.product(range(classes), repeat=voxels)))
    alike = (maps[:, 1:] == maps[:, :-1]).double().sum(1)
    return Enumerated((0.5 * field[torch.arange(voxels), maps].sum(1) + 1.5 * alike).exp(), classes, voxels)


def kernel(survival, classes):
    """q(x_t | x0) as a matrix from x0 (rows) to x_t (columns)."""
    return survival * torch.eye(classes).double() + (1 - survival) / classes


@pytest.mark.parametrize("survival", [0.0, 0.3, 1.0])
def test_corruption_keeps_a_label_as_often_as_the_kernel_says(survival):
    labels = torch.arange(3).view(3, 1).expand(3, 20_000)
    seen = one_hot(categorical.corrupt(labels, torch.tensor(survival), generators(3), 3), 3).double().mean(2)
    torch.testing.assert_close(seen, kernel(survival, 3), rtol=0, atol=0.014)  # four standard errors


def test_every_case_has_its_own_survival_and_its_own_generator():
    labels = torch.arange(3).view(3, 1, 1).expand(3, 9, 9)
    survival = torch.tensor([1.0, 0.5, 0.0])
    together = categorical.corrupt(labels, survival, generators(3), 3)
    assert torch.equal(together[0], labels[0])
    assert torch.equal(categorical.corrupt(labels[1:], survival[1:], generators(3)[1:], 3), together[1:])


def test_an_unknown_voxel_gets_any_label():
    labels = torch.full((1, 30_000), 255)
    drawn_labels = categorical.corrupt(labels, torch.tensor(1.0), generators(1), 3, unknown=255)
    torch.testing.assert_close(drawn_labels[0].bincount() / 30_000, torch.full((3,), 1 / 3), rtol=0, atol=0.011)


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize(("a_from", "a_to"), [(0.0, 0.4), (0.2, 0.5), (0.6, 0.61), (0.9, 1.0)])
def test_transition_is_the_bayes_rule_of_the_kernels(classes, a_from, a_to):
    x_t, x0 = torch.cartesian_prod(torch.arange(classes), torch.arange(classes)).T
    found = categorical.transition(x_t.view(-1, 1), one_hot(x0.view(-1, 1), classes).double(), a_from, a_to)[..., 0]
    joint = kernel(a_to, classes)[x0] * kernel(a_from / a_to, classes)[:, x_t].T  # q(x_s | x0) q(x_t | x_s)
    torch.testing.assert_close(found, joint / joint.sum(1, keepdim=True), rtol=0, atol=1e-12)


@pytest.mark.parametrize("classes", [2, 4])
def test_two_transitions_are_one(classes):
    """Chapman-Kolmogorov: over all x_s, p(x_u | x_s, x0) p(x_s | x_t, x0) adds up to p(x_u | x_t, x0)."""
    for x_t, x0 in itertools.product(range(classes), repeat=2):
        truth = one_hot(torch.tensor([[x0]]), classes).double()
        first = categorical.transition(torch.tensor([[x_t]]), truth, 0.15, 0.4)[0, :, 0]
        second = categorical.transition(torch.arange(classes).view(-1, 1), truth.expand(classes, -1, -1), 0.4, 0.85)
        direct = categorical.transition(torch.tensor([[x_t]]), truth, 0.15, 0.85)[0, :, 0]
        torch.testing.assert_close(first @ second[..., 0], direct, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("classes", "voxels"), [(2, 3), (3, 2), (4, 2)])
@pytest.mark.parametrize(("a_from", "a_to"), [(0.0, 0.3), (0.3, 0.7), (0.7, 1.0)])
def test_a_step_has_the_exact_marginals_of_bayes_over_all_label_maps(classes, voxels, a_from, a_to):
    oracle = correlated(classes, voxels)
    for x_t in oracle.maps:  # every state there is
        weight = oracle.prior * kernel(a_from, classes)[oracle.maps, x_t].prod(1)  # of each x0, given x_t
        each = kernel(a_to, classes)[oracle.maps] * kernel(a_from / a_to, classes)[:, x_t].T  # (x0, N, x_s)
        each = each / each.sum(2, keepdim=True)
        expected = torch.einsum("m,mnk->kn", weight / weight.sum(), each)
        d = oracle.discrete(one_hot(x_t[None, None], classes).double(), torch.tensor(a_from, dtype=torch.float64))
        found = categorical.transition(x_t[None, None], d, a_from, a_to)[0, :, 0]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_steps_are_drawn_from_the_transition():
    labels = torch.tensor([0, 1, 2]).view(1, 3, 1).expand(1, 3, 20_000)
    d = torch.tensor([0.6, 0.3, 0.1]).double().view(1, 3, 1, 1).expand(1, 3, 3, 20_000)
    found = one_hot(categorical.step(labels, d, 0.3, 0.6, generators(1)), 3).double().mean(3)
    torch.testing.assert_close(found, categorical.transition(labels, d, 0.3, 0.6)[..., 0], rtol=0, atol=0.014)


def discrete_samples(oracle, n, seed=1):
    nothing = torch.zeros(CASES, oracle.classes, MAPS, oracle.maps.shape[1])
    return categorical.sample(
        oracle.discrete, nothing, categorical.grid(n, sigma_min=0.05, sigma_max=5.0), generators=generators(CASES, seed)
    )


def gaussian_samples(sampler, oracle, n, seed=1):
    way = generators(CASES, seed)
    x = 20 * draw("gaussian", (oracle.classes, MAPS, oracle.maps.shape[1]), way)
    return sampler(oracle.gaussian, x, karras(n, 0.2, 20.0), generators=way)


PROCESSES = {
    "discrete": discrete_samples,
    "euler": lambda oracle, n: gaussian_samples(euler, oracle, n),
    "ancestral": lambda oracle, n: gaussian_samples(ancestral, oracle, n),
}


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(("classes", "voxels"), [(2, 3), (3, 3), (4, 2)])
def test_samples_have_the_joint_distribution_of_the_prior(process, classes, voxels):
    """Total variation from the prior: 0.03 by chance alone with 3,000 draws; independent voxels are far beyond 0.05."""
    oracle = correlated(classes, voxels)
    labels = drawn(PROCESSES[process](oracle, 48), generators(CASES, 2))
    assert (oracle.shares(labels) - oracle.prior).abs().sum() / 2 < 0.05
    independent = torch.stack([oracle.marginals[k, torch.arange(voxels)].prod() for k in oracle.maps])
    assert (independent - oracle.prior).abs().sum() / 2 > 0.2


@pytest.mark.parametrize("process", PROCESSES)
def test_the_last_posteriors_are_the_direct_segmentation_on_average(process):
    """The tower property: the mean of E[x0 | x] over x is E[x0], the posterior of no information at all."""
    oracle = correlated(3, 3)
    mean = PROCESSES[process](oracle, 48).double().mean((0, 2))
    direct = oracle.gaussian(torch.zeros(1, 3, 1, 3).double(), torch.tensor(torch.inf))[0, :, 0]
    torch.testing.assert_close(direct, oracle.marginals)
    torch.testing.assert_close(mean, direct, rtol=0, atol=0.037)  # four standard errors of 3,000 draws


@pytest.mark.parametrize("process", ["euler", "ancestral"])
def test_the_most_probable_labels_of_gaussian_samples_have_the_joint_distribution_too(process):
    oracle = correlated(3, 3)
    labels = PROCESSES[process](oracle, 48).argmax(1)
    assert (oracle.shares(labels) - oracle.prior).abs().sum() / 2 < 0.05


def test_a_case_does_not_depend_on_its_batch():
    oracle, x = correlated(3, 3), torch.zeros(3, 3, 5, 3)
    together = categorical.sample(oracle.discrete, x, categorical.grid(5), generators=generators(3))
    alone = categorical.sample(oracle.discrete, x[2:], categorical.grid(5), generators=generators(3)[2:])
    torch.testing.assert_close(alone[0], together[2], rtol=0, atol=0)


def test_n_evaluations_are_made_and_reported_and_the_last_posterior_is_returned():
    oracle, seen, levels = correlated(2, 2), [], []

    def counted(x, survival, cond=None):
        levels.append(survival.item())
        return oracle.discrete(x, survival)

    last = categorical.sample(
        counted,
        torch.zeros(1, 2, 1, 2),
        categorical.grid(4),
        generators=generators(1),
        on_step=lambda i, x, d: seen.append((i, x, d)),
    )
    assert levels == categorical.grid(4)[:-1].tolist()
    assert [i for i, _, _ in seen] == [0, 1, 2, 3]
    assert all((x.sum(1) == 1).all() and set(x.unique().tolist()) <= {0.0, 1.0} for _, x, _ in seen[:-1])
    assert last is seen[-1][2]


@pytest.mark.parametrize("n", [1, 2, 9])
def test_the_grid_rises_from_no_information_to_the_labels_by_the_sigmas_of_a_flow(n):
    grid = categorical.grid(n, 0.3, 40.0)
    assert (len(grid), grid[0], grid[-1]) == (n + 1, 0, 1)
    assert (grid.diff() > 0).all()
    if n > 1:
        torch.testing.assert_close(1 / grid[1:-1] - 1, karras(n - 1, 0.3, 40.0)[:-1], rtol=1e-4, atol=1e-5)


def region(p):
    """The denoiser of maps that are one region: label 1 everywhere with probability p, or nowhere; x (B, 2, n)."""

    def denoise(x, survival, cond=None):
        surplus = (x[:, 1] - x[:, 0]).double().sum(1)  # voxels that say 1, less those that say 0
        odds = torch.tensor(p / (1 - p)).log() + surplus * ((1 + survival) / (1 - survival)).log()
        inside = odds.sigmoid().view(-1, 1).expand(x[:, 0].shape)
        return torch.stack([1 - inside, inside], 1)

    return denoise


def test_a_large_region_is_drawn_as_a_whole_on_the_grid_and_lost_to_the_likelier_label_on_even_steps():
    x, p = torch.zeros(2000, 2, 256), 0.3

    def drawn_shares(grid):
        return categorical.sample(region(p), x, grid, generators=generators(2000))[:, 1, 0]

    inside = drawn_shares(categorical.grid(8))
    assert ((inside < 0.01) | (inside > 0.99)).double().mean() > 0.99
    assert abs(inside.mean().item() - p) < 0.08  # the bias of 8 evaluations is 0.04, the standard error 0.01
    assert drawn_shares(torch.linspace(0, 1, 9)).mean() < 0.2


def test_a_start_that_is_known_in_part_is_kept_in_part():
    """From survival 0.8 on, the map that was corrupted is the one that comes back, where the prior says nothing."""
    oracle = Enumerated(torch.ones(4), 2, 2)
    truth = torch.tensor([0, 1]).expand(1, 4000, 2)
    x = one_hot(categorical.corrupt(truth, torch.tensor(0.8), generators(1), 2), 2)
    d = categorical.sample(oracle.discrete, x, torch.tensor([0.8, 0.9, 1.0]), generators=generators(1, 1))
    kept = d.gather(1, truth.unsqueeze(1)).mean().item()
    assert abs(kept - (0.9**2 + 0.1**2)) < 0.02  # right before and after, or wrong twice; four standard errors


class Shows(nn.Module):
    def forward(self, x, c_noise, cond=None):
        return 3 * x


def test_loss_is_the_label_loss_of_the_corrupted_map_and_one_per_case():
    labels = torch.randint(3, (2, 7, 7), generator=generators(1)[0])
    model, survival = LabelPosterior(Shows(), 3), torch.tensor([0.9, 0.0])
    found = categorical.loss(model, labels, survival, generators(2), dice=0.5)
    x = one_hot(categorical.corrupt(labels, survival, generators(2), 3), 3)
    torch.testing.assert_close(found, label_loss(model.logits(x, survival), labels, dice=0.5))
    torch.testing.assert_close(found[1], label_loss(torch.zeros(1, 3, 7, 7), labels[1:], dice=0.5)[0])


def test_impossible_grids_steps_and_generators_are_refused():
    oracle, x = correlated(2, 2), torch.zeros(2, 2, 1, 2)
    with pytest.raises(ConfigError, match="at least 1 step; found 0"):
        categorical.grid(0)
    with pytest.raises(ConfigError, match="strictly increasing survivals"):
        categorical.sample(oracle.discrete, x, torch.tensor([0.5, 0.2]), generators=generators(2))
    with pytest.raises(ConfigError, match="one generator per case; found 0 for 2"):
        categorical.sample(oracle.discrete, x, categorical.grid(2))
    with pytest.raises(ConfigError, match=r"from a survival to a larger one, within 0\.\.1; found 0\.5 to 0\.5"):
        categorical.transition(torch.zeros(1, 2).long(), torch.ones(1, 2, 2) / 2, 0.5, 0.5)
