"""Files made to run code, to fill memory or to write elsewhere: each ends in an error of ours, soon, and leaves no mark."""

import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from attacked import Victim
from cohort import cohort, tree
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from meddiff.config_file import load_config, parse_config
from meddiff.engines.fit import fit
from meddiff.errors import ConfigError

SECONDS, BYTES = 2.0, 500e6
MARK = "mark-of-an-attack"


class Payload:
    """Runs a command where it is unpickled."""

    def __reduce__(self):
        return os.system, (f"touch {MARK}",)


@pytest.fixture(scope="module")
def victim(trained):
    with Victim() as process:
        process("run", trained)  # what is imported on first use counts for no attack
        yield process


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small run, to be spoilt copy by copy."""
    folder = tmp_path_factory.mktemp("trained")
    return fit(parse_config(tree(cohort(), folder / "cache", steps=2), "test"), folder / "run").folder


@pytest.fixture
def attack(victim, tmp_path):
    """Let the victim open something: it is refused by a typed error whose message fits, within the limits, without a mark."""

    def act(kind, path, outcome, said=""):
        answer = victim(kind, path)
        assert answer["outcome"] == outcome, answer
        assert said in answer["said"], answer
        assert len(answer["said"]) < 5000
        assert answer["seconds"] < SECONDS, answer
        assert answer["bytes"] < BYTES, answer
        assert not [p for place in (Path.cwd(), Path(__file__).parent, tmp_path) for p in place.glob(f"**/{MARK}*")]

    return act


def spoilt(trained, tmp_path, **files):
    """A copy of the run with some files replaced; `model_json="x"` is model.json."""
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    for name, content in files.items():
        path = copy / name.replace("__", "/").replace("_", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return copy


def bomb(levels=12):
    """Ten to the power of `levels` words, in as many lines."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"!!python/object/apply:os.system ['touch {MARK}']", "is not valid YAML"),
        (f"task: !!python/object/apply:subprocess.check_call [[touch, {MARK}]]", "is not valid YAML"),
        ("task: !!python/name:os.system", "is not valid YAML"),
        (f"task: \"$__import__('os').system('touch {MARK}')\"", "task: input should be"),
        (f"_target_: os.system\ncommand: touch {MARK}", "unknown key _target_"),
        (f"network:\n  _target_: subprocess.run\n  args: [touch, {MARK}]", "unknown key network._target_"),
        (bomb(), "it has aliases"),
        ("task: &a [*a]", "it has aliases"),
        ("task: " + "[" * 5000, "is not valid YAML"),
        ("task: " + "9" * 5000, "is not valid YAML"),
        ("task: 2001-99-99", "is not valid YAML"),
        ("task: " + "x" * (1 << 16), "a config has at most"),
        ("task: {" + ", ".join(f"k{i}: {i}" for i in range(4000)) + "}", "task: input should be"),
        ("", "should be a mapping"),
    ],
)
def test_a_config_runs_nothing_and_grows_to_nothing(attack, tmp_path, text, said):
    (tmp_path / "c.yaml").write_text(text)
    attack("config", tmp_path / "c.yaml", "ConfigError", said)


def test_an_override_runs_nothing(tmp_path):
    (tmp_path / "c.yaml").write_text("task: synthesis")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_config(tmp_path / "c.yaml", [f"task=!!python/object/apply:os.system ['touch {MARK}']"])
    assert not Path(MARK).exists()


def test_a_pickle_in_the_cache_is_not_loaded(attack, tmp_path):
    np.save(tmp_path / "a.npy", np.array([Payload()], dtype=object), allow_pickle=True)
    attack("cache", tmp_path / "a.npy", "ManifestError", "this file of the cache cannot be read")
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Payload()))
    attack("cache", tmp_path / "b.npy", "ManifestError", "this file of the cache cannot be read")


@pytest.mark.parametrize(
    "header", ["{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776,)}", "(" * 3000, "9" * 9000]
)
def test_an_array_of_the_cache_takes_no_more_than_it_has(attack, tmp_path, header):
    text = header.encode() + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(10))
    attack("cache", tmp_path / "a.npy", "ManifestError", "this file of the cache cannot be read")


@pytest.mark.parametrize("protocol", ["zip", "legacy", "plain"])
def test_a_pickle_in_a_checkpoint_is_not_loaded(attack, tmp_path, protocol):
    content = io.BytesIO()
    if protocol == "plain":
        content.write(pickle.dumps({"model": Payload()}))
    else:
        torch.save({"model": Payload()}, content, _use_new_zipfile_serialization=protocol == "zip")
    (tmp_path / "step_00000001.pt").write_bytes(content.getvalue())
    record = {"step": 1, "sha256": hashlib.sha256(content.getvalue()).hexdigest(), "config": "c", "manifest": "m"}
    (tmp_path / "step_00000001.json").write_text(json.dumps(record))
    attack("resume", tmp_path, "RunError", "is not a checkpoint of meddiff")


@pytest.mark.parametrize("record", ["[" * 100000, "[]", "null", '{"step": 1}', "\x00"])
def test_a_record_that_is_none_is_no_checkpoint(attack, tmp_path, record):
    (tmp_path / "step_00000001.pt").write_bytes(b"")
    (tmp_path / "step_00000001.json").write_text(record)
    attack("resume", tmp_path, "RunError", "no checkpoint that can be read")


def zipped(path, arrays, level=9):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as file:
        for name, content in arrays.items():
            file.writestr(name, content)


def npy(shape, content):
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def test_a_small_zip_does_not_grow_to_a_large_array(attack, tmp_path):
    (tmp_path / "data").mkdir()
    arrays = {"train_images.npy": npy((5000, 256, 256), bytes(5000 << 16))}
    zipped(tmp_path / "data" / "bomb.npz", arrays, level=1)
    assert (tmp_path / "data" / "bomb.npz").stat().st_size < 2e6
    attack("scan", tmp_path / "data", "ManifestError", "more than 200 for one")
    attack("row", tmp_path / "data" / "bomb.npz", "ImageError", "more than 200 for one")


def test_an_array_that_promises_more_than_the_zip_holds_is_refused(attack, tmp_path):
    zipped(tmp_path / "a.npz", {"train_images.npy": npy((1 << 20, 1 << 10, 1 << 10), b"x")})
    attack("row", tmp_path / "a.npz", "ImageError", "promises 1099511627776 bytes and holds")
    (tmp_path / "data").mkdir()
    zipped(tmp_path / "data" / "b.npz", {"train_images.npy": npy((3 << 20, 1, 1), bytes(3 << 20))})
    attack("scan", tmp_path / "data", "ManifestError", "rows; at most")


def test_a_zip_that_names_places_elsewhere_is_not_unpacked(attack, tmp_path):
    (tmp_path / "data").mkdir()
    zipped(tmp_path / "data" / "slip.npz", {f"../{MARK}_images.npy": b"x", f"/tmp/{MARK}.npy": b"x"})
    attack("scan", tmp_path / "data", "ManifestError", "is not an .npz of arrays")
    assert not Path(f"/tmp/{MARK}.npy").exists()


def test_a_pickle_in_a_zip_is_not_loaded(attack, tmp_path):
    np.savez(tmp_path / "a.npz", train_images=np.array([Payload()], dtype=object))
    attack("row", tmp_path / "a.npz", "ImageError", "cannot be read")


def line(**changes):
    record = json.loads(Path(cohort()).read_text().splitlines()[0])
    return json.dumps({**record, **changes})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (line(case="../../" + MARK), "becomes the name of files"),
        (line(case="/tmp/" + MARK), "becomes the name of files"),
        (line(case=".."), "becomes the name of files"),
        (line(case="a\x00b"), "becomes the name of files"),
        (line(case="x" * 1000), "becomes the name of files"),
        (line(image=[{"modality": "MR", "path": "../../../../../../etc/passwd", "sha256": ""}]), "is truncated or not"),
        (line(image=[{"modality": "MR", "path": "/etc/passwd", "sha256": ""}]), ""),
        (line(image=[{"modality": "MR", "path": "/dev/zero", "sha256": ""}]), "is missing"),
        (line(image=[{"modality": "MR", "path": "/proc/self/mem", "sha256": ""}]), ""),
        (line(affine=[[float("nan")] * 4] * 4), "affine"),
        ('{"case": ' + "[" * 100000, "line 1"),
        (line(run="$import os"), "Extra inputs"),
    ],
)
def test_a_manifest_names_no_file_of_its_own(victim, attack, tmp_path, text, said):
    (tmp_path / "m.jsonl").write_text(text + "\n")
    answer = victim("manifest", tmp_path / "m.jsonl")
    assert answer["outcome"] in ("ManifestError", "NiftiError"), answer
    assert "root:" not in answer["said"]  # what the file holds is not told
    attack("manifest", tmp_path / "m.jsonl", answer["outcome"], said if "truncated" not in said else "")


def series(folder, n=4, change=None, **tags):
    """A CT series of `n` slices, with some tags set."""
    folder.mkdir()
    for k in range(n):
        ds = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
        ds.SeriesInstanceUID, ds.InstanceNumber = "2.25.1", k + 1
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"2.25.9{k}"
        ds.ImagePositionPatient = [-158.0, -179.0, -75.0 + 5 * k]
        for keyword, value in tags.items():
            setattr(ds, keyword, value)
        if change:
            change(ds)
        ds.save_as(folder / f"{k}.dcm")
    return folder


def below(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.mark.parametrize("act", ["scan", "deidentify"])
@pytest.mark.parametrize(
    "evil", ["../../../" + MARK, "/tmp/" + MARK, "..\\..\\" + MARK, "$(touch " + MARK + ")", "~/" + MARK]
)
def test_names_in_a_scan_name_no_file(attack, tmp_path, act, evil):
    with pydicom.config.disable_value_validation():
        folder = series(tmp_path / "in", PatientID=evil, SeriesDescription=evil, PatientName=evil, StudyID=evil)
    before = below(tmp_path)
    attack(act, folder, "accepted")
    new = [name for name in below(tmp_path) if name not in before]
    assert new
    assert all(name == "out" or name.startswith("out/") for name in new)
    assert MARK not in " ".join(new)


def test_links_lead_nowhere_new(attack, tmp_path):
    folder = series(tmp_path / "in")
    (folder / "loop").symlink_to(folder)
    (folder / "secret.dcm").symlink_to("/etc/passwd")
    (folder / "nothing").symlink_to(tmp_path / "not-there")
    (folder / "device").symlink_to("/dev/zero")
    attack("scan", folder, "accepted")
    refused = (tmp_path / "out" / "m.refused.jsonl").read_text()
    assert all(name in refused for name in ("secret.dcm", "nothing", "device"))
    assert "root:" not in refused


def test_a_link_in_the_way_of_a_result_is_replaced_and_not_followed(attack, tmp_path):
    folder, outside = series(tmp_path / "in"), tmp_path / "outside"
    outside.write_text("as it was")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "m.jsonl").symlink_to(outside)
    attack("scan", folder, "accepted")
    assert outside.read_text() == "as it was"
    assert not (tmp_path / "out" / "m.jsonl").is_symlink()


@pytest.mark.parametrize("start", [b"MZ\x90\x00", b"\x7fELF\x02\x01", b"#!/bin/sh\ntouch " + MARK.encode()])
def test_an_image_that_is_a_program_too_is_refused(attack, tmp_path, start):
    folder = series(tmp_path / "in", change=lambda ds: setattr(ds, "preamble", start.ljust(128, b"\0")))
    attack("scan", folder, "ManifestError", "It begins as a program does")


@pytest.mark.parametrize(("depth", "outcome"), [(100, "accepted"), (3000, "ManifestError")])
def test_sequences_in_sequences_end(attack, tmp_path, depth, outcome):
    tag = struct.pack("<HH", 0x0008, 0x1115)
    opened = tag + b"SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    closed = b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    folder = series(tmp_path / "in", change=lambda ds: setattr(ds, "ReferencedSeriesSequence", Sequence([Dataset()])))
    for path in folder.iterdir():
        content = path.read_bytes()
        at = content.index(tag + b"SQ")
        end = at + 12 + struct.unpack("<I", content[at + 8 : at + 12])[0]
        path.write_bytes(content[:at] + opened * depth + closed * depth + content[end:])
    attack("scan", folder, outcome)


HEADERS = {
    "a header of 2^63 bytes": struct.pack("<Q", 1 << 63),
    "a header longer than the file": struct.pack("<Q", 1 << 20) + b"{}",
    "no JSON": struct.pack("<Q", 4) + b"$$$$",
    "deep JSON": struct.pack("<Q", 40000) + b'{"a":' + b"[" * 39995,
    "a tensor beyond the file": None,
    "tensors that overlap": None,
    "a shape of 2^62": None,
}


def tensors(**entries):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


HEADERS["a tensor beyond the file"] = tensors(a={"dtype": "F32", "shape": [1 << 20], "data_offsets": [0, 4 << 20]})
HEADERS["tensors that overlap"] = tensors(
    a={"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, b={"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
) + bytes(8)
HEADERS["a shape of 2^62"] = tensors(a={"dtype": "F32", "shape": [1 << 31, 1 << 31], "data_offsets": [0, 8]}) + bytes(8)


@pytest.mark.parametrize("name", HEADERS)
def test_weights_with_a_hostile_header_are_refused(attack, trained, tmp_path, name):
    content = HEADERS[name]
    size = (trained / "weights.safetensors").stat().st_size
    for weights in (content, content + bytes(size)):  # as it is, and long enough to be the network's
        folder = spoilt(trained, tmp_path, weights_safetensors=weights)
        card = json.loads((folder / "model.json").read_text())
        card["weights"] = hashlib.sha256(weights).hexdigest()
        (folder / "model.json").write_text(json.dumps(card))
        attack("run", folder, "RunError", "weights.safetensors")
        shutil.rmtree(folder)


def test_weights_of_another_hash_are_refused(attack, trained, tmp_path):
    attack("run", spoilt(trained, tmp_path, weights_safetensors=b"x"), "RunError", "One of them is from another run")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network": {"channels": [16384] * 12, "blocks": 16, "spatial_dims": 2}}, "needs"),
        ({"network": {"channels": [16384] * 12, "blocks": 64, "spatial_dims": 2}}, "less than or equal"),
        ({"network": {"channels": [1 << 40], "spatial_dims": 2}}, "less than or equal"),
        ({"network": {"channels": [8, 16], "blocks": 10**9, "spatial_dims": 2}}, "less than or equal"),
    ],
)
def test_a_network_of_more_weights_than_there_are_is_not_built(attack, trained, tmp_path, changes, said):
    import yaml

    raw = yaml.safe_load((trained / "config.yaml").read_text())
    raw["data"]["size"] = [2048, 2048]
    folder = spoilt(trained, tmp_path, config_yaml=yaml.safe_dump({**raw, **changes}))
    attack("run", folder, "RunError" if said == "needs" else "ConfigError", said)


@pytest.mark.parametrize(
    "change",
    [
        {"sigma_data": float("nan")},
        {"sigma_data": "$__import__('os')"},
        {"space": {}},
        {"labels": ["../../x"]},
        {"_target_": "os.system"},
        {"latents": {"autoencoder": "", "factor": 1 << 60, "mean": [], "std": []}},
        {"weights": "../../etc/passwd"},
    ],
)
def test_a_hostile_card_is_refused(attack, trained, tmp_path, change):
    card = {**json.loads((trained / "model.json").read_text()), **change}
    attack("run", spoilt(trained, tmp_path, model_json=json.dumps(card)), "RunError")


@pytest.mark.parametrize("text", ["[" * 100000, "x" * (2 << 20), "", "null", "\x00"])
def test_a_card_that_is_none_is_refused(attack, trained, tmp_path, text):
    attack("run", spoilt(trained, tmp_path, model_json=text), "RunError", "is not the card of a trained model")


@pytest.mark.parametrize(
    "space", [{"scale": 0.0}, {"scale": float("inf")}, {"spacing_mm": [0, 1, 1]}, {"axis": "../x"}]
)
def test_units_that_mean_nothing_are_refused(attack, trained, tmp_path, space):
    card = json.loads((trained / "model.json").read_text())
    card["space"] |= space
    attack(
        "run", spoilt(trained, tmp_path, model_json=json.dumps(card)), "RunError", "is not the card of a trained model"
    )
