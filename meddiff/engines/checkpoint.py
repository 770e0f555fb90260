"""Checkpoints that are whole or not there: written under another name, flushed, renamed, and verified when read."""

import hashlib
import io
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch

from meddiff.errors import RunError

KEPT = 2  # newest checkpoints; the older of them is the way back when the newer is damaged
log = logging.getLogger(__name__)


def write_atomic(path: Path, content: bytes) -> None:
    """`content` under its final name only when it is whole on the disk."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], identity: dict[str, str]) -> Path:
    """`step_00000500.pt` beside a `.json` with its SHA-256 and what it belongs to; the oldest but two are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    path = folder / f"step_{step:08d}.pt"
    write_atomic(path, content)
    record = {"step": step, "sha256": hashlib.sha256(content).hexdigest(), **identity}
    write_atomic(path.with_suffix(".json"), json.dumps(record).encode())
    for old in sorted(folder.glob("step_*.pt"))[:-KEPT]:
        old.with_suffix(".json").unlink(missing_ok=True)
        old.unlink()
    return path


def load_checkpoint(folder: Path, identity: dict[str, str], *, force: bool = False) -> tuple[int, dict[str, Any]]:
    """Step and state of the newest checkpoint that is whole; damaged ones are passed over with a warning.

    RunError where there is none, or where it belongs to another config or other data, unless `force`.
    """
    for path in sorted(folder.glob("step_*.json"), reverse=True):
        state_path = path.with_suffix(".pt")
        try:
            record = json.loads(path.read_text())
            content = state_path.read_bytes()
            if hashlib.sha256(content).hexdigest() != record["sha256"]:
                raise ValueError("its SHA-256 is not the recorded one")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
            log.warning("%s is damaged (%s); trying the one before it.", state_path, e)
            continue
        changed = [name for name, value in identity.items() if record.get(name) != value]
        if changed and not force:
            raise RunError(
                f"{state_path}: was written with another {' and another '.join(changed)}. Resume with the run's own "
                "config.yaml, start a new run, or pass --force to go on with the new settings."
            )
        try:
            return record["step"], torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as e:  # the loader raises what it likes at a file that is not one of ours
            raise RunError(f"{state_path}: is not a checkpoint of meddiff ({e}). Remove it, and resume again.") from e
    raise RunError(f"{folder}: holds no checkpoint that can be read. Start the run again without --resume.")
