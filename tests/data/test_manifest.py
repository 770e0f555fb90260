import json
import logging
import os

import numpy as np
import pytest
from pydantic import ValidationError

from meddiff.data.files import digest_file, digest_files, portable
from meddiff.data.keys import load_key, pseudonym
from meddiff.data.manifest import Case, Manifest, Source, load_image, load_label
from meddiff.errors import ManifestError
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.nifti import write_nifti
from meddiff.imaging.volume import Volume

posix = pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")


def case(name="P1-a", patient="P1", split="train", **changes):
    record = {
        "case": name,
        "patient": patient,
        "split": split,
        "image": (Source(modality="CT", path="x.nii.gz", sha256="0"),),
        "shape": (4, 4, 4),
        "spacing_mm": (1, 1, 1),
        "affine": np.eye(4).tolist(),
        "unit": "HU",
        "layout": "pairs",
    }
    return Case.model_validate(record | changes)


@pytest.fixture
def scanned(tmp_path):
    """A manifest of one case whose image and label map lie beside the manifest's folder."""
    geometry = Geometry.make((5, 4, 3), (1.0, 1.5, 2.0), "LPS")
    image = Volume(np.arange(60, dtype=np.float32).reshape(5, 4, 3), geometry, "CT", "HU")
    label = Volume((image.array > 30).astype(np.uint8), geometry, "SEG", "label")
    paths = [tmp_path / "raw" / "x.nii.gz", tmp_path / "raw" / "x_label.nii.gz"]
    paths[0].parent.mkdir()
    for path, volume in zip(paths, (image, label), strict=True):
        write_nifti(path, volume)
    sources = [
        Source(modality=m, path=f"../raw/{p.name}", sha256=digest_file(p))
        for m, p in zip(("CT", "SEG"), paths, strict=True)
    ]
    one = case(
        image=(sources[0],),
        label=sources[1],
        labels={"background": 0, "thing": 1},
        shape=geometry.shape,
        spacing_mm=geometry.spacing_mm,
        affine=geometry.affine.tolist(),
    )
    return Manifest((one,), tmp_path / "manifests"), image, label


def test_manifest_reads_back_as_written(scanned, tmp_path):
    manifest = scanned[0]
    path = tmp_path / "manifests" / "x.jsonl"
    manifest.write(path)
    assert Manifest.read(path) == manifest
    assert [p.name for p in path.parent.iterdir()] == ["x.jsonl"]  # no temporary file is left


def test_lines_hold_the_keys_of_the_contract(scanned, tmp_path):
    scanned[0].write(tmp_path / "x.jsonl")
    (line,) = (tmp_path / "x.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert {
        "case",
        "patient",
        "split",
        "image",
        "label",
        "classes",
        "shape",
        "spacing_mm",
        "affine",
        "unit",
        "layout",
    } <= set(record)
    assert set(record["image"][0]) == {"modality", "path", "sha256"}


def test_files_are_found_after_the_manifest_moves(scanned, tmp_path):
    manifest, image, label = scanned
    manifest.write(tmp_path / "raw" / "below.jsonl")
    manifest.save_copy(tmp_path / "runs" / "deep" / "one" / "manifest.jsonl")
    below = Manifest.read(tmp_path / "raw" / "below.jsonl")
    copy = Manifest.read(tmp_path / "runs" / "deep" / "one" / "manifest.jsonl")
    assert below.cases[0].image[0].path == "x.nii.gz"
    assert copy.cases[0].image[0].path == (tmp_path / "raw" / "x.nii.gz").as_posix()
    assert below.digest == copy.digest == manifest.digest
    for moved in (below, copy):
        np.testing.assert_array_equal(load_image(moved, moved.cases[0]).array, image.array)
        np.testing.assert_array_equal(load_label(moved, moved.cases[0]).array, label.array)


def test_digest_changes_with_the_content(scanned):
    manifest = scanned[0]
    (one,) = manifest.cases
    other = one.model_copy(update={"image": (one.image[0].model_copy(update={"sha256": "f" * 64}),)})
    assert Manifest((other,), manifest.folder).digest != manifest.digest


def test_image_comes_in_the_unit_and_on_the_grid_of_its_case(scanned):
    manifest, image, _ = scanned
    read = load_image(manifest, manifest.cases[0])
    assert (read.unit, read.modality) == ("HU", "CT")
    assert read.geometry.close(image.geometry)


@pytest.mark.parametrize("change", [{"shape": (5, 4, 4)}, {"affine": np.diag([1, 1.5, 2, 1]).tolist()}])
def test_grid_that_differs_from_the_record_is_refused(scanned, change):
    manifest = scanned[0]
    with pytest.raises(ManifestError, match="the manifest records"):
        load_image(manifest, manifest.cases[0].model_copy(update=change))


def test_verify_names_a_changed_and_a_missing_file(scanned, tmp_path):
    manifest, image, _ = scanned
    (one,) = manifest.cases
    manifest.verify(one)
    write_nifti(tmp_path / "raw" / "x.nii.gz", Volume(image.array + 1, image.geometry, "CT", "HU"))
    with pytest.raises(ManifestError, match=r"x\.nii\.gz has changed since the scan"):
        manifest.verify(one)
    (tmp_path / "raw" / "x.nii.gz").unlink()
    with pytest.raises(ManifestError, match=r"x\.nii\.gz is missing"):
        manifest.verify(one)
    with pytest.raises(ManifestError, match=r"x\.nii\.gz is missing"):
        load_image(manifest, one)


def test_case_without_label_map_says_so(tmp_path):
    with pytest.raises(ManifestError, match="has no label map"):
        load_label(Manifest((case(),), tmp_path), case())


def test_modality_must_be_named_where_there_are_several():
    two = case(image=[{"modality": m, "path": f"{m}.nii.gz", "sha256": "0"} for m in ("T1", "T2")])
    assert two.source("T2").path == "T2.nii.gz"
    with pytest.raises(ManifestError, match="2 images fit modality None; it has T1, T2"):
        two.source()
    with pytest.raises(ManifestError, match="0 images fit modality 'CT'"):
        two.source("CT")


def test_patient_in_two_splits_is_refused(tmp_path):
    torn = Manifest((case("a", "P1", "train"), case("b", "P1", "test"), case("c", "P2", "val")), tmp_path)
    with pytest.raises(ManifestError, match=r"more than one split: P1 \(test, train\)\. "):
        torn.write(tmp_path / "x.jsonl")
    assert not (tmp_path / "x.jsonl").exists()


def test_name_that_occurs_twice_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="occur more than once: a"):
        Manifest((case("a"), case("a")), tmp_path).check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"splitt": "train"}, "line 2: splitt: Extra inputs"),
        ({"split": "holdout"}, "line 2: split"),
        ({"image": []}, "`image` is empty"),
        ({"image": [{"modality": "CT", "sha256": "0"}]}, "exactly one of `path` and `files`"),
        (
            {"image": [{"modality": "CT", "path": "x.npz", "index": 3, "sha256": "0"}]},
            "`array` and `index` go together",
        ),
        ({"shape": [4, 4]}, r"line 2: shape"),
    ],
)
def test_bad_line_is_named(tmp_path, change, message):
    good = case("first").model_dump(mode="json")
    (tmp_path / "x.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(good | {"case": "second"} | change) + "\n")
    with pytest.raises(ManifestError, match=message):
        Manifest.read(tmp_path / "x.jsonl")


def test_manifest_that_is_missing_or_empty_is_an_error(tmp_path):
    with pytest.raises(ManifestError, match="meddiff scan"):
        Manifest.read(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ManifestError, match="holds no case"):
        Manifest.read(tmp_path / "empty.jsonl")
    with pytest.raises(ManifestError, match="no split 'holdout'"):
        Manifest((case(),), tmp_path).split("holdout")


def test_records_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        case().patient = "P2"


def test_digest_of_a_series_depends_on_the_order_of_its_slices(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    one, other = tmp_path / "a", tmp_path / "b"
    assert digest_files([one, other]) != digest_files([other, one])
    assert digest_files([one]) != digest_file(one)


def test_only_near_files_are_named_relatively(tmp_path):
    folder = tmp_path / "p" / "manifests"
    assert portable(folder / "x" / "y", folder) == "x/y"
    assert portable(tmp_path / "p" / "raw" / "y", folder) == "../raw/y"
    assert portable(tmp_path / "y", folder) == (tmp_path / "y").as_posix()


def test_key_is_made_once_and_only_its_owner_can_read_it(tmp_path, caplog):
    path = tmp_path / "new" / "pseudonym.key"
    with caplog.at_level(logging.INFO, "meddiff"):
        first = load_key(path)
    assert str(path) in caplog.text
    assert len(first) >= 32
    assert load_key(path) == first
    assert load_key(tmp_path / "other.key") != first
    assert os.name != "posix" or path.stat().st_mode & 0o777 == 0o600


@posix
def test_key_that_others_can_read_is_refused(tmp_path):
    path = tmp_path / "open.key"
    load_key(path)
    path.chmod(0o640)
    with pytest.raises(ManifestError, match=f"chmod 600 {path}"):
        load_key(path)


def test_short_key_is_refused(tmp_path):
    path = tmp_path / "short.key"
    path.write_bytes(b"123456789012345\n")
    path.chmod(0o600)
    with pytest.raises(ManifestError, match="holds 15 bytes, a pseudonym key needs at least 16"):
        load_key(path)


def test_default_key_is_the_users_own(tmp_path, monkeypatch):
    monkeypatch.delenv("MEDDIFF_KEY_FILE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    key = load_key()
    assert (tmp_path / "meddiff" / "pseudonym.key").read_text().strip().encode() == key
    monkeypatch.setenv("MEDDIFF_KEY_FILE", str(tmp_path / "mine.key"))
    assert load_key() != key
    assert (tmp_path / "mine.key").exists()


def test_pseudonym_depends_on_the_key_and_the_patient_only():
    first, second = b"a" * 16, b"b" * 16
    assert pseudonym(first, "x") == pseudonym(first, "x")
    assert len({pseudonym(first, "x"), pseudonym(second, "x"), pseudonym(first, "y")}) == 3
