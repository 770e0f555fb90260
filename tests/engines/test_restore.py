"""Restoration end to end on a small cohort: train, restore, evaluate; and without training by a model of clean images."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from cohort import cohort, config, tree
from typer.testing import CliRunner

from meddiff.cli import app
from meddiff.config_file import parse_config
from meddiff.data.manifest import load_image
from meddiff.diffusion.denoiser import Preconditioned
from meddiff.engines.fit import fit
from meddiff.engines.restore import estimates, restore
from meddiff.errors import ConfigError, GeometryError, ImageError, RunError
from meddiff.imaging.dicom import find_series, read_series
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.nifti import read_nifti, write_nifti
from meddiff.imaging.phantom import write_cohort
from meddiff.imaging.volume import Volume

CPU = torch.device("cpu")


def settings(cache, kind="gaussian", dims=2, process="gaussian", **train):
    plain = tree(cohort(), cache, dims, **train)
    plain |= {"task": "restoration", "diffusion": {"process": process}}
    plain["data"]["degradation"] = {"kind": kind, **({"factor": [2] * dims} if kind == "downsample" else {})}
    plain["sample"] = {"steps": 4, "samples": 2, "batch": 32, "sigma_max": 5.0}
    plain["evaluate"] = {"sigmas": [0.1]}
    return parse_config(plain, "test")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("restoration")
    return fit(settings(folder / "cache", steps=60, checkpoint_every=60, lr=3e-3), folder / "run")


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthesis")
    return fit(config(cohort(), folder / "cache", steps=60, checkpoint_every=60, lr=3e-3), folder / "run")


@pytest.fixture(scope="module")
def noisy(trained):
    manifest = trained.manifest()
    clean = load_image(manifest, manifest.split("test")[0])
    noise = np.random.default_rng(0).normal(0, 60, clean.array.shape).astype(np.float32)
    return clean, Volume(clean.array + noise, clean.geometry, "CT", "HU")


def error(one, other):
    body = other.array > -200
    return float(np.sqrt(np.square(one.array.clip(-200, 400) - other.array.clip(-200, 400))[body].mean()))


def test_what_lies_beyond_the_window_is_not_shown_and_stays_as_it_was(trained):
    model, card = trained.load_model(CPU)
    array = np.random.default_rng(0).normal(50, 60, (16, 16, 3)).astype(np.float32)
    metal = np.zeros(array.shape, bool)
    metal[5:8, 5:8] = True  # the window ends at 400 HU
    scans = [
        Volume(np.where(metal, array + more, array), Geometry.make(array.shape, (15.0, 15.0, 15.0)), "CT", "HU")
        for more in (1000, 6000)
    ]
    results = [restore(model, trained.config(), card, scan, "a", 0, sigma=60.0).image.array for scan in scans]
    np.testing.assert_allclose(results[1][~metal], results[0][~metal], atol=1e-3)
    for scan, result in zip(scans, results, strict=True):
        np.testing.assert_allclose(result[metal], scan.array[metal], rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "dims", "process"),
    [("rician", 2, "direct"), ("mask", 2, "gaussian"), ("low_dose_ct", 2, "gaussian"), ("downsample", 3, "gaussian")],
)
def test_every_degradation_trains_and_restores(tmp_path, kind, dims, process, noisy):
    run = fit(settings(tmp_path / "cache", kind, dims, process, steps=2), tmp_path / "run")
    model, card = run.load_model(CPU)
    if kind == "mask":
        with pytest.raises(ConfigError, match="does not say which of its voxels were not measured"):
            restore(model, run.config(), card, noisy[1], "a", 0)
        check_filled(model, run.config(), card, noisy[0])
        call = ["evaluate", str(run.folder), "-o", str(tmp_path / "e"), "--limit", "1"]
        assert CliRunner().invoke(app, call).exit_code == 0
        return
    result = restore(model, run.config(), card, noisy[1], "a", 0)
    assert result.image.array.shape == noisy[1].array.shape
    assert (result.std is None) == (process == "direct")
    assert np.isfinite(result.image.array).all()


def test_the_mean_is_nearer_to_the_clean_scan_than_the_noisy_one_and_than_a_sample(trained, noisy):
    clean, scan = noisy
    model, card = trained.load_model(CPU)
    mean = restore(model, trained.config(), card, scan, "a", 0)
    sample = restore(model, trained.config(), card, scan, "a", 0, estimate="sample")
    grid = restore(model, trained.config(), card, clean, "a", 0, sigma=1.0).image  # what the model's grid keeps
    assert error(mean.image, grid) < error(scan, grid)
    assert error(mean.image, grid) < error(sample.image, grid)
    assert mean.sigma is not None  # of the model's grid, whose coarser voxels average noise away
    assert 10 < mean.sigma < 60
    assert mean.std is not None
    assert mean.std.array.mean() > 0


def test_the_same_call_gives_the_same_bytes_and_another_seed_another_sample(trained, noisy):
    model, card = trained.load_model(CPU)
    one, two, other = (
        restore(model, trained.config(), card, noisy[1], "a", seed, estimate="sample").image.array for seed in (0, 0, 1)
    )
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def hole(volume):
    """A cuboid inside the head, three slices thick."""
    array = np.zeros(volume.array.shape, np.uint8)
    array[8:16, 9:14, 10:13] = 1
    return Volume(array, volume.geometry, "SEG", "label")


def check_filled(model, config, card, scan):
    missing = hole(scan)
    inside = missing.array > 0
    broken = Volume(np.where(inside, np.float32(400), scan.array), scan.geometry, "CT", "HU")
    result = restore(model, config, card, broken, "a", 0, missing=missing)
    assert np.array_equal(result.image.array[~inside], scan.array[~inside])
    assert not np.array_equal(result.image.array[inside], broken.array[inside])
    assert np.isfinite(result.image.array).all()
    assert result.std is not None
    assert (result.std.array > 0)[inside].mean() > 0.9
    assert not result.std.array[~inside].any()
    return error(result.image, scan), error(broken, scan)


def test_a_model_of_clean_images_fills_in_what_was_not_measured(unconditional, noisy):
    model, card = unconditional.load_model(CPU)
    found, before = check_filled(model, unconditional.config(), card, noisy[0])
    assert found < before


def test_a_mask_that_does_not_fit_is_refused(trained, unconditional, noisy, tmp_path):
    scan, missing = noisy[0], hole(noisy[0])
    model, card = unconditional.load_model(CPU)

    def fill(missing, run=unconditional, **options):
        restore(model, run.config(), card, scan, "a", 0, missing=missing, **options)

    with pytest.raises(GeometryError, match="The mask lies on another grid"):
        fill(Volume(missing.array[:-1], replace(scan.geometry, shape=missing.array[:-1].shape), "SEG", "label"))
    with pytest.raises(ImageError, match="values from 0 to 3"):
        fill(Volume(3 * missing.array, scan.geometry, "SEG", "label"))
    with pytest.raises(ImageError, match="1 at least once"):
        fill(Volume(0 * missing.array, scan.geometry, "SEG", "label"))
    with pytest.raises(ConfigError, match="measured voxels are kept"):
        fill(missing, sigma=3.0)
    with pytest.raises(ConfigError, match="this one undoes gaussian"):
        fill(missing, trained)
    for name in ("a", "b"):
        write_nifti(tmp_path / "scans" / f"{name}.nii.gz", scan)
    write_nifti(tmp_path / "mask.nii.gz", missing)
    call = ["restore", str(unconditional.folder), str(tmp_path / "scans"), "-o", str(tmp_path / "o")]
    result = CliRunner().invoke(app, [*call, "--mask", str(tmp_path / "mask.nii.gz")])
    assert isinstance(result.exception, ConfigError)
    assert "belongs to one scan; 2 were found" in str(result.exception)


def test_a_model_of_clean_images_removes_noise_it_never_saw(unconditional, noisy):
    model, card = unconditional.load_model(CPU)
    clean, scan = noisy
    result = restore(model, unconditional.config(), card, scan, "a", 0, sigma=60.0)
    grid = restore(model, unconditional.config(), card, clean, "a", 0, sigma=1.0).image
    assert error(result.image, grid) < error(scan, grid)
    assert result.std is not None


class Nothing(torch.nn.Module):
    """The network of the exact denoiser of white Gaussian data: D = c_skip * x."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, c_noise, cond=None):
        return self.weight * x


@pytest.mark.parametrize("level", [0.002, 0.2, 2.0])
def test_without_training_for_it_samples_of_gaussian_data_have_mean_and_spread_of_the_posterior(tmp_path, level):
    std = 0.5
    model = Preconditioned(Nothing(), "edm", std)
    draw = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 2, 1, 32, 32, generator=draw)
    y = std * x0 + level * noise
    mean, samples = estimates(model, config(cohort(), tmp_path), y, level, ["a"], 0, 16)
    pull = std**2 / (std**2 + level**2)
    torch.testing.assert_close(mean, pull * y)
    spread = level * pull**0.5
    assert float((samples - mean).std()) == pytest.approx(spread, rel=0.12)  # four steps
    assert float((samples - mean).mean()) == pytest.approx(0, abs=0.05 * spread)


def test_the_command_writes_nifti_or_a_derived_series(trained, noisy, tmp_path):
    write_nifti(tmp_path / "scan.nii.gz", noisy[1])
    call = ["restore", str(trained.folder), str(tmp_path / "scan.nii.gz"), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.stderr
    assert "HU, measured" in result.stderr
    assert np.array_equal(
        read_nifti(tmp_path / "out" / "scan_restored.nii.gz").geometry.affine, noisy[1].geometry.affine
    )
    sidecar = json.loads((tmp_path / "out" / "scan.json").read_text())
    assert sidecar["estimate"] == "mean"
    assert sidecar["sigma"] > 0
    assert sidecar["trained_for"] == {"kind": "gaussian", "sigma": [0.02, 0.2]}
    assert sidecar["files"] == ["scan_restored.nii.gz", "scan_std.nii.gz"]
    write_cohort(tmp_path / "dicom", 1, format="dicom", size=24, seed=5)
    call = ["restore", str(trained.folder), str(tmp_path / "dicom"), "-o", str(tmp_path / "d"), "--format", "dicom"]
    result = CliRunner().invoke(app, [*call, "--sigma", "40"])
    assert result.exit_code == 0, result.stderr
    (series,), refused = find_series(sorted((tmp_path / "d").rglob("*.dcm")))
    assert not refused
    (source,), _ = find_series(sorted(p for p in (tmp_path / "dicom").rglob("*") if p.is_file()))
    grid = read_series(source.files).geometry
    assert read_series(series.files).geometry.close(grid, 1e-3)
    (std,) = (tmp_path / "d").glob("*_std.nii.gz")
    assert read_nifti(std).geometry.close(grid, 1e-3)


def test_evaluation_compares_with_the_classics_and_with_a_baseline(trained, tmp_path):
    base = fit(settings(tmp_path / "cache", process="direct", steps=2), tmp_path / "direct")
    call = ["evaluate", str(trained.folder), "-o", str(tmp_path / "e"), "--limit", "1", "--images", "3"]
    call += ["--baseline", str(base.folder)]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.stderr
    methods = json.loads((tmp_path / "e" / "metrics.json").read_text())["methods"]
    assert set(methods) == {
        "degraded",
        "non-local means",
        "wavelet",
        "diffusion, one evaluation",
        "diffusion, mean of 2 samples",
        "diffusion, one sample",
        "baseline direct, one evaluation",
    }
    assert methods["diffusion, one evaluation"]["psnr"]["mean"] > methods["diffusion, one sample"]["psnr"]["mean"]
    sets = json.loads((tmp_path / "e" / "metrics.json").read_text())["sets"]
    assert set(sets) == {"clean", *methods}
    assert set(sets["clean"]) == {
        "sliced_wasserstein",
        "spectrum_db",
        "texture",
        "texture/1",
        "of_others",
        "of_others/1",
    }
    done = [json.loads(line) for line in (tmp_path / "e" / "degradations.jsonl").read_text().splitlines()]
    assert [(one["kind"], one["sigma"]) for one in done] == [("gaussian", pytest.approx(0.1))] * 3
    assert len({(one["case"], one["slice"], one["seed"]) for one in done}) == 3


def test_a_baseline_that_cannot_take_the_images_is_refused(trained, unconditional, tmp_path):
    def evaluate(run, other):
        result = CliRunner().invoke(
            app, ["evaluate", str(run.folder), "-o", str(tmp_path / "e"), "--baseline", str(other.folder)]
        )
        assert isinstance(result.exception, RunError)
        return str(result.exception)

    wide = settings(tmp_path / "cache", steps=2)
    wide = wide.model_copy(update={"data": wide.data.model_copy(update={"spacing_mm": (12.0, 12.0)})})
    assert "data.spacing_mm is (12.0, 12.0)" in evaluate(trained, fit(wide, tmp_path / "wide"))
    ringing = fit(settings(tmp_path / "cache", "gibbs", process="direct", steps=2), tmp_path / "gibbs")
    assert "this table is of gibbs" in evaluate(ringing, unconditional)
    masked = fit(settings(tmp_path / "cache", "mask", process="direct", steps=2), tmp_path / "mask")
    assert "one is told what was masked and one is not" in evaluate(masked, ringing)


def test_a_level_is_refused_where_there_is_none_and_a_sample_where_none_is_drawn(tmp_path, noisy):
    run = fit(settings(tmp_path / "cache", "gibbs", process="direct", steps=2), tmp_path / "run")
    model, card = run.load_model(CPU)
    with pytest.raises(ConfigError, match="this run undoes gibbs, which has no such level"):
        restore(model, run.config(), card, noisy[1], "a", 0, sigma=5.0)
    with pytest.raises(ConfigError, match="use --estimate mean"):
        restore(model, run.config(), card, noisy[1], "a", 0, estimate="sample")


def test_several_processes_cannot_leave_a_network_out_of_a_step(tmp_path, monkeypatch):
    monkeypatch.setattr("meddiff.engines.trainer.world", lambda: 2)
    with pytest.raises(ConfigError, match="2 processes cannot agree on"):
        fit(settings(tmp_path / "cache", steps=2, sampling_steps=0.5), tmp_path / "run")


def test_restoration_without_a_degradation_is_refused(tmp_path):
    plain = tree(cohort(), tmp_path)
    with pytest.raises(ConfigError, match=r"restoration needs data\.degradation"):
        parse_config({**plain, "task": "restoration"}, "test")
