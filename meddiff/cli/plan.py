"""`meddiff plan`: what a run will cost, before it starts."""

import json
import re
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meddiff.cli.console import Quiet, begin, show, tell

if TYPE_CHECKING:
    from meddiff.config import Config
    from meddiff.data.conditions import Known
    from meddiff.engines.measure import Request
    from meddiff.engines.plan import Plan

UNITS = {"": 1, "K": 10, "M": 20, "G": 30, "T": 40}  # powers of two


def command(
    config: Annotated[Path, typer.Argument(help="A YAML config, for instance configs/synthesis_3d_mr.yaml.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting, for instance train.batch=2.")
    ] = None,
    device_memory: Annotated[
        str | None, typer.Option(help="Memory of the GPU to plan for, for instance 24GiB; what is here unless given.")
    ] = None,
    device_tflops: Annotated[
        float | None,
        typer.Option(min=0.01, help="TFLOP/s that this GPU sustains, for instance a third of its data sheet's."),
    ] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the figures here as well.")] = None,
    quiet: Quiet = False,
) -> None:
    """Measure a training step at two sizes on this machine and say what the whole run takes: memory, hours, seconds a sample.

    Where it does not fit, what to change, and what the change would take. For a GPU that is not here its memory follows
    from the tensors of the same step, its time from the operations counted in it.

    Example: `meddiff plan configs/synthesis_3d_mr.yaml --device-memory 24GiB --device-tflops 20`
    """
    begin(quiet)
    from meddiff.config_file import load_config
    from meddiff.engines.plan import plan
    from meddiff.engines.trainer import choose_device, computes_bf16
    from meddiff.errors import ConfigError

    settings = load_config(config, set_ or ())
    if settings.train.privacy is not None:
        raise ConfigError(
            "train.privacy: only plain steps are planned. A private step is a pass of images_per_patient * noise_multiplicity images "
            "for each of train.batch patients; scripts/bench_privacy.py times it."
        )
    device = choose_device(settings.train.device)
    if device.type == "cpu" and settings.train.precision == "bf16":
        computes_bf16()  # its warning would be lost in the probes
    here = _memory(device.type)
    gpu_absent = device_memory is not None and device.type != "cuda"
    if device_tflops is not None and not gpu_absent:
        raise ConfigError("--device-tflops is for a GPU that is not here; give its memory with --device-memory too.")
    budget = here if device_memory is None else _bytes(device_memory)
    known, held_out = _data(settings)
    with tell.status("Measuring") as status:

        def probe(kind: str, request: "Request") -> str:
            status.update(f"Measuring a {kind} of {request.batch} x {' x '.join(map(str, request.size))} voxels")
            return _probe(kind, request, here)

        from meddiff.engines.measure import Drawn, Step

        result = plan(
            settings,
            known,
            held_out,
            budget,
            gpu_absent,
            lambda request: Step.model_validate_json(probe("step", request)),
            lambda request: Drawn.model_validate_json(probe("sample", request)),
        )
    figures = _figures(result, device_tflops, str(device))
    _show(result, figures)
    if json_ is not None:
        from meddiff.data.files import write_whole

        write_whole(json_, json.dumps(figures, indent=2).encode())


def _data(config: "Config") -> tuple["Known", int]:
    """What a model can be asked for, and how many images the held-out loss is measured on, as far as the manifest is there."""
    from meddiff.data.conditions import Known, learn
    from meddiff.data.manifest import Manifest
    from meddiff.engines.plan import HELD_OUT

    if not config.data.manifest.is_file() and not (config.needs_labels or config.condition.any):
        return Known(), HELD_OUT
    manifest = Manifest.read(config.data.manifest)
    held_out = len(manifest.split("val"))
    return learn(config, manifest), held_out if config.network.spatial_dims == 3 else HELD_OUT * bool(held_out)


def _probe(kind: str, request: "Request", memory: int) -> str:
    """What a process of its own measures, as JSON."""
    from meddiff.cli.probe import REFUSED, TOO_LARGE
    from meddiff.engines.plan import TooLargeError
    from meddiff.errors import ConfigError

    done = subprocess.run(
        [sys.executable, "-m", "meddiff.cli.probe", kind, str(memory)],
        input=request.model_dump_json(),
        capture_output=True,
        text=True,
    )
    said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    if done.returncode in (TOO_LARGE, -signal.SIGKILL):
        raise TooLargeError(said[0])
    if done.returncode == REFUSED:
        raise ConfigError(said[0])
    if done.returncode:
        raise RuntimeError(f"The measurement failed: {done.stderr}")
    return done.stdout.splitlines()[-1]


def _memory(device: str) -> int:
    """Bytes that a run may take here."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    from meddiff.data.memory import available

    return available()


def _bytes(text: str) -> float:
    """A size such as 24GiB, 24G or 800 MB, all in powers of two."""
    from meddiff.errors import ConfigError

    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?\s*", text, re.IGNORECASE)
    if not found or not float(found[1]):
        raise ConfigError(f"--device-memory {text!r}: is not a size. Write it as 24GiB.")
    return float(found[1]) * 2 ** UNITS[found[2].upper()]


def _figures(plan: "Plan", tflops: float | None, device: str) -> dict[str, Any]:
    """Flat figures: bytes, seconds, hours."""
    step_s, hours, origin = plan.own.step_s, plan.train_hours, f"measured on {device}: {plan.own.how}"
    sample_s: float | None = plan.sample_s
    else_hours: float | None = plan.else_hours
    if tflops is not None:
        faster = plan.flops_per_step / (tflops * 1e12) / step_s
        step_s, hours, origin = step_s * faster, hours * faster, f"{tflops:g} TFLOP/s and the operations of one step"
        sample_s, else_hours = plan.sample_s * faster, plan.else_hours * faster
    return {
        "memory_bytes": plan.own.memory,
        "memory_budget_bytes": plan.budget,
        "fits": plan.own.fits,
        "step_s": step_s,
        "train_hours": hours,
        "pictures_and_held_out_hours": else_hours,
        "sample_s": sample_s,
        "flops_per_step": plan.flops_per_step,
        "parameters": plan.cost.step.parameters,
        "time_from": origin,
        "memory_from": (
            f"tensors of a step measured on {device} ({plan.own.how}), and 0.5 GiB for CUDA, an assumption"
            if plan.gpu_absent
            else f"measured on {device}: {plan.own.how}"
        ),
        "images_made_smaller": plan.cost.smaller,
        "points": [
            {"batch": request.batch, "size": list(request.size), **step.model_dump()}
            for request, step in plan.cost.points
        ],
        "changes": [asdict(change) for change in plan.changes],
    }


def _show(plan: "Plan", figures: dict[str, Any]) -> None:
    from rich.table import Table

    gib = 2**30
    measured = Table(
        "measured here", "step", "memory at most", "operations", title=f"{figures['parameters']:,} parameters"
    )
    for point in figures["points"]:
        size = f"{point['batch']} x {' x '.join(map(str, point['size']))} voxels"
        measured.add_row(
            size, f"{point['seconds']:.3f} s", f"{point['peak'] / gib:.2f} GiB", f"{point['flops'] / 1e9:.0f} GFLOP"
        )
    show(measured)
    table = Table("what", "figure", "from")
    fits = "fits" if plan.own.fits else "[bold red]does not fit[/]"
    whose = "the GPU" if plan.gpu_absent else "free here"
    table.add_row(
        "memory",
        f"{plan.own.memory / gib:.2f} GiB: {fits} into {plan.budget / gib:.1f} GiB of {whose}",
        figures["memory_from"],
    )
    table.add_row("one optimiser step", f"{figures['step_s']:.3f} s", figures["time_from"])
    table.add_row("train.steps", f"{figures['train_hours']:.2f} h", "the step")
    table.add_row(
        "held-out loss, pictures", f"{figures['pictures_and_held_out_hours']:.2f} h", "the step and the sample"
    )
    table.add_row("one sample", f"{figures['sample_s']:.2f} s", figures["time_from"])
    if plan.cost.smaller:
        table.add_row("", "", "images had to be smaller here; attention would cost more than the line says")
    show(table)
    if plan.changes:
        advice = Table("change", "memory", "step here", "", "from", title="What would help")
        for change in plan.changes:
            does = "fits" if change.fits else "does not fit"
            advice.add_row(
                tell.escape(change.what), f"{change.memory / gib:.2f} GiB", f"{change.step_s:.3f} s", does, change.how
            )
        show(advice)
