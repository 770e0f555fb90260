import json

import numpy as np
import pytest
import torch
from cohort import cohort, conditioned

from meddiff.config_file import parse_config
from meddiff.data.givens import Givens
from meddiff.data.manifest import Manifest, load_image, load_label
from meddiff.engines.asked import Asked, numbers
from meddiff.engines.card import build_task
from meddiff.engines.evaluate import compare
from meddiff.engines.fit import fit
from meddiff.engines.predict import draw_samples, evaluations
from meddiff.engines.sets import stacked, write_dicom, write_niftis
from meddiff.engines.synthetic import sample_set
from meddiff.errors import ConfigError, RunError
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.volume import Volume
from meddiff.report.previews import previews
from meddiff.report.set_pictures import save_grid, write_png

LABELS = ["csf", "lesion", "skull"]
CPU = torch.device("cpu")


def trained(folder, **settings):
    run = fit(conditioned(folder / "cache", train={"steps": 3}, **settings), folder / "run", attach=[previews])
    return run.config(), *run.load_model(CPU), run


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A run that draws label maps too, by whether they show a lesion."""
    return trained(
        tmp_path_factory.mktemp("pairs"), paired=True, labels=LABELS, classes={"label": "lesion", "voxels": 1}, drop=0.2
    )


@pytest.fixture(scope="module")
def painter(tmp_path_factory):
    """A run that paints label maps, by the class of their case and the spacing of the scan."""
    return trained(tmp_path_factory.mktemp("painter"), mask=True, labels=LABELS, classes={"column": "class"})


def with_sample(config, **changes):
    tree = config.model_dump(mode="json")
    tree["sample"] |= changes
    return parse_config(tree, "test")


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("write", [write_niftis, write_dicom])
def test_pairs_are_a_data_set_that_segmentation_trains_on(pairs, tmp_path, write):
    settings, model, card, _ = pairs
    sample_set(model, card, settings, 3, tmp_path / "set", 0, write, Asked(("lesion", "no lesion")))
    manifest = Manifest.read(tmp_path / "set" / "manifest.jsonl")
    assert [case.classes["class"] for case in manifest.cases] == ["lesion", "no lesion", "lesion"]
    for case in manifest.cases:
        manifest.verify(case)
        image, label = load_image(manifest, case), load_label(manifest, case)
        assert image.geometry.close(label.geometry, 0.01)
        assert set(np.unique(label.array)) <= {0, 1, 4, 6}
        assert (case.split, case.unit, case.labels["lesion"]) == ("train", "HU", 4)
    tree = settings.model_dump(mode="json")
    del tree["condition"], tree["diffusion"]
    tree["data"] |= {"manifest": str(tmp_path / "set" / "manifest.jsonl"), "paired": False, "min_foreground": 0.0}
    direct = {**tree, "task": "segmentation", "diffusion": {"process": "direct"}, "train": {"steps": 1, "batch": 2}}
    assert fit(parse_config(direct, "test"), tmp_path / "run").weights_path.exists()


def test_nifti_and_dicom_hold_the_same_set(pairs, tmp_path):
    settings, model, card, _ = pairs
    one, other = (
        sample_set(model, card, settings, 1, tmp_path / w.__name__, 0, w, Asked(("lesion",)))
        for w in (write_niftis, write_dicom)
    )
    a, b = load_image(one, one.cases[0]), load_image(other, other.cases[0])
    np.testing.assert_allclose(a.array, b.array, atol=0.51)
    assert a.geometry.close(b.geometry)
    np.testing.assert_array_equal(load_label(one, one.cases[0]).array, load_label(other, other.cases[0]).array)


@pytest.mark.parametrize("write", [write_niftis, write_dicom])
def test_a_set_that_was_cut_short_is_completed_to_the_same_bytes(pairs, tmp_path, write):
    settings, model, card, _ = pairs
    asked = Asked(("lesion",))
    for folder in ("whole", "torn"):
        sample_set(model, card, settings, 6, tmp_path / folder, 0, write, asked)  # batches of 4
    whole = contents(tmp_path / "whole")
    for name in ("sample_00001.json", "sample_00005.json", "manifest.jsonl"):
        (tmp_path / "torn" / name).unlink()
    damaged = next(
        p for p in sorted((tmp_path / "torn").rglob("*")) if p.suffix in (".gz", ".dcm") and "sample_00002" in str(p)
    )
    damaged.write_bytes(damaged.read_bytes()[:-3])
    kept = tmp_path / "torn" / "sample_00000.json"
    stamp = kept.stat().st_mtime_ns
    sample_set(model, card, settings, 6, tmp_path / "torn", 0, write, asked)
    assert contents(tmp_path / "torn") == whole
    assert kept.stat().st_mtime_ns == stamp


def test_a_complete_set_is_not_drawn_again(pairs, tmp_path):
    settings, model, card, _ = pairs
    sample_set(model, card, settings, 4, tmp_path / "set", 0, write_niftis)
    calls = []
    hook = model.register_forward_hook(lambda *a: calls.append(1))
    sample_set(model, card, settings, 4, tmp_path / "set", 0, write_niftis)
    hook.remove()
    assert not calls


def test_a_set_of_another_request_is_refused(pairs, tmp_path):
    settings, model, card, _ = pairs
    sample_set(model, card, settings, 2, tmp_path / "set", 0, write_niftis, Asked(("lesion",)))
    for asked, changed in [(Asked(("no lesion",)), {}), (Asked(("lesion",)), {"guidance": 2.0})]:
        with pytest.raises(RunError, match="something else than this set"):
            sample_set(model, card, with_sample(settings, **changed), 2, tmp_path / "set", 0, write_niftis, asked)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("")
    with pytest.raises(RunError, match="something else than this set"):
        sample_set(model, card, settings, 2, tmp_path / "notes", 0, write_niftis)


def test_a_class_changes_the_sample_and_guidance_costs_twice(pairs):
    settings, model, card, _ = pairs
    task = build_task(settings, card.known)
    drawn, calls = {}, []
    hook = model.register_forward_hook(lambda *a: calls.append(1))
    for name in ("lesion", "no lesion", None):
        for guidance in (1.0, 3.0):
            asked = Asked((name,) if name else ())
            cond = asked.condition(task, [asked.of(0, 0)])
            calls.clear()
            drawn[name, guidance] = next(
                draw_samples(model, with_sample(settings, guidance=guidance), ["a"], 0, cond=cond)
            )
            assert len(calls) == evaluations(settings.sample, guidance != 1)
    hook.remove()
    assert not torch.equal(drawn["lesion", 1.0], drawn["no lesion", 1.0])
    assert not torch.equal(drawn["lesion", 1.0], drawn["lesion", 3.0])
    torch.testing.assert_close(drawn[None, 1.0], drawn[None, 3.0], atol=1e-5, rtol=0)  # nothing to be guided to


def test_painted_label_maps_are_the_labels_of_the_set_and_keep_their_patients_split(painter, tmp_path):
    settings, model, card, _ = painter
    givens = Givens(cohort(), settings, card.known, "test")
    manifest = sample_set(model, card, settings, 5, tmp_path / "set", 3, write_niftis, Asked(givens=givens))
    more = sample_set(
        model, card, with_sample(settings, batch=2), 7, tmp_path / "more", 3, write_niftis, Asked(givens=givens)
    )
    sources = {case.case: case for case in Manifest.read(cohort()).cases}
    for case in manifest.cases:
        record = json.loads((tmp_path / "set" / f"{case.case}.json").read_text())["asked"]["given"]
        assert record == json.loads((tmp_path / "more" / f"{case.case}.json").read_text())["asked"]["given"]
        source = sources[record["case"]]
        assert (case.patient, case.split, case.classes) == (source.patient, "test", source.classes)
        painted = load_label(manifest, case).array[..., 0]
        item = next(givens[i].values["label"][0] for i in range(len(givens)) if givens[i].record == record)
        assert np.array_equal(np.array([0, *card.labels.values()])[item.long().numpy()], painted)
    assert len(more.cases) == 7


@pytest.mark.parametrize(
    ("asked", "guidance", "message"),
    [
        (Asked(("tumour",)), 1.0, "the class 'tumour' is unknown; choose one of no lesion, lesion"),
        (Asked(covariates={"age": 3.0}), 1.0, "'age' is unknown; this run has none"),
        (Asked(), 2.0, "needs something to be guided to"),
    ],
)
def test_a_request_that_the_run_does_not_know_is_refused_by_name(pairs, tmp_path, asked, guidance, message):
    settings, model, card, _ = pairs
    with pytest.raises(ConfigError, match=message):
        sample_set(model, card, with_sample(settings, guidance=guidance), 1, tmp_path / "x", 0, write_niftis, asked)
    assert not (tmp_path / "x").exists()


def test_what_a_run_must_be_given_is_asked_for(pairs, painter, tmp_path):
    settings, model, card, _ = painter
    with pytest.raises(ConfigError, match="draws an image for a label map: give a manifest or a NIfTI file"):
        sample_set(model, card, settings, 1, tmp_path / "x", 0, write_niftis)
    givens = Givens(cohort(), settings, card.known, "test")
    settings, model, card, _ = pairs
    with pytest.raises(ConfigError, match="is given neither a label map nor an image"):
        sample_set(model, card, settings, 1, tmp_path / "x", 0, write_niftis, Asked(givens=givens))
    with pytest.raises(ConfigError, match="give NAME=NUMBER"):
        numbers(["age"])
    assert numbers(["age=61.5"]) == {"age": 61.5}


def test_pictures_of_a_set_show_images_and_labels(pairs, tmp_path):
    settings, model, card, _ = pairs
    grids = {}
    for name, write in {"png": write_png(card.space), "nifti": write_niftis, "dicom": write_dicom}.items():
        shown = []
        sample_set(model, card, settings, 2, tmp_path / name, 0, write, None, shown.append)
        save_grid(tmp_path / f"{name}.png", shown, card.space, card.labels, 2)
        grids[name] = (tmp_path / f"{name}.png").stat().st_size
    assert not (tmp_path / "png" / "manifest.jsonl").exists()
    assert min(grids.values()) > 0.8 * max(grids.values())


def test_a_conditional_run_is_compared_on_the_conditions_of_the_held_out_images(pairs):
    settings, model, _, run = pairs
    result = compare(model, settings, run.manifest(), "test", 0)
    assert result.samples.shape == result.held_out.shape
    assert (run.previews / "step_00000003.png").exists()
    assert (run.previews / "reverse.png").exists()


@pytest.mark.parametrize("shape", [(1, 4, 5), (4, 1, 5), (4, 5, 1), (3, 4, 5)])
@pytest.mark.parametrize("letters", ["RAS", "LAS", "LPS", "PRS"])
def test_a_volume_stacked_for_dicom_keeps_every_voxel_at_its_place(shape, letters):
    volume = Volume(
        np.arange(np.prod(shape), dtype=np.float32).reshape(shape), Geometry.make(shape, (2.0, 3.0, 4.0), letters)
    )
    turned = stacked(volume)
    assert np.linalg.det(turned.geometry.affine[:3, :3]) > 0
    assert 1 not in shape or turned.array.shape[2] == 1

    def places(v):
        index = np.indices(v.array.shape).reshape(3, -1)
        mm = v.geometry.affine[:3, :3] @ index + v.geometry.affine[:3, 3:]
        return {tuple(np.round(p, 6)): value for p, value in zip(mm.T, v.array.ravel(), strict=True)}

    assert places(turned) == places(volume)
