"""From an autoencoder to samples of a model of its latents."""

import json
import shutil

import numpy as np
import pytest
import torch
from cohort import cohort, tree
from torch.testing import assert_close

from meddiff.config_file import parse_config
from meddiff.data.latents import LatentImages
from meddiff.data.loader import Draw, fixed
from meddiff.diffusion.compose import Latent
from meddiff.engines.evaluate import compare
from meddiff.engines.fit import fit, prepare
from meddiff.engines.latents import Codec
from meddiff.engines.predict import draw_samples
from meddiff.engines.reconstruct import reconstructed
from meddiff.engines.run import Run
from meddiff.errors import ConfigError, ManifestError, RunError
from meddiff.report.previews import previews

CPU = torch.device("cpu")


def autoencoder_tree(cache, dims):
    raw = tree(cohort(), cache, dims, steps=4)
    raw["data"]["size"] = [8] * dims
    raw["data"] |= {"crop": "random", "min_foreground": 0}
    return {**raw, "task": "autoencoder", "network": {"spatial_dims": dims, "channels": [8, 16], "blocks": 1}}


def latent_tree(cache, dims, run, **data):
    raw = tree(cohort(), cache, dims, steps=4)
    raw["network"] |= {"channels": [8]}
    raw["data"] |= data
    return {**raw, "diffusion": {"latent": str(run)}}


@pytest.fixture(scope="module", params=[2, 3])
def runs(request, tmp_path_factory):
    """An autoencoder, a model of its latents, and their cache."""
    folder, dims = tmp_path_factory.mktemp("latent"), request.param
    cache = folder / "cache"
    first = fit(parse_config(autoencoder_tree(cache, dims), "test"), folder / "ae", attach=[previews])
    second = fit(parse_config(latent_tree(cache, dims, first.folder), "test"), folder / "ldm", attach=[previews])
    return first, second, cache, dims


def test_both_runs_leave_weights_and_pictures(runs):
    first, second, _, _ = runs
    assert (first.previews / "step_00000004.png").is_file()
    assert {p.name for p in second.previews.iterdir()} == {"forward.png", "reverse.png", "step_00000004.png"}
    assert second.load_model(CPU)[1].step == 4


def test_the_cache_holds_means_and_deviations_and_no_draw(runs):
    _, second, _, dims = runs
    codec = Codec.open(second.config(), second, CPU)
    images = prepare(second.config(), second.manifest(), "train")
    latents, _, _ = codec.encoded(images, None)
    volume = torch.from_numpy(images.store.array(images.cases[0]).astype(np.float32))
    part = volume[None, None] if dims == 3 else volume.movedim(2, 0)[3][None, None]
    part = torch.nn.functional.pad(
        part, [side for n in reversed(part.shape[2:]) for side in ((16 - n) // 2,) * 2], value=-1.0
    )
    found = np.load(latents.path(images.cases[0]))[0 if dims == 3 else 3]
    with torch.no_grad():
        assert_close(torch.from_numpy(found), torch.cat(codec.model.encode(part), dim=1)[0])


def test_a_draw_follows_from_its_seed_and_has_unit_deviation(runs):
    _, second, _, _ = runs
    codec = Codec.open(second.config(), second, CPU)
    latents, _, card = codec.encoded(prepare(second.config(), second.manifest(), "train"), None)
    one, same, other = (latents[Draw(0, seed)]["image"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    whole = fixed(latents, 256)["image"].transpose(0, 1).flatten(1)
    assert_close(whole.std(1), torch.ones(len(card.std)), rtol=0, atol=1e-4)
    assert_close(whole.mean(1), torch.zeros(len(card.mean)), rtol=0, atol=1e-4)


def test_samples_are_images_and_do_not_depend_on_their_batch(runs):
    _, second, _, dims = runs
    model, _ = second.load_model(CPU)
    assert isinstance(model, Latent)
    settings = second.config()
    one = settings.model_copy(update={"sample": settings.sample.model_copy(update={"batch": 1})})
    names = ["a", "b"]
    together, apart = (torch.stack(list(draw_samples(model, c, names, 0))) for c in (settings, one))
    assert together.shape == (2, 1, *[16] * dims)
    assert_close(together, apart, rtol=0, atol=1e-4)
    (larger,) = draw_samples(model, settings, ["a"], 0, size=[24, *[16] * (dims - 1)])
    assert larger.shape == (1, 24, *[16] * (dims - 1))


def test_samples_are_compared_with_images(runs):
    _, second, _, dims = runs
    model, _ = second.load_model(CPU)
    result = compare(model, second.config(), second.manifest(), "test", 0)
    assert result.samples.shape[1:] == result.held_out.shape[1:] == (1, *[16] * dims)


def test_reconstructions_are_measured_on_whole_scans(runs):
    first, _, _, dims = runs
    model, card = first.load_model(CPU)
    images = prepare(first.config(), first.manifest(), "test")
    seen = []
    rows = list(reconstructed(model, images, card.space.scale, keep=lambda case, a, b: seen.append((a.shape, b.shape))))
    assert [row["case"] for row in rows] == [case.case for case in images.cases]
    assert all(a == b and a[1:] == (1, *[16] * dims) for a, b in seen)
    assert all(0 < row["psnr"] < 100 and np.isfinite(row["ssim"]) for row in rows)


def test_a_run_of_latents_is_complete_in_itself_and_resumes_without_the_autoencoders(runs, tmp_path):
    _, second, cache, dims = runs
    moved = tmp_path / "moved"
    shutil.copytree(second.folder, moved)
    lost = parse_config(latent_tree(cache, dims, tmp_path / "gone"), "test")
    assert fit(lost, moved, resume=True).load_model(CPU)[1].weights == second.load_model(CPU)[1].weights


def test_another_autoencoder_in_the_run_is_refused(runs, tmp_path):
    _, second, _, _ = runs
    moved = tmp_path / "moved"
    shutil.copytree(second.folder, moved)
    card = json.loads((moved / "model.json").read_text())
    card["latents"]["autoencoder"] = "0" * 64
    (moved / "model.json").write_text(json.dumps(card))
    with pytest.raises(RunError, match="another autoencoder"):
        Run(moved).load_model(CPU)


def test_an_autoencoder_of_other_images_is_refused(runs, tmp_path):
    first, second, cache, dims = runs
    with pytest.raises(ConfigError, match=r"data.intensity is .*use the same"):
        fit(
            parse_config(
                latent_tree(cache, dims, first.folder, intensity={"kind": "window", "low": 0, "high": 80}), "test"
            ),
            tmp_path / "a",
        )
    with pytest.raises(RunError, match="is a run of synthesis"):
        fit(parse_config(latent_tree(cache, dims, second.folder), "test"), tmp_path / "b")
    deep = latent_tree(cache, dims, first.folder)
    deep["network"]["channels"] = [8] * 5
    with pytest.raises(ConfigError, match=r"has \[8.*too few for 5 levels"):
        fit(parse_config(deep, "test"), tmp_path / "c")
    odd = parse_config(latent_tree(cache, dims, first.folder, size=[15] * dims), "test")
    with pytest.raises(ConfigError, match="must divide by 2"):
        fit(odd, tmp_path / "d")
    assert not any((tmp_path / name).exists() for name in "abcd")


def test_damaged_latents_in_the_cache_are_told(runs, tmp_path):
    _, second, _, _ = runs
    images = prepare(second.config(), second.manifest(), "train")
    latents = LatentImages(images, "0" * 64, 2)
    latents.path(images.cases[0]).write_bytes(b"\x93NUMPY\1\0 torn")
    with pytest.raises(ManifestError, match="this file of the cache cannot be read"):
        latents.image(0, 0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"task": "segmentation", "diffusion": {"latent": "x"}}, "latent is for synthesis"),
        ({"diffusion": {"latent": "x"}, "data": {"augment": {"flip": True}}}, "latents are encoded once"),
        (
            {"task": "autoencoder", "network": {"attention": [False, True], "head_channels": 8}},
            "an autoencoder has none",
        ),
        ({"task": "autoencoder", "network": {"dropout": 0.1}}, "an autoencoder has none"),
        ({"task": "autoencoder", "data": {"size": [18, 16]}}, "must divide by 4"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(change, match):
    raw = tree(cohort(), None)
    for key, value in change.items():
        raw[key] = {**raw.get(key, {}), **value} if isinstance(value, dict) else value
    with pytest.raises(ConfigError, match=match):
        parse_config(raw, "test")
