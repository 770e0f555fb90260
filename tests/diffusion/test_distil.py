"""Distillation against flow maps that are known exactly."""

import pytest
import torch
from oracles import finite, gaussian, gaussian_flow
from torch import nn

from meddiff.diffusion.denoiser import Condition, Preconditioned
from meddiff.diffusion.distil import chord, distillation_loss, stretches, student_sigmas, taught
from meddiff.diffusion.samplers import euler
from meddiff.diffusion.sigmas import karras
from meddiff.errors import ConfigError


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_euler_steps_along_chords_end_where_the_path_ends():
    x, levels = noise(5, 1, 3, 3), [20.0, 2.0, 0.3, 0.0]
    ends = [gaussian_flow(x * 20, 20.0, s) for s in levels]
    walk = iter([chord(a, b, s, t) for a, b, s, t in zip(ends, ends[1:], levels, levels[1:], strict=False)])
    torch.testing.assert_close(euler(lambda *_: next(walk), x * 20, torch.tensor(levels)), ends[-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("evaluations", [1, 2, 4])
def test_the_taught_step_is_the_exact_flow_of_gaussian_data(evaluations):
    sigmas = stretches(karras(128 * evaluations, 0.01, 20.0), evaluations).double()
    ends = student_sigmas(karras(128 * evaluations, 0.01, 20.0), evaluations).tolist()
    x0, eps = 0.1 + 0.5 * noise(2000, 1, 1, 1), noise(2000, 1, 1, 1, seed=1)
    which = torch.arange(len(x0)) % evaluations
    x, d = taught(gaussian(0.1, 0.5), x0, eps, which, sigmas)
    for k in range(evaluations):
        rows, begin = which == k, x[which == k]
        torch.testing.assert_close(begin, (ends[k] * eps + (x0 if k else 0))[rows])
        centre = gaussian(0.1, 0.5)(begin, torch.tensor(ends[0])) if k == 0 else 0.0
        there = gaussian_flow(begin + centre, ends[k], ends[k + 1], 0.1, 0.5)
        torch.testing.assert_close(torch.lerp(d[rows], begin, ends[k + 1] / ends[k]), there, rtol=0, atol=1e-3)


def test_every_case_of_a_finite_data_set_is_led_to_one_of_its_images():
    data = noise(3, 1, 2, 2)
    sigmas = stretches(karras(64, 0.002, 20.0), 1).double()
    _, d = taught(
        finite(data), data[:1].expand(50, 1, 2, 2), noise(50, 1, 2, 2, seed=1), torch.zeros(50).long(), sigmas
    )
    apart = torch.cdist(d.flatten(1), data.flatten(1))  # one step to 0: D is the end itself
    assert apart.min(1).values.max() < 1e-3
    assert len(apart.argmin(1).unique()) == 3


class Line(nn.Module):
    """F = w x + b with weights of its own for each of two noise levels: as much as Gaussian data need."""

    def __init__(self, levels):
        super().__init__()
        self.levels = levels
        self.w, self.b = nn.Parameter(torch.zeros(2).double()), nn.Parameter(torch.zeros(2).double())

    def forward(self, x, c_noise, cond=None):
        k = (c_noise.reshape(-1, 1) - self.levels.log() / 4).abs().argmin(1).expand(len(x))
        return self.w[k].view(-1, 1, 1, 1) * x + self.b[k].view(-1, 1, 1, 1)


def test_a_distilled_student_draws_in_two_evaluations_what_the_flow_draws():
    mean, std, grid = 0.3, 0.5, karras(64, 0.01, 20.0)
    sigmas, ends = stretches(grid, 2).double(), student_sigmas(grid, 2)
    student = Preconditioned(Line(ends[:2].double()), "edm", 0.5)
    x0, eps = mean + std * noise(512, 1, 1, 1), noise(512, 1, 1, 1, seed=1)
    which = torch.arange(512) % 2
    optimizer = torch.optim.LBFGS(student.parameters(), max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15)

    def loss():
        optimizer.zero_grad()
        value = distillation_loss(student, gaussian(mean, std), x0, eps, which, sigmas).mean()
        value.backward()
        return value

    optimizer.step(loss)
    start = 20.0 * noise(4000, 1, 1, 1, seed=2)
    drawn = euler(student, start, ends)
    centre = gaussian(mean, std)(start, torch.tensor(20.0))
    torch.testing.assert_close(drawn, gaussian_flow(start + centre, 20.0, 0.0, mean, std), rtol=0, atol=3e-3)


def test_the_teacher_is_asked_for_what_each_case_is_given():
    asked = Condition(label=torch.tensor([3, 5]))

    def teacher(x, sigma, cond):
        return cond.label.view(-1, 1, 1, 1).to(x).expand_as(x)

    sigmas = stretches(karras(4, 0.1, 10.0), 2).double()
    _, d = taught(teacher, torch.zeros(2, 1, 2, 2).double(), noise(2, 1, 2, 2), torch.tensor([1, 1]), sigmas, asked)
    torch.testing.assert_close(d, torch.tensor([3.0, 5.0]).double().view(2, 1, 1, 1).expand_as(d))


def test_a_grid_that_does_not_part_is_refused():
    with pytest.raises(ConfigError, match="7 steps does not part into 2 stretches"):
        stretches(karras(7, 0.1, 1.0), 2)
