"""A process that opens one hostile thing after another, and says how it ended, what time of the processor it took and what memory.

python attacked.py        reads JSON lines {act, path, ...} from stdin and answers each with one
"""

import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import torch

from meddiff.config_file import load_config
from meddiff.data.arrays import open_array
from meddiff.data.inputs import find_scans
from meddiff.data.manifest import Manifest
from meddiff.data.medmnist import open_array as open_row
from meddiff.data.scan import scan, write_scan
from meddiff.engines.checkpoint import load_checkpoint
from meddiff.engines.run import Run
from meddiff.errors import MeddiffError
from meddiff.imaging.nifti import read_nifti
from meddiff.privacy.folder import deidentify

KEY = b"a key for tests only, 32 bytes.."
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _run(path):
    run = Run.open(path)
    run.manifest()
    run.load_model(torch.device("cpu"))


def _scan(path):
    cases, refused = scan([path], key=KEY, root=path)
    write_scan(path.parent / "out" / "m.jsonl", cases, refused)


def _manifest(path):
    for one in find_scans([path])[0]:
        one.read("MR")
    Manifest.read(path)


ACTS = {
    "config": load_config,
    "run": _run,
    "resume": lambda path: load_checkpoint(path, {"config": "c", "manifest": "m"}),
    "manifest": _manifest,
    "scan": _scan,
    "nifti": read_nifti,
    "cache": open_array,
    "row": lambda path: open_row(path, "train_images"),
    "deidentify": lambda path: deidentify(path, path.parent / "out", KEY),
}


def status(name: str) -> int:
    """Bytes, from the kernel's account of this process."""
    return next(1024 * int(x.split()[1]) for x in STATUS.read_text().splitlines() if x.startswith(name))


def answer(act: str, path: Path) -> dict:
    RESET.write_text("5")  # the most memory is counted from here
    before, began = status("VmRSS"), time.process_time()
    try:
        ACTS[act](path)
        outcome, said = "accepted", ""
    except MeddiffError as e:
        outcome, said = type(e).__name__, str(e)
    except BaseException as e:
        outcome, said = f"crash: {type(e).__name__}", str(e)[:300]
    return {
        "outcome": outcome,
        "said": said,
        "seconds": time.process_time() - began,
        "bytes": max(status("VmHWM") - before, 0),
    }


class Victim:
    """The process, from the other side."""

    def __enter__(self) -> "Victim":
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.process.stdout.readline()  # it is ready
        return self

    def __call__(self, act: str, path: Path) -> dict:
        print(json.dumps({"act": act, "path": str(path)}), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"outcome": "died", "said": "", "seconds": 0.0, "bytes": 0}

    def __exit__(self, *_) -> None:
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


if __name__ == "__main__":
    logging.disable()
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(answer(request["act"], Path(request["path"]))), flush=True)  # noqa: T201
