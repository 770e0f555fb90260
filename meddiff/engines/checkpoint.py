"""Checkpoints that are whole or not there: written under another name, flushed, renamed, and verified when read."""

import hashlib
import io
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from meddiff.data.files import write_whole
from meddiff.errors import RunError

RESERVE = 1 << 20  # bytes of the disk that a checkpoint leaves free, for the small files beside it
log = logging.getLogger(__name__)


class Record(BaseModel):
    """What stands beside a checkpoint, `step_00000500.json`: what it must hash to, and what it belongs to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    sha256: str
    config: str  # digest of the settings that the weights depend on
    manifest: str  # digest of the cases
    held_out: float | None = None  # the held-out loss, where it was measured at this very step


def write_atomic(path: Path, content: bytes) -> None:
    """`content` under its final name only when it is whole on the disk; RunError where it cannot be written."""
    try:
        write_whole(path, content)
    except OSError as e:
        raise RunError(
            f"{path}: cannot be written ({e}). What was there before is untouched. Free space, or mend the right to write."
        ) from e


def save_checkpoint(
    folder: Path,
    step: int,
    state: dict[str, Any],
    identity: dict[str, str],
    *,
    keep: int = 2,  # newest checkpoints that stay; the older ones are the way back when the newest is damaged
    held_out: float | None = None,
) -> Path:
    """`step_00000500.pt` beside its `Record`; all but the newest `keep` and the one of least held-out loss are removed.

    The state gets "best" besides: the step and the value of the least held-out loss so far, None where none was measured.
    RunError where the disk has no room for it: the checkpoints before it stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    best = best_checkpoint(folder)
    least = None if best is None else {"step": best.step, "held_out": best.held_out}
    if held_out is not None and (best is None or best.held_out is None or held_out < best.held_out):
        least = {"step": step, "held_out": held_out}
    buffer = io.BytesIO()
    torch.save({**state, "best": least}, buffer)
    content = buffer.getvalue()
    free = shutil.disk_usage(folder).free
    if free < len(content) + RESERVE:
        raise RunError(
            f"{folder}: a checkpoint takes {len(content) / 2**20:.0f} MiB, the disk has {free / 2**20:.0f} MiB left. The "
            "checkpoints before it are whole. Free space, then go on with --resume."
        )
    path = folder / f"step_{step:08d}.pt"
    write_atomic(path, content)
    record = Record(step=step, sha256=hashlib.sha256(content).hexdigest(), held_out=held_out, **identity)
    write_atomic(path.with_suffix(".json"), record.model_dump_json().encode())  # last: with it the checkpoint is whole
    _prune(folder, step, keep)
    return path


def load_checkpoint(folder: Path, identity: dict[str, str], *, force: bool = False) -> tuple[int, dict[str, Any]]:
    """Step and state of the newest checkpoint that is whole; damaged ones are passed over with a warning.

    RunError where there is none, or where it belongs to another config or other data, unless `force`.
    """
    for path in sorted(folder.glob("step_*.pt"), reverse=True):
        try:
            record = read_record(path)
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != record.sha256:
                raise ValueError("its SHA-256 is not the recorded one")
        except (OSError, ValueError) as e:
            log.warning("%s is damaged (%s); trying the one before it.", path, e)
            continue
        if not force:
            refuse_other(str(path), record.model_dump(), identity)
        try:
            return record.step, torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as e:  # the loader raises what it likes at a file that is not one of ours
            raise RunError(f"{path}: is not a checkpoint of meddiff ({e}). Remove it, and resume again.") from e
    raise RunError(f"{folder}: holds no checkpoint that can be read. Start the run again without --resume.")


def refuse_other(name: str, found: dict[str, Any], identity: dict[str, str]) -> None:
    """RunError where what is `found` of config and manifest is not `identity`."""
    changed = [key for key, value in identity.items() if found.get(key) != value]
    if changed:
        raise RunError(
            f"{name}: was written with another {' and another '.join(changed)}. Resume with the run's own "
            "config.yaml, start a new run, or pass --force to go on with the new settings."
        )


def read_record(path: Path) -> Record:
    """The record of a checkpoint; ValueError where it is damaged, OSError where it is missing."""
    try:
        return Record.model_validate_json(path.with_suffix(".json").read_text(encoding="utf-8"))
    except ValidationError as e:
        raise ValueError(f"its record is not one: {e.errors(include_url=False)[0]['msg']}") from e


def best_checkpoint(folder: Path) -> Record | None:
    """The record of the checkpoint of least held-out loss, the earliest of equals; None where none was measured."""
    measured = []
    for path in sorted(folder.glob("step_*.pt")):
        try:
            record = read_record(path)
        except (OSError, ValueError):
            continue
        if record.held_out is not None:
            measured.append((record.held_out, record.step, record))
    return min(measured)[2] if measured else None


def _prune(folder: Path, newest: int, keep: int) -> None:
    """Remove what is older than is kept, and what is later than the newest: those could not be read when it began."""
    best = best_checkpoint(folder)
    paths = sorted(folder.glob("step_*.pt"))
    later = [path for path in paths if path.stem > f"step_{newest:08d}"]
    kept = [path for path in paths if path not in later][-keep:]
    if best is not None and best.step <= newest:
        kept.append(folder / f"step_{best.step:08d}.pt")
    for path in paths:
        if path not in kept:
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink()
