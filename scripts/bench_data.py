"""Random 96 x 96 x 96 patches and axial slices of volumes of 256 x 256 x 160, and what it takes to prepare one, against MONAI.

    python scripts/bench_data.py [--quick] [--json FILE]

Patches and slices come as MetaTensors with their affine from our store and from MONAI's PersistentDataset and CacheDataset. The
benchmark sets the state of the page cache itself: "cold" drops the files' pages before each, "warm" reads the files first.
Ingest is reading a .nii.gz, RAS order, 1 mm, intensity to -1..1; `prepare` is that, and writing it to the store, for several volumes
at once or one by one. Contenders take turns; ratios of medians, greater is better.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import torch
from monai.data import CacheDataset, Dataset, MetaTensor, PersistentDataset
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    RandSpatialCropd,
    ScaleIntensityRanged,
    Spacingd,
)

from meddiff.config import DataConfig
from meddiff.data.loader import Images
from meddiff.data.manifest import Manifest, load_image
from meddiff.data.scan import scan
from meddiff.data.store import MOST_TOGETHER, Store
from meddiff.data.transforms import preprocessing, to_meta
from meddiff.intensity_config import Window

SHAPE, SPACING_MM, PATCH, SLICE = (256, 256, 160), (1.0, 1.0, 1.2), (96, 96, 96), (256, 256)


def volumes(folder: Path, count: int) -> list[Path]:
    """Files of smooth noise, int16, as a scanner might write them."""
    paths = []
    for i in range(count):
        rng = np.random.default_rng(i)
        coarse = torch.from_numpy(rng.normal(0, 300, (1, 1, 32, 32, 20)))
        smooth = torch.nn.functional.interpolate(coarse, size=SHAPE, mode="trilinear")[0, 0].numpy()
        array = (smooth + rng.normal(0, 20, SHAPE)).astype(np.int16)
        image = nib.Nifti1Image(array, np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1]))
        image.header.set_xyzt_units("mm")
        paths.append(folder / f"scan{i}.nii.gz")
        nib.save(image, paths[-1])
    return paths


def monai_compose(*more: object) -> Compose:
    keys = ("image",)
    return Compose(
        [
            LoadImaged(keys, reader="NibabelReader"),
            EnsureChannelFirstd(keys),
            Orientationd(keys, axcodes="RAS", labels=None),
            Spacingd(keys, pixdim=(1.0, 1.0, 1.0), mode="bilinear"),
            ScaleIntensityRanged(keys, a_min=-1000, a_max=1000, b_min=-1, b_max=1, clip=True),
            *more,
        ]
    )


def evict(paths: Sequence[Path]) -> None:
    """Drop the pages of files from the cache."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(paths: Sequence[Path]) -> None:
    for path in paths:
        path.read_bytes()


def seconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def patch(images: Images, index: int, seed: int) -> MetaTensor:
    """A random patch of a volume."""
    case = images.items[index].case
    start = images.place(images.store.array(images.cases[case]), seed)
    affine = np.array(images.entries[case].affine)
    affine[:3, 3] += affine[:3, :3] @ start
    found = MetaTensor(images.image(index, seed)["image"], affine=torch.from_numpy(affine))
    assert found.shape == (1, *PATCH)
    return found


def axial(images: Images, index: int, seed: int) -> MetaTensor:
    """A slice of a volume."""
    item = images.items[index]
    affine = np.array(images.entries[item.case].affine)
    affine[:3, 3] += affine[:3, 2] * item.slice
    found = MetaTensor(images.image(index, seed)["image"], affine=torch.from_numpy(affine))
    assert found.shape == (1, *SLICE)
    return found


def reads(
    what: str,
    act: Callable[[Images, int, int], MetaTensor],
    images: Images,
    peers: dict[str, Dataset],
    persistent: list[Path],
    rounds: int,
) -> dict[str, float]:
    """Milliseconds for a patch or a slice, cold and warm."""
    rng = np.random.default_rng(0)
    contenders: dict[str, Callable[[], object]] = {
        "meddiff": lambda: act(images, int(rng.integers(len(images))), int(rng.integers(1 << 30)))
    }
    for name, dataset in peers.items():
        contenders[name] = lambda dataset=dataset: dataset[int(rng.integers(len(dataset)))]["image"]
    result, store = {}, [images.store.folder / f"{images.store.key(case)}.npy" for case in images.cases]
    for state, prepare in (("cold", evict), ("warm", warm)):
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds + 1):
            for name, take in contenders.items():
                prepare(store if name == "meddiff" else persistent)
                times[name].append(seconds(take) * 1e3)
        result |= {f"{what}_{state}_{name}_ms": statistics.median(t[1:]) for name, t in times.items()}
        result[f"{what}_{state}_vs_persistent"] = (
            result[f"{what}_{state}_persistent_ms"] / result[f"{what}_{state}_meddiff_ms"]
        )
    return result


def ingest(manifest: Manifest, data: DataConfig, paths: list[Path], rounds: int) -> dict[str, float]:
    """Milliseconds for a volume from its .nii.gz to model units."""
    ours, theirs = preprocessing(data), monai_compose()
    times: dict[str, list[float]] = {"meddiff": [], "monai": []}
    for i in range(rounds + 1):
        case = manifest.cases[i % len(manifest.cases)]
        path = manifest.resolve(case.source(None))[0]
        times["meddiff"].append(
            seconds(lambda case=case: ours({"image": to_meta(load_image(manifest, case, None))})) * 1e3
        )
        times["monai"].append(seconds(lambda path=path: theirs({"image": str(path)})) * 1e3)
    result = {f"ingest_{name}_ms": statistics.median(t[1:]) for name, t in times.items()}
    return result | {"ingest_vs_monai": result["ingest_monai_ms"] / result["ingest_meddiff_ms"]}


def preparing(manifest: Manifest, data: DataConfig, rounds: int) -> dict[str, float]:
    """Milliseconds a volume for the whole of `meddiff prepare`, written and hashed: several at once, and one by one."""
    times: dict[str, list[float]] = {"together": [], "alone": []}
    for i in range(rounds + 1):
        for name, acts in times.items():
            store = Store(data.model_copy(update={"cache": data.manifest.parent / f"{name}_{i}"}))
            with mock.patch("meddiff.data.store.MOST_TOGETHER", MOST_TOGETHER if name == "together" else 1):
                acts.append(seconds(partial(store.prepare, manifest, manifest.cases)) * 1e3 / len(manifest.cases))
            shutil.rmtree(store.folder)
    result = {f"prepare_{name}_ms": statistics.median(t[1:]) for name, t in times.items()}
    return result | {"prepare_together_vs_alone": result["prepare_alone_ms"] / result["prepare_together_ms"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 volumes and few rounds")
    parser.add_argument("--json", help="write the medians here")
    options = parser.parse_args()
    count, rounds = (3, 5) if options.quick else (8, 25)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "scans").mkdir()
        paths = volumes(folder / "scans", count)
        cases, _ = scan([folder / "scans"], split=(1.0, 0.0, 0.0), key=bytes(32), root=folder)
        manifest = Manifest(tuple(cases), folder)
        window = Window(low=-1000, high=1000)
        data = DataConfig(
            manifest=folder / "scans.jsonl", spacing_mm=(1, 1, 1), size=PATCH, intensity=window, min_foreground=0,
            cache=folder / "store",
        )  # fmt: skip
        result = ingest(manifest, data, paths, rounds)
        result |= preparing(manifest, data, rounds // 2)
        files = [{"image": str(path)} for path in paths]
        for what, act, size, roi in (("patches", patch, PATCH, PATCH), ("slices", axial, SLICE, (*SLICE, 1))):
            own = data.model_copy(update={"size": size})
            images = Images(manifest, manifest.cases, own, len(size), Store(own).prepare(manifest, manifest.cases))
            crop = RandSpatialCropd(("image",), roi_size=roi, random_size=False)
            peers = {
                "persistent": PersistentDataset(files, monai_compose(crop), cache_dir=folder / f"persistent_{what}"),
                "cache": CacheDataset(files, monai_compose(crop), progress=False),
            }
            for peer in peers.values():
                for i in range(count):
                    peer[i]
            result |= reads(what, act, images, peers, list((folder / f"persistent_{what}").glob("*.pt")), rounds)
    for key, value in result.items():
        print(f"{key:32} {value:10.2f}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
