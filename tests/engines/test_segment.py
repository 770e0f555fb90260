"""Segmentation end to end on a small cohort: train, segment, evaluate."""

import json
import re

import numpy as np
import pytest
import torch
from cohort import KEY, cohort, tree
from typer.testing import CliRunner

from meddiff.cli import app
from meddiff.config_file import parse_config
from meddiff.data.manifest import Manifest, load_image, load_label
from meddiff.data.scan import scan, write_scan
from meddiff.data.store import label_names
from meddiff.diffusion.denoiser import Condition
from meddiff.engines.card import build_model
from meddiff.engines.evaluate_cases import cases_from
from meddiff.engines.fit import fit, prepare
from meddiff.engines.run import Run
from meddiff.engines.segment import segment
from meddiff.errors import ImageError, ManifestError, MeddiffError
from meddiff.imaging.dicom_seg_read import read_seg
from meddiff.imaging.nifti import write_nifti
from meddiff.imaging.phantom import write_cohort
from meddiff.imaging.volume import Volume

LABELS = ("csf", "grey matter", "white matter", "lesion", "scalp", "skull")


def settings(cache, dims=2, process="gaussian", **train):
    plain = tree(cohort(), cache, dims, **train)
    plain |= {"task": "segmentation", "diffusion": {"process": process, "training": {"kind": "lognormal", "mean": 1.0}}}
    plain["sample"] = {"steps": 3, "samples": 2, "batch": 32, "sigma_min": 0.3}
    return parse_config(plain, "test")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segmentation")
    return fit(settings(folder / "cache", steps=30, checkpoint_every=30, lr=3e-3), folder / "run")


def test_scans_of_air_are_background_without_a_look_where_that_is_asked_for(trained):
    model, card = trained.load_model(torch.device("cpu"))
    tree = trained.config().model_dump(mode="json")
    config = parse_config({**tree, "sample": {**tree["sample"], "skip_empty": True}}, "test")
    volume = volume_of(trained)
    air = Volume(np.full_like(volume.array, -1000), volume.geometry, volume.modality, volume.unit)
    model.network.first.forward = None  # nobody is asked
    result = segment(model, config, card, air, "air", 0)
    assert not result.label.array.any()
    np.testing.assert_array_equal(result.probability[0], 1)


def test_slices_that_show_something_are_segmented_as_ever_beside_empty_ones(trained):
    model, card = trained.load_model(torch.device("cpu"))
    tree = trained.config().model_dump(mode="json")
    config = parse_config({**tree, "sample": {**tree["sample"], "skip_empty": True}}, "test")
    volume = volume_of(trained)
    with_air = volume.array.copy()
    with_air[:, :, : volume.array.shape[2] // 2] = -1000
    scan = Volume(with_air, volume.geometry, volume.modality, volume.unit)
    found, whole = (segment(model, c, card, scan, "half", 0).probability for c in (config, trained.config()))
    full = np.unique(np.nonzero((with_air > -200).any((0, 1)))[0])
    inner = full[2:-2]  # a slice of the model's grid may be made of two of the scan's
    np.testing.assert_allclose(found[..., inner], whole[..., inner], atol=1e-5)
    assert (found[0, ..., 0] == 1).all()


def volume_of(run):
    manifest = run.manifest()
    return load_image(manifest, manifest.split("test")[0])


@pytest.mark.parametrize(("dims", "process"), [(2, "categorical"), (2, "direct"), (3, "gaussian")])
def test_every_process_trains_and_segments_a_scan_on_its_own_grid(tmp_path, dims, process):
    run = fit(settings(tmp_path / "cache", dims, process), tmp_path / "run")
    model, card = run.load_model(torch.device("cpu"))
    volume = volume_of(run)
    result = segment(model, run.config(), card, volume, "case", 0)
    assert tuple(card.labels) == LABELS
    assert result.label.array.shape == volume.array.shape
    assert np.array_equal(result.label.geometry.affine, volume.geometry.affine)
    np.testing.assert_allclose(result.probability.sum(0), 1, atol=1e-5)
    assert result.ensemble.samples == (1 if process == "direct" else 2)
    assert result.entropy.min() >= 0
    assert result.entropy.max() <= 1


def test_a_few_steps_teach_it_the_skull_and_resume_gives_the_same_weights(trained, tmp_path):
    model, card = trained.load_model(torch.device("cpu"))
    manifest = trained.manifest()
    case = manifest.split("test")[0]
    result = segment(model, trained.config(), card, load_image(manifest, case), case.case, 0)
    truth = load_label(manifest, case).array
    assert (result.label.array == truth).mean() > 0.7
    parts = settings(tmp_path / "cache", steps=4, checkpoint_every=2)
    whole = fit(parts, tmp_path / "whole")
    fit(parts, tmp_path / "parts", attach=[_stop_at(3)])
    resumed = fit(parts, tmp_path / "parts", resume=True)
    assert whole.weights_path.read_bytes() == resumed.weights_path.read_bytes()


def _stop_at(step):
    from ignite.engine import Events

    return lambda session: session.engine.add_event_handler(
        Events.ITERATION_COMPLETED(once=step), lambda engine: engine.terminate()
    )


def test_samples_depend_on_seed_and_name_and_not_on_the_batch(trained):
    model, card = trained.load_model(torch.device("cpu"))
    config, volume = trained.config(), volume_of(trained)
    one = segment(model, config, card, volume, "a", 0).probability
    tree_ = config.model_dump(mode="json")
    tree_["sample"]["batch"] = 5
    np.testing.assert_allclose(
        segment(model, parse_config(tree_, "t"), card, volume, "a", 0).probability, one, atol=1e-4
    )
    assert np.abs(segment(model, config, card, volume, "a", 1).probability - one).max() > 1e-3
    assert np.abs(segment(model, config, card, volume, "b", 0).probability - one).max() > 1e-3


def test_a_tolerance_says_how_many_samples_it_took(trained):
    model, card = trained.load_model(torch.device("cpu"))
    result = segment(model, trained.config(), card, volume_of(trained), "a", 0, tolerance=10.0)
    assert result.ensemble.samples == 8
    assert result.ensemble.enough
    assert set(result.volumes()) == set(LABELS)


def test_the_first_answer_is_shared_by_all_samples(trained):
    model, card = trained.load_model(torch.device("cpu"))
    calls = []
    model.network.first.register_forward_hook(lambda *_: calls.append(1))
    segment(model, trained.config(), card, volume_of(trained), "a", 0)
    assert len(calls) == 1


def test_a_scan_is_shown_to_the_model_as_training_showed_its_images(trained):
    """What is beyond the window of intensities, air and bone here, is cut off there: it must not be larger here."""
    model, card = trained.load_model(torch.device("cpu"))
    tree_ = trained.config().model_dump(mode="json")
    tree_["sample"] |= {"steps": 1}
    tree_["data"]["intensity"] |= {"low": -20, "high": 100}
    config, manifest = parse_config(tree_, "t"), trained.manifest()
    images = prepare(config, manifest, "test")
    said = []
    segment(model, config, card, load_image(manifest, images.cases[0]), "a", 0, on_sample=said.append)
    for index in (i for i, item in enumerate(images.items) if item.case == 0):
        image = images.image(index, 0)["image"][None]
        expected = model(torch.zeros(1, model.classes, 16, 16), torch.tensor(torch.inf), Condition(image))[0]
        at = images.items[index].slice
        torch.testing.assert_close(said[0][..., at], expected, atol=0.02, rtol=0)  # the store holds float16


def test_every_other_sample_sees_a_mirrored_scan_if_the_model_learned_from_such(trained):
    model, card = trained.load_model(torch.device("cpu"))
    tree_ = trained.config().model_dump(mode="json")
    tree_["sample"] |= {"samples": 4}
    seen = []
    model.network.first.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    for flip, views in ((False, 1), (True, 2)):
        tree_["data"]["augment"]["flip"] = flip
        seen.clear()
        result = segment(model, parse_config(tree_, "t"), card, volume_of(trained), "a", 0)
        assert len(seen) == views
        assert result.ensemble.samples == 4
    torch.testing.assert_close(seen[0], seen[1].flip(2))


def test_the_command_segments_dicom_and_nifti_and_goes_on_after_a_failure(trained, tmp_path):
    write_cohort(tmp_path / "scans", 1, format="dicom", size=24, seed=5)
    volume = volume_of(trained)
    write_nifti(tmp_path / "scans" / "good.nii.gz", volume)
    write_nifti(tmp_path / "scans" / "mr.nii.gz", Volume(np.zeros_like(volume.array), volume.geometry, "MR"))
    (tmp_path / "scans" / "broken.nii.gz").write_bytes((tmp_path / "scans" / "good.nii.gz").read_bytes()[:200])
    arguments = [
        "segment",
        str(trained.folder),
        str(tmp_path / "scans"),
        "-o",
        str(tmp_path / "out"),
        "--format",
        "both",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "broken" in result.stderr
    sidecar = json.loads((tmp_path / "out" / "good.json").read_text())
    assert sidecar["labels"] == dict(zip(LABELS, range(1, 7), strict=True))
    assert sidecar["samples"] == 2
    for suffix in ("_label.nii.gz", "_probability.nii.gz", "_entropy.nii.gz", ".png"):
        assert (tmp_path / "out" / f"good{suffix}").is_file()
    (seg,) = (tmp_path / "out").glob("*_seg.dcm")
    labels, names = read_seg(seg)
    assert set(names.values()) <= set(LABELS)
    assert labels.array.any()


def test_evaluation_gives_a_table_of_methods(trained, tmp_path):
    result = CliRunner().invoke(app, ["evaluate", str(trained.folder), "-o", str(tmp_path / "e"), "--limit", "2"])
    assert result.exit_code == 0, result.stderr
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert set(metrics["methods"]) == {"ensemble", "one evaluation"}
    assert 0 < metrics["methods"]["ensemble"]["dice"]["mean"] <= 1
    assert metrics["metrics"]["dice"]["cases"] == 2
    assert (tmp_path / "e" / "cases.png").is_file()


def elsewhere(folder, seed, key):
    """The manifest of other heads, all of them held out."""
    write_cohort(folder / "data", 2, format="nifti", size=24, seed=seed)
    cases, refused = scan([folder / "data"], split=(0, 0, 1), key=key, root=folder)
    write_scan(folder / "m.jsonl", cases, refused)
    return folder / "m.jsonl"


def test_evaluation_takes_cases_from_elsewhere(trained, tmp_path):
    path = elsewhere(tmp_path, 1, b"of another hospital")
    result = CliRunner().invoke(
        app, ["evaluate", str(trained.folder), "--manifest", str(path), "-o", str(tmp_path / "e")]
    )
    assert result.exit_code == 0, result.stderr
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert metrics["manifest"] == Manifest.read(path).digest != trained.manifest().digest
    rows = (tmp_path / "e" / "cases.csv").read_text()
    assert all(case.case in rows for case in Manifest.read(path).cases)


@pytest.mark.parametrize(("seed", "key"), [(0, b"another"), (1, KEY)], ids=["the same images", "the same patients"])
def test_evaluation_refuses_cases_that_were_trained_on(trained, tmp_path, seed, key):
    path = elsewhere(tmp_path, seed, key)
    with pytest.raises(ManifestError, match=r"was trained on \d of its 2 cases"):
        cases_from(path, [trained])


def test_what_is_no_scan_of_this_model_is_refused(trained):
    model, card = trained.load_model(torch.device("cpu"))
    volume = volume_of(trained)
    with pytest.raises(ImageError, match=r"The scan is MR in a\.u\., the model learned from CT in HU"):
        segment(model, trained.config(), card, Volume(volume.array, volume.geometry, "MR"), "a", 0)
    hole = volume.array.copy()
    hole[3, 3, 3] = np.nan
    with pytest.raises(ImageError, match="1 voxels are NaN"):
        segment(model, trained.config(), card, Volume(hole, volume.geometry, "CT", "HU"), "a", 0)


def test_a_run_of_another_task_is_refused(trained, tmp_path):
    result = CliRunner().invoke(app, ["restore", str(trained.folder), str(tmp_path), "-o", str(tmp_path / "o")])
    assert isinstance(result.exception, MeddiffError)
    assert "was trained for segmentation, restoration is needed" in str(result.exception)


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("segment", ["-o", "taken"], "taken: cannot be made .*Choose a folder that you may write"),
        ("segment", ["-o", "taken/x"], "taken/x: cannot be made"),
        ("segment", ["-o", "new", "--tolerance", "0"], "--tolerance 0: must be above 0"),
        ("segment", ["-o", "new", "--steps", "2"], "sample.steps = 2 is too few"),
        ("evaluate", ["-o", "taken"], "taken: cannot be made"),
        ("evaluate", ["-o", "new", "--manifest", "taken"], "taken: holds no case"),
    ],
)
def test_what_cannot_be_done_for_any_scan_is_refused_before_the_first(
    trained, tmp_path, monkeypatch, command, options, message
):
    monkeypatch.chdir(tmp_path)
    write_nifti(tmp_path / "scan.nii.gz", volume_of(trained))
    (tmp_path / "taken").touch()
    scans = ["scan.nii.gz"] if command == "segment" else []
    result = CliRunner().invoke(app, [command, str(trained.folder.absolute()), *scans, *options])
    assert isinstance(result.exception, MeddiffError)
    assert re.search(message, str(result.exception))
    assert not (tmp_path / "new").exists()


def test_labels_that_are_missing_or_strange_are_refused(tmp_path):
    manifest = Manifest.read(cohort())
    data = settings(tmp_path).data
    with pytest.raises(ManifestError, match="tumour is missing"):
        label_names(manifest, data.model_copy(update={"labels": ("tumour",)}))
    bare = Manifest(tuple(c.model_copy(update={"label": None}) for c in manifest.cases), manifest.folder)
    with pytest.raises(ManifestError, match="has no label map"):
        label_names(bare, data)
    few = Manifest(tuple(c.model_copy(update={"labels": {"csf": 1}}) for c in manifest.cases), manifest.folder)
    path = tmp_path / "few.jsonl"
    few.write(path)
    config = settings(tmp_path / "cache")
    changed = config.model_copy(update={"data": config.data.model_copy(update={"manifest": path})})
    with pytest.raises(ManifestError, match=r"its label map holds \[2, 3"):
        fit(changed, tmp_path / "run")


def test_chosen_labels_are_learned_and_the_rest_is_background(tmp_path):
    config = settings(tmp_path / "cache")
    config = config.model_copy(update={"data": config.data.model_copy(update={"labels": ("skull", "csf")})})
    run = fit(config, tmp_path / "run")
    model, card = run.load_model(torch.device("cpu"))
    assert card.labels == {"skull": 6, "csf": 1}
    assert model.classes == 3
    assert Run.open(run.folder).config().data.labels == ("skull", "csf")
    assert sum(p.numel() for p in build_model(run.config(), 0.5, ("a", "b")).parameters()) > 0
