import errno
import os

import numpy as np
import pytest
import torch
from cohort import cohort, config

from meddiff.config import Augment
from meddiff.data.arrays import pieces
from meddiff.data.files import _digest
from meddiff.data.loader import Draw, Images, Steps, centred, fixed, training_loader
from meddiff.data.manifest import Manifest
from meddiff.data.store import Store
from meddiff.data.transforms import AXES
from meddiff.errors import CaseError, ManifestError, RunError
from meddiff.intensity_config import Window


def images(tmp_path, dims=2, **data):
    settings = config(cohort(), tmp_path / "cache", dims).data.model_copy(update=data)
    manifest = Manifest.read(settings.manifest)
    cases = manifest.split("train")
    return Images(manifest, cases, settings, dims, Store(settings).prepare(manifest, cases))


def test_batches_of_slices_have_the_size_and_units_of_the_config(tmp_path):
    batch = next(iter(training_loader(images(tmp_path), 4, 0, 1, seed=0)))
    assert batch["image"].shape == (4, 1, 16, 16)
    assert batch["image"].dtype == torch.float32
    assert batch["image"].min() >= -1
    assert batch["image"].max() <= 1
    assert len(batch["case"]) == 4


def test_what_was_augmented_is_plain_tensors(tmp_path):
    batch = next(iter(training_loader(images(tmp_path, augment=Augment(flip=True)), 4, 0, 1, seed=0)))
    assert type(batch["image"]) is torch.Tensor  # MONAI's own have functions that take other arguments than torch's


def test_patches_of_volumes_differ_and_hold_foreground(tmp_path):
    some = images(tmp_path, 3, size=(12, 12, 12), min_foreground=0.2)
    patches = [some[Draw(0, seed)]["image"] for seed in range(4)]
    assert all(p.shape == (1, 12, 12, 12) for p in patches)
    assert not torch.equal(patches[0], patches[1])
    assert torch.stack([(p > -0.9).float().mean() for p in patches]).min() >= 0.2


def test_an_image_larger_than_the_volume_is_padded_with_background(tmp_path):
    some = images(tmp_path, size=(40, 40))
    image = some.image(0, 0)["image"]
    assert image.shape == (1, 40, 40)
    assert (image[0, :10] == -1).all()
    assert image.max() > -0.5


def test_every_epoch_shows_every_item_once_in_another_order():
    steps = list(Steps(items=12, batch=4, start=0, stop=6, seed=0))
    epochs = [[d.item for batch in steps[i : i + 3] for d in batch] for i in (0, 3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0] != epochs[1]


def test_a_run_that_starts_in_the_middle_sees_what_the_whole_run_saw():
    whole = list(Steps(items=7, batch=4, start=0, stop=9, seed=3))
    assert list(Steps(items=7, batch=4, start=5, stop=9, seed=3)) == whole[5:]


def test_slices_without_foreground_are_left_out(tmp_path):
    few, many = images(tmp_path, min_foreground=0.3), images(tmp_path, min_foreground=0.0)
    assert 0 < len(few) < len(many)
    assert all((few.image(i, 0)["image"] > -0.9).float().mean() >= 0.2 for i in range(len(few)))


def test_a_window_that_shows_nothing_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(ManifestError, match=r"none of 4 cases has a slice with more than 5% foreground; lower"):
        images(tmp_path, intensity=Window(low=3000, high=4000))


def test_fixed_images_are_the_same_each_time_and_spread_out(tmp_path):
    some = images(tmp_path, 3, size=(12, 12, 12))
    torch.testing.assert_close(fixed(some, 3)["image"], fixed(some, 3)["image"], rtol=0, atol=0)
    assert len(fixed(images(tmp_path), 5)["image"]) == 5


def test_the_cache_is_keyed_by_settings_and_source(tmp_path):
    settings = config(cohort(), tmp_path).data
    manifest = Manifest.read(settings.manifest)
    case, other = manifest.cases[:2]
    keys = {
        Store(settings).key(case),
        Store(settings).key(other),
        Store(settings.model_copy(update={"spacing_mm": (10, 10)})).key(case),
        Store(settings.model_copy(update={"intensity": Window(low=0, high=1)})).key(case),
    }
    assert len(keys) == 4
    assert Store(settings.model_copy(update={"size": (8, 8)})).key(case) == Store(settings).key(case)


def test_the_store_holds_the_preprocessed_volume_and_makes_it_once(tmp_path):
    settings = config(cohort(), tmp_path / "cache").data
    manifest = Manifest.read(settings.manifest)
    store, case = Store(settings), manifest.cases[0]
    (entry,) = store.prepare(manifest, [case])
    array = store.array(case)
    assert array.shape == entry.shape
    assert array.dtype == np.float16
    made = [p.stat().st_mtime_ns for p in sorted((tmp_path / "cache").iterdir())]
    store.prepare(manifest, [case])
    assert [p.stat().st_mtime_ns for p in sorted((tmp_path / "cache").iterdir())] == made
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("axis", ["sagittal", "coronal", "axial"])
def test_a_slice_lies_in_one_piece_and_is_that_of_the_volume(tmp_path, axis):
    volumes = config(cohort(), tmp_path / "cache", dims=3).data
    manifest = Manifest.read(volumes.manifest)
    cases = manifest.split("train")[:1]
    Store(volumes).prepare(manifest, cases)
    whole = Store(volumes).array(cases[0])
    assert whole.flags.c_contiguous
    some = images(tmp_path, spacing_mm=volumes.spacing_mm, axis=axis, min_foreground=0, size=(8, 6))
    array = some.store.array(cases[0])
    np.testing.assert_array_equal(array, whole)
    plane = some.plane(array, 5)
    assert plane.flags.c_contiguous
    np.testing.assert_array_equal(plane, whole.take(5, axis=AXES[axis]))
    item = next(i for i, one in enumerate(some.items) if some.cases[one.case] == cases[0] and one.slice == 5)
    start = centred(plane.shape, (8, 6))
    middle = plane[start[0] : start[0] + 8, start[1] : start[1] + 6].astype(np.float32)
    np.testing.assert_array_equal(some.image(item, 0)["image"][0].numpy(), middle)


@pytest.mark.parametrize("together", [0, 1 << 20])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_what_is_read_ahead_holds_all_of_a_patch_and_lies_within_the_array(monkeypatch, together, axis):
    monkeypatch.setattr("meddiff.data.arrays.TOGETHER_BYTES", together)
    whole = np.arange(7 * 9 * 11, dtype=np.float16).reshape(7, 9, 11)
    array = np.moveaxis(whole, 0, axis)
    for part in (array[2:5, 1:4, 3:5], array[4:6, 2], array[:1, :1, :1], array):
        found = list(pieces(part, whole))
        assert all(0 <= begin < end <= whole.nbytes for begin, end in found)
        flat = whole.reshape(-1)
        held = {value for begin, end in found for value in flat[begin // 2 : end // 2].tolist()}
        assert held >= set(part.reshape(-1).tolist())
        assert len(found) == (1 if together else max(zip(part.strides, part.shape, strict=True))[1])


def test_an_array_that_is_not_as_it_was_written_is_made_again(tmp_path, caplog):
    settings = config(cohort(), tmp_path / "cache").data
    manifest = Manifest.read(settings.manifest)
    case = manifest.cases[0]
    (entry,) = Store(settings).prepare(manifest, [case])
    (path,), right = (tmp_path / "cache").glob("*.npy"), Store(settings).array(case).copy()
    content, times = bytearray(path.read_bytes()), path.stat()

    for damaged in (content[:-1] + bytes([content[-1] ^ 1]), content[:-7], b""):
        path.write_bytes(damaged)
        (again,) = Store(settings).prepare(manifest, [case])
        np.testing.assert_array_equal(Store(settings).array(case), right)
        assert again.arrays[".npy"].sha256 == entry.arrays[".npy"].sha256
        assert str(path) in caplog.records[-1].message
    assert len(caplog.records) == 3

    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # as a disk may lose a bit: without a trace
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    _digest.cache_clear()
    Store(settings).prepare(manifest, [case], verify=True)
    np.testing.assert_array_equal(Store(settings).array(case), right)


def test_a_cache_that_was_copied_is_not_made_again(tmp_path):
    settings = config(cohort(), tmp_path / "cache").data
    manifest = Manifest.read(settings.manifest)
    case = manifest.cases[0]
    Store(settings).prepare(manifest, [case])
    (path,) = (tmp_path / "cache").glob("*.npy")
    os.utime(path, ns=(1, 1))
    made = path.stat().st_ino
    (entry,) = Store(settings).prepare(manifest, [case])
    assert path.stat().st_ino == made
    assert entry.arrays[".npy"].changed_ns == 1


def test_a_full_disk_is_told_and_what_was_prepared_stays(tmp_path, monkeypatch):
    settings = config(cohort(), tmp_path / "cache").data
    manifest = Manifest.read(settings.manifest)
    first, second = manifest.cases[:2]
    Store(settings).prepare(manifest, [first])
    before = sorted((tmp_path / "cache").iterdir())

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("meddiff.data.arrays.os.fsync", full)
        with pytest.raises(RunError, match=r"No space left.*data\.cache"):
            Store(settings).prepare(manifest, [first, second])
    assert sorted((tmp_path / "cache").iterdir()) == before
    assert len(Store(settings).prepare(manifest, [first, second])) == 2


def test_a_volume_larger_than_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    settings = config(cohort(), tmp_path / "cache").data
    manifest = Manifest.read(settings.manifest)
    left, front, _ = manifest.cases[0].spacing_mm
    need = 4 * 24**3 * (1 + left / 15 * front / 15)  # float32, as it is and at 15 mm within axial slices
    monkeypatch.setattr("meddiff.data.store.available", lambda: need * 0.999)
    with pytest.raises(CaseError, match=r"24 x 24 x 24 voxels need .* GiB of memory .* are free"):
        Store(settings).prepare(manifest, manifest.cases[:1])
    monkeypatch.setattr("meddiff.data.store.available", lambda: need * 1.001)
    Store(settings).prepare(manifest, manifest.cases[:1])


def test_memory_that_runs_out_is_told_and_any_other_failure_is_not_taken_for_it(tmp_path, monkeypatch):
    settings = config(cohort(), tmp_path / "cache").data
    manifest, store = Manifest.read(settings.manifest), Store(settings)

    def fails(error):
        def act(_):
            try:
                raise error
            except Exception as e:
                raise RuntimeError("applying transform") from e

        monkeypatch.setattr(store, "compose", act)

    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        fails(error)
        with pytest.raises(CaseError, match="24 x 24 x 24 voxels need"):
            store.prepare(manifest, manifest.cases[:1])
    fails(RuntimeError("of our own"))
    with pytest.raises(RuntimeError, match="applying"):
        store.prepare(manifest, manifest.cases[:1])


def test_a_file_that_changed_since_the_scan_is_refused_also_from_the_cache(tmp_path):
    settings = config(cohort(patients=4), tmp_path / "cache").data
    manifest = Manifest.read(settings.manifest)
    case = manifest.cases[0]
    (path,) = manifest.resolve(case.image[0])
    Store(settings).prepare(manifest, [case])
    content, times = path.read_bytes(), path.stat()
    try:
        path.write_bytes(content + b"\0")
        with pytest.raises(ManifestError, match="has changed since the scan"):
            Store(settings).prepare(manifest, [case])
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
