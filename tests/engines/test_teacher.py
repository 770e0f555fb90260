"""A run distilled from another one: trained, sampled, refused where it does not fit."""

import json

import pytest
import torch
from cohort import cohort, tree
from typer.testing import CliRunner

from meddiff.cli import app
from meddiff.config_file import parse_config
from meddiff.engines.card import Card
from meddiff.engines.fit import fit
from meddiff.engines.measure import Request, measure_step
from meddiff.engines.predict import check_voxels, draw_samples, evaluations, sampling_sigmas
from meddiff.engines.run import Run
from meddiff.errors import ConfigError, RunError


def student(cache, teacher, evaluations=2, substeps=2, **train):
    plain = tree(cohort(), cache, **train)
    plain["train"]["distil"] = {"teacher": str(teacher), "evaluations": evaluations, "substeps": substeps}
    plain["sample"] = {"sampler": "euler", "steps": evaluations, "batch": 4}
    return plain


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distil")
    teacher = fit(parse_config(tree(cohort(), folder / "cache"), "test"), folder / "teacher")
    config = parse_config(student(folder / "cache", teacher.folder, steps=4), "test")
    return teacher, fit(config, folder / "student")


def test_the_card_says_whom_a_run_was_distilled_from(runs):
    teacher, own = runs
    assert Card.read(own.card_path).teacher == Card.read(teacher.card_path).weights
    assert Card.read(teacher.card_path).teacher == ""
    assert Card.read(own.card_path).sigma_data == Card.read(teacher.card_path).sigma_data
    assert (
        f"from weights {Card.read(teacher.card_path).weights[:12]}"
        in CliRunner().invoke(app, ["info", str(own.folder)]).output
    )


def test_a_sample_takes_as_many_evaluations_as_it_was_distilled_to(runs):
    model, _ = runs[1].load_model(torch.device("cpu"))
    config, calls = runs[1].config(), []
    model.network.register_forward_hook(lambda *_: calls.append(1))
    sample = next(draw_samples(model, config, ["one"], 0))
    assert sample.isfinite().all()
    assert len(calls) == 2 == evaluations(config.sample, False)
    assert sampling_sigmas(config).tolist()[0] == config.sample.sigma_max
    assert sampling_sigmas(config).tolist()[-1] == 0


def test_the_student_begins_as_its_teacher(runs, tmp_path):
    """With a learning rate of next to nothing it stays the teacher, and its loss says how far one is from the other."""
    config = parse_config(student(tmp_path / "cache", runs[0].folder, steps=1, lr=1e-12), "test")
    own, _ = fit(config, tmp_path / "run").load_model(torch.device("cpu"))
    teacher, _ = runs[0].load_model(torch.device("cpu"))
    for name, value in teacher.state_dict().items():
        torch.testing.assert_close(own.state_dict()[name], value, rtol=0, atol=1e-9)


def test_a_distilled_run_is_sampled_by_the_command(runs, tmp_path):
    done = CliRunner().invoke(app, ["sample", str(runs[1].folder), "-n", "2", "-o", str(tmp_path / "set"), "--quiet"])
    assert done.exit_code == 0, done.output
    sidecar = json.loads((tmp_path / "set" / "sample_00000.json").read_text())
    assert sidecar["evaluations"] == 2


def test_a_distilled_run_that_was_cut_short_ends_in_the_same_weights(runs, tmp_path):
    config = parse_config(student(tmp_path / "cache", runs[0].folder, steps=4, checkpoint_every=2), "test")

    def stop(session):
        def end():
            raise KeyboardInterrupt

        from ignite.engine import Events

        session.engine.add_event_handler(Events.ITERATION_COMPLETED(once=3), end)

    whole = fit(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(config, tmp_path / "torn", attach=[stop])
    torn = fit(config, tmp_path / "torn", resume=True)
    assert whole.weights_path.read_bytes() == torn.weights_path.read_bytes()
    changed = config.model_copy(update={"sample": config.sample.model_copy(update={"sigma_max": 20.0})})
    with pytest.raises(RunError, match="written with another config"):
        fit(changed, Run(tmp_path / "torn").folder, resume=True)


@pytest.mark.parametrize(
    ("section", "settings", "message"),
    [
        ("network", {"channels": [8, 8]}, r"network\.channels is \[8, 16\] there and \[8, 8\] here"),
        ("data", {"size": [24, 24]}, r"data\.size is \[16, 16\] there and \[24, 24\] here"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(runs, tmp_path, section, settings, message):
    plain = student(tmp_path / "cache", runs[0].folder)
    plain[section] |= settings
    with pytest.raises(RunError, match=message):
        fit(parse_config(plain, "test"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_was_distilled_is_refused(runs, tmp_path):
    with pytest.raises(RunError, match="is distilled itself"):
        fit(parse_config(student(tmp_path / "cache", runs[1].folder), "test"), tmp_path / "run")


@pytest.mark.parametrize(
    ("section", "settings", "message"),
    [
        ("sample", {"steps": 4}, r"distilled to 2 evaluations.*sample\.steps 2; found euler and 4"),
        ("sample", {"sampler": "heun"}, "sample.sampler must be euler"),
        ("train", {"reference": 8}, r"remove train\.reference"),
        ("diffusion", {"noise": "uniform"}, r"remove diffusion\.noise uniform"),
    ],
)
def test_what_cannot_be_distilled_is_refused_by_the_config(tmp_path, section, settings, message):
    plain = student(tmp_path, "somewhere")
    plain.setdefault(section, {}).update(settings)
    with pytest.raises(ConfigError, match=message):
        parse_config(plain, "test")


def test_a_distilled_run_serves_for_samples_only(runs):
    with pytest.raises(RunError, match="knows too few noise levels for anything else"):
        check_voxels(runs[1].config())


def test_the_plan_counts_what_the_teacher_costs(tmp_path):
    plain = student(tmp_path, "nowhere yet", evaluations=1, substeps=4)
    costs = [
        measure_step(Request(config=parse_config(config_tree, "test"), batch=2, size=(16, 16))).flops
        for config_tree in (plain, {**plain, "train": {**plain["train"], "distil": None}, "sample": {"steps": 5}})
    ]
    assert costs[0] / costs[1] == pytest.approx(
        (5 + 3) / 3, rel=0.15
    )  # a start, four evaluations, forward and backward
