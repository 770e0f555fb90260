import json

import nibabel as nib
import numpy as np
import pytest
import torch
from cohort import cohort, config

from meddiff.data.manifest import Manifest, load_image
from meddiff.diffusion.samplers import SAMPLERS
from meddiff.engines.evaluate import compare
from meddiff.engines.fit import fit
from meddiff.engines.predict import draw_samples, sigma_grid
from meddiff.engines.sets import write_niftis
from meddiff.engines.synthetic import sample_set
from meddiff.errors import RunError


@pytest.fixture(scope="module", params=[2, 3])
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    run = fit(config(cohort(), folder / "cache", request.param), folder / "run")
    return run.config(), *run.load_model(torch.device("cpu")), run


def with_sample(config, **changes):
    return config.model_copy(update={"sample": config.sample.model_copy(update=changes)})


def test_another_batch_gives_the_same_samples(trained):
    settings, model, _, _ = trained
    names = [f"sample_{i}" for i in range(5)]
    one, many = (torch.stack(list(draw_samples(model, with_sample(settings, batch=b), names, 0))) for b in (1, 5))
    torch.testing.assert_close(one, many, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_spends_what_the_config_says(trained, sampler):
    settings, model, _, _ = trained
    calls = []
    hook = model.register_forward_hook(lambda *a: calls.append(1))
    samples = list(draw_samples(model, with_sample(settings, sampler=sampler, steps=8), ["a"], 0))
    hook.remove()
    assert len(calls) == 8
    assert torch.isfinite(samples[0]).all()


def test_a_larger_image_is_sampled_in_windows(trained):
    settings, model, _, _ = trained
    size = tuple(n + 7 for n in settings.data.size)
    (sample,) = draw_samples(model, settings, ["a"], 0, size=size)
    assert sample.shape == (1, *size)


def test_samples_are_files_with_a_place_units_and_a_sidecar(trained, tmp_path):
    settings, model, card, _ = trained
    manifest = sample_set(model, card, settings, 3, tmp_path / "a", 0, write_niftis)
    again = sample_set(model, card, with_sample(settings, batch=2), 2, tmp_path / "b", 0, write_niftis)
    assert len(manifest.cases) == 3
    image = nib.load(tmp_path / "a" / "sample_00001.nii.gz")
    np.testing.assert_allclose(image.header.get_zooms(), card.space.spacing_mm, rtol=1e-6)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.get_fdata().min() >= -200.01
    assert image.get_fdata().max() <= 400.01
    sidecar = json.loads((tmp_path / "a" / "sample_00001.json").read_text())
    assert sidecar["weights"] == card.weights
    assert sidecar["evaluations"] == 5
    assert sidecar["synthetic"] is True
    case = Manifest.read(tmp_path / "a" / "manifest.jsonl").cases[1]
    assert load_image(manifest, case).unit == "HU"
    np.testing.assert_allclose(load_image(again, again.cases[1]).array, load_image(manifest, case).array, atol=0.01)


def test_the_same_command_gives_the_same_bytes_and_takes_up_its_own_set(trained, tmp_path):
    settings, model, card, _ = trained
    for name in ("a", "b", "a"):
        sample_set(model, card, settings, 2, tmp_path / name, 0, write_niftis)
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert [(tmp_path / "a" / n).read_bytes() for n in names] == [(tmp_path / "b" / n).read_bytes() for n in names]


def test_another_set_is_not_written_over(trained, tmp_path):
    settings, model, card, _ = trained
    sample_set(model, card, settings, 1, tmp_path / "a", 0, write_niftis)
    with pytest.raises(RunError, match="something else than this set"):
        sample_set(model, card, settings, 1, tmp_path / "a", 1, write_niftis)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        sample_set(model, card, settings, 1, tmp_path / "file", 0, write_niftis)


def test_comparison_reports_its_floor_and_n(trained):
    settings, model, _, run = trained
    result = compare(model, settings, run.manifest(), "test", 0)
    assert 2 <= result.numbers["n"] <= 12
    assert result.numbers["ratio"] == pytest.approx(
        result.numbers["sliced_wasserstein"] / result.numbers["sliced_wasserstein_train"]
    )
    assert result.closest.shape == result.samples.shape


def test_the_grid_of_a_setting_has_its_limits(trained):
    sigmas = sigma_grid(trained[0].sample)
    assert (sigmas[0].item(), sigmas[-1].item()) == (80.0, 0.0)
