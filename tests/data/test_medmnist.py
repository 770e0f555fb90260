"""Arrays in a zip are bounded before they are decoded."""

import io
import zipfile

import numpy as np
import pytest

from meddiff.data import medmnist
from meddiff.data.medmnist import open_array, read_row
from meddiff.errors import ImageError


def test_an_array_of_zeros_that_inflates_beyond_bounds_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "m.npz", train_images=np.zeros((4, 64, 64), np.uint8))
    assert read_row(tmp_path / "m.npz", "train_images", 3).array.shape == (64, 64, 1)
    np.savez_compressed(tmp_path / "n.npz", train_images=np.zeros((4, 640, 64), np.uint8))
    monkeypatch.setattr(medmnist, "SMALL_BYTES", 1000)
    with pytest.raises(ImageError, match=r"bytes of train_images.npy promise 163840, more than 200 for one"):
        open_array(tmp_path / "n.npz", "train_images")


def test_an_array_that_promises_more_than_its_entry_holds_is_refused(tmp_path):
    stored = io.BytesIO()
    np.save(stored, np.zeros((4, 64, 64), np.uint8))
    lying = stored.getvalue().replace(b"(4, 64, 64), }   ", b"(4000000, 64, 64)", 1)
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as file:
        file.writestr("train_images.npy", lying.replace(b"64, 64)", b"64, 64), }", 1)[: len(stored.getvalue())])
    with pytest.raises(ImageError, match=r"promises 16384000000 bytes and holds 16512"):
        open_array(tmp_path / "m.npz", "train_images")
