"""Training with differential privacy."""

import json
import os
import signal
from functools import partial
from types import SimpleNamespace

import dp_accounting
import pytest
import torch
import torch.nn.functional as F
from cohort import cohort, tree
from dp_accounting import pld
from ignite.engine import Events
from launched import ended, start
from opacus import GradSampleModule
from redrawn import redrawn
from torch import nn

from meddiff.cli.info import _run as info
from meddiff.config import DiffusionConfig, TrainConfig
from meddiff.config_file import parse_config
from meddiff.diffusion.denoiser import Preconditioned
from meddiff.engines.budget import Budget
from meddiff.engines.card import Card
from meddiff.engines.checkpoint import load_checkpoint
from meddiff.engines.ema import EMA
from meddiff.engines.fit import fit
from meddiff.engines.private import patient_gradient, private_trainer
from meddiff.engines.run import Run
from meddiff.engines.trainer import Skips
from meddiff.errors import ConfigError, PrivacyError, RunError
from meddiff.networks.blocks import Upsample
from meddiff.networks.unet import UNet
from meddiff.tasks.synthesis import Synthesis

PRIVACY = {"epsilon": 8.0, "delta": 0.01, "images_per_patient": 3, "noise_multiplicity": 2}
FEW = PRIVACY | {"images_per_patient": 2, "noise_multiplicity": 1}
CPU, DIFFUSION = torch.device("cpu"), DiffusionConfig(sigma_data=0.5)


def private_tree(cache, dims=2, privacy=FEW, **train):
    whole = tree(cohort(), cache, dims, **{"batch": 2, "validate_every": 6, "privacy": dict(privacy), **train})
    whole["data"]["spacing_mm"] = [15, 15, 15]
    return whole | {"diffusion": {"sigma_data": 0.5}}


def private_config(cache, dims=2, **train):
    return parse_config(private_tree(cache, dims, **train), "test")


def train_config(**changes):
    return TrainConfig(**{"steps": 4, "batch": 2, "lr": 1.0, "warmup": 0, "privacy": PRIVACY, **changes})


def patient(number, size=(12, 12), n=3):
    rng = torch.Generator().manual_seed(number)
    return {
        "image": torch.randn(n, 1, *size, generator=rng),
        "seed": torch.arange(n) + 100 * number,
        "unreadable": torch.full((n,), -1),
    }


def together(*patients):
    return {name: torch.cat([p[name] for p in patients]) for name in ("image", "seed", "unreadable")}


def small(dims, **settings):
    network = UNet(
        spatial_dims=dims, in_channels=1, out_channels=1, channels=(8, 16), blocks=1, attention=(False, True),
        head_channels=8, noise_scale=250.0, **settings,
    )  # fmt: skip
    return redrawn(Preconditioned(network, "edm", 0.5)).train()


def synthesis(dims=2):
    return Synthesis(parse_config(tree("m.jsonl", "cache", dims), "test"))


class Watched:
    """A task that remembers what it was asked."""

    def __init__(self, task):
        self.task, self.example, self.asked = task, task.example, []

    def losses(self, model, x0, cond, sigma, generators):
        self.asked.append((x0, cond, sigma, [g.get_state() for g in generators]))
        return self.task.losses(model, x0, cond, sigma, generators)

    def one_by_one(self, model):
        """The gradient of the mean loss, from a pass for each image and draw of noise alone."""
        n = sum(len(x0) for x0, *_ in self.asked)
        model.zero_grad()
        for x0, cond, sigma, states in self.asked:
            assert cond is None
            for i, state in enumerate(states):
                generator = torch.Generator()
                generator.set_state(state)
                alone = self.task.losses(model, x0[i : i + 1], None, sigma[i : i + 1], [generator])
                (alone.sum() / n).backward()
        return flat(model)


def flat(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize(("dims", "size"), [(2, (12, 12)), (3, (6, 8, 6))])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_patients_gradient_is_the_mean_over_its_images_and_draws_each_alone(dims, size, accumulate):
    model, task = small(dims), Watched(synthesis(dims))
    loss = patient_gradient(model, task, DIFFUSION, train_config(accumulate=accumulate), CPU, patient(1, size))
    own = flat(model)
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert [len(x0) for x0, *_ in task.asked] == [6 // accumulate] * accumulate
    assert relative(own, task.one_by_one(model)) < 1e-5
    assert loss > 0


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_a_patients_gradient_is_that_of_opacus_hooks(monkeypatch):
    model, task = small(2), Watched(synthesis())
    patient_gradient(model, task, DIFFUSION, train_config(), CPU, patient(1))
    own = flat(model)
    model.zero_grad()
    # hooks see layers that are called, and ours uses the weights of one in another way
    monkeypatch.setattr(Upsample, "forward", lambda self, x: self.conv(F.interpolate(x, scale_factor=2.0)))
    hooked = GradSampleModule(model, loss_reduction="sum")
    x0, cond, sigma, states = task.asked[0]
    generators = [torch.Generator() for _ in states]
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
    task.task.losses(model, x0, cond, sigma, generators).sum().backward()
    each = torch.cat([p.grad_sample.mean(0).flatten() for p in hooked.parameters()])
    assert relative(own, each) < 1e-5


def stepped(model, task, batch, train, patients=2, change=lambda optimizer: None, skips=None):
    """The weights' change in one step of plain gradient descent at a learning rate of 1, its output and the budget."""
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    budget = Budget(train, patients)
    optimizer = budget.guarded(torch.optim.SGD(model.parameters(), lr=1.0), CPU)
    change(optimizer)
    engine = private_trainer(model, EMA(model, 0.9), optimizer, task, DIFFUSION, train, CPU, skips or Skips())
    output = engine.run([batch], epoch_length=1).output
    return nn.utils.parameters_to_vector(model.parameters()).detach() - before, output, budget


def silent(optimizer):
    optimizer.noise_multiplier = 0.0


def test_a_step_is_the_sum_of_clipped_patients_over_the_expected_number():
    train, members = train_config(), [patient(i) for i in range(3)]
    norms, total = [], 0.0
    for one in members:
        model = small(2)
        patient_gradient(model, synthesis(), DIFFUSION, train, CPU, one)
        norms.append(float(flat(model).norm()))
        total = total + flat(model) / max(1.0, norms[-1])
    assert max(norms) > 1.0  # something is clipped
    change, output, _ = stepped(small(2), synthesis(), together(*members), train, change=silent)
    assert relative(change, -total / 2) < 1e-5  # train.batch is 2, though 3 were drawn
    assert output["grad_norm"] == pytest.approx(float(total.norm()) / 2, rel=1e-4)


def test_a_step_of_nobody_is_noise_of_the_right_size():
    model = nn.Linear(20_000, 1, bias=False)
    change, output, budget = stepped(model, synthesis(), {"unreadable": torch.empty(0)}, train_config())
    sigma = budget.noise_multiplier * 1.0 / 2
    assert float(change.std()) == pytest.approx(sigma, rel=0.03)
    assert abs(float(change.mean())) < 4 * sigma / 20_000**0.5
    assert output["loss"] == 0
    assert budget.steps == 1  # a step of nobody costs as much as any


def test_noise_is_another_each_time():
    nobody = {"unreadable": torch.empty(0)}
    changes = [stepped(nn.Linear(99, 1), synthesis(), nobody, train_config())[0] for _ in range(2)]
    assert not torch.isclose(*changes).any()


def test_a_patient_without_a_finite_gradient_adds_nothing():
    broken, skips = patient(1), Skips()
    broken["image"][0] = float("nan")
    whole, *_ = stepped(small(2), synthesis(), together(patient(0)), train_config(), change=silent)
    beside, *_ = stepped(small(2), synthesis(), together(broken, patient(0)), train_config(), 2, silent, skips)
    assert relative(beside, whole) < 1e-6
    assert skips.all == 1


def test_no_other_patient_stands_in_for_one_that_cannot_be_read():
    batch = patient(0) | {"unreadable": torch.tensor([-1, 2, -1])}
    with pytest.raises(RunError, match=r"no other patient may stand in.*--resume"):
        stepped(small(2), synthesis(), batch, train_config())


def test_layers_that_keep_statistics_of_patients_are_refused():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(PrivacyError, match=r"mixes patients or keeps their statistics.*BatchNorm.*group norm"):
        stepped(model, synthesis(), patient(0), train_config())


@pytest.mark.parametrize(
    ("batch", "patients", "steps", "epsilon", "delta"),
    [(16, 42, 300, 10.0, 1e-3), (4, 200, 1000, 2.0, 1e-4), (3, 3, 6, 8.0, 1e-2)],
)
def test_epsilon_is_that_of_an_independent_accountant(batch, patients, steps, epsilon, delta):
    train = TrainConfig(steps=steps, batch=batch, privacy={"epsilon": epsilon, "delta": delta})
    budget = Budget(train, patients)
    for spent in (max(1, steps // 10), steps):
        budget.accountant.history = [(budget.noise_multiplier, budget.rate, spent)]
        other = pld.PLDAccountant()
        gaussian = dp_accounting.GaussianDpEvent(budget.noise_multiplier)
        drawn = dp_accounting.PoissonSampledDpEvent(budget.rate, gaussian)
        other.compose(dp_accounting.SelfComposedDpEvent(drawn, spent))
        assert budget.epsilon == pytest.approx(other.get_epsilon(delta), abs=0.01 * epsilon)
    assert 0.98 * epsilon < budget.epsilon <= epsilon
    assert budget.epsilon == pytest.approx(other.get_epsilon(delta), rel=0.01)


def killed_at(step, config, folder):
    def attach(session):
        kill = partial(os.kill, os.getpid(), signal.SIGKILL)
        session.engine.add_event_handler(Events.ITERATION_COMPLETED(once=step), kill)

    fit(config, folder, attach=[attach])


def last_epsilon(run):
    return json.loads(run.log_path.read_text().splitlines()[-1])["epsilon"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("private")
    return fit(private_config(folder / "cache"), folder / "run")


def test_what_is_spent_stands_in_log_card_checkpoint_and_info(whole):
    card, config = Card.read(whole.card_path), whole.config()
    assert card.privacy is not None
    assert card.privacy.steps == 6
    assert 7.8 < card.privacy.epsilon <= 8.0
    assert last_epsilon(whole) == pytest.approx(card.privacy.epsilon)
    _, state = load_checkpoint(whole.checkpoints, {}, force=True)
    rate, noise = 2 / card.privacy.patients, card.privacy.noise_multiplier
    assert state["privacy"]["accountant"]["history"] == [(noise, rate, 6)]
    assert state["privacy"]["terms"]["epsilon"] == config.train.privacy.epsilon
    told = [str(cell) for column in info(whole.folder).columns for cell in column.cells]
    assert f"epsilon {card.privacy.epsilon:.3f}, delta 0.01 for each of 4 patients, spent in 6 steps" in told


def test_no_checkpoint_is_chosen_by_the_loss_of_patients(whole):
    records = [json.loads(path.read_text()) for path in whole.checkpoints.glob("*.json")]
    assert [record["held_out"] for record in records] == [None, None]
    assert "held_out" in whole.log_path.read_text()  # it is measured, for who trains to look at


def test_epsilon_after_a_kill_is_that_of_the_run_nobody_disturbed(whole, tmp_path):
    process = start(killed_at, 5, whole.config(), tmp_path / "run", said=tmp_path / "said")
    assert ended(process) == -signal.SIGKILL
    torn = Run(tmp_path / "run")
    half = Card.read(torn.card_path).privacy
    assert half.steps == 4
    assert half.epsilon < Card.read(whole.card_path).privacy.epsilon
    fit(whole.config(), torn.folder, resume=True)
    assert Card.read(torn.card_path).privacy == Card.read(whole.card_path).privacy
    assert last_epsilon(torn) == last_epsilon(whole)
    assert torn.weights_path.read_bytes() != whole.weights_path.read_bytes()  # the noise is another


def test_a_budget_does_not_change_on_the_way(whole, tmp_path):
    def changed(**train):
        config = whole.config()
        return config.model_copy(update={"train": config.train.model_copy(update=train)})

    privacy = whole.config().train.privacy
    other = changed(privacy=privacy.model_copy(update={"max_grad_norm": 2.0}))
    with pytest.raises(RunError, match="written with another config"):
        fit(other, whole.folder, resume=True)
    with pytest.raises(PrivacyError, match=r"trained with max_grad_norm = 1\.0, now it is 2\.0.*not even with --force"):
        fit(other, whole.folder, resume=True, force=True)
    with pytest.raises(PrivacyError, match=r"with train\.privacy, and now the config is without it"):
        fit(changed(privacy=None, steps=7), whole.folder, resume=True, force=True)


def test_the_seed_of_the_noise_is_in_no_file(tmp_path, monkeypatch):
    import secrets

    given = []

    def remembered(draw, told):
        def act(n):
            given.append(draw(n))
            return told(given[-1])

        return act

    source = SimpleNamespace(
        randbits=remembered(secrets.randbits, lambda v: v), token_bytes=remembered(secrets.token_bytes, lambda v: v)
    )
    monkeypatch.setattr("meddiff.seeds.secrets", source)
    run = fit(private_config(tmp_path / "cache", steps=2, batch=4), tmp_path / "run")
    assert len(given) == 4  # who is drawn, and the noise: a seed and a state each
    content = [path.read_bytes() for path in run.folder.rglob("*") if path.is_file()]
    for value in given:
        if isinstance(value, int):
            traces = [str(value).encode(), f"{value:x}".encode(), value.to_bytes(8, "little"), value.to_bytes(8, "big")]
        else:
            wide = b"".join(value[i : i + 4] + bytes(4) for i in range(0, 64, 4))  # as torch keeps it
            traces = [value[:16], wide[:32], value[:16].hex().encode()]
        assert not any(trace in file for trace in traces for file in content)


CONDITIONS = {
    "lesions, and label maps drawn beside images": {
        "data": {"labels": ["lesion"], "paired": True},
        "condition": {"classes": {"label": "lesion"}},
    },
    "a column of named values, and painted label maps": {
        "data": {"labels": ["lesion"]},
        "condition": {"classes": {"column": "class", "values": ["lesion", "no lesion"]}, "mask": True},
    },
    "segmentation": {"task": "segmentation", "data": {"labels": ["lesion"]}},
    "restoration, the second network in some of the steps": {
        "task": "restoration",
        "data": {"degradation": {"kind": "gaussian"}},
        "train": {"sampling_share": 0.5, "sampling_steps": 0.5, "precision": "bf16"},
    },
}


def merged(one, two):
    return one | {k: merged(one[k], v) if isinstance(v, dict) and k in one else v for k, v in two.items()}


@pytest.mark.parametrize("settings", CONDITIONS.values(), ids=CONDITIONS)
def test_tasks_and_conditions_train_privately(tmp_path, settings):
    config = parse_config(merged(private_tree(tmp_path / "cache", steps=2, batch=4), settings), "test")
    assert Card.read(fit(config, tmp_path / "run").card_path).privacy.steps == 2


def test_volumes_train_privately(tmp_path):
    config = private_config(tmp_path / "cache", 3, steps=2, batch=4)
    assert Card.read(fit(config, tmp_path / "run").card_path).privacy.steps == 2


LEAKS = {
    "sigma_data: auto is measured": {"diffusion": {"sigma_data": "auto"}},
    "percentiles are measured": {"data": {"intensity": {"kind": "percentile", "low": 0}}},
    "distance between slices is measured": {"data": {"spacing_mm": [15, 15]}},
    "mean and spread of age": {"condition": {"covariates": ["age"]}},
    "which values sex takes": {"condition": {"classes": {"column": "sex"}}},
    "which labels there are": {"condition": {"mask": True}},
    "a part of every target": {"train": {"reference": 8}},
    "its autoencoder": {"diffusion": {"latent": "runs/ae"}},
    "its teacher learnt": {"train": {"distil": {"teacher": "runs/t"}}, "sample": {"sampler": "euler", "steps": 4}},
    "no private training of an autoencoder": {"task": "autoencoder", "data": {"size": [16, 16]}},
    "no private training of a vae": {"baseline": {"kind": "vae"}, "diffusion": {"sigma_data": "auto"}},
    "fp16 scales the loss": {"train": {"precision": "fp16"}},
    "max_grad_norm takes its place": {"train": {"clip": 2.0}},
    "a divisor of that": {"train": {"batch": 4, "accumulate": 4, "privacy": {"noise_multiplicity": 3}}},
    "fewer, a tenth": {"train": {"batch": 5}},
    "publishing one of them whole": {"train": {"privacy": {"delta": 0.25}}},
}


@pytest.mark.parametrize(("why", "settings"), LEAKS.items(), ids=LEAKS)
def test_what_would_get_past_the_noise_is_refused_before_anything_is_written(tmp_path, why, settings):
    whole = merged(private_tree(tmp_path / "cache"), settings)
    if "percentile" in why:
        whole["data"]["intensity"] = {"kind": "percentile"}
    with pytest.raises((PrivacyError, ConfigError), match=why):
        fit(parse_config(whole, "test"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PrivacyError, match="start one without torchrun"):
        fit(private_config(tmp_path / "cache"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
