"""Kill a small training run again and again with `kill -9`, tear checkpoints, change the loader processes; compare the end.

    python scripts/kill_and_resume.py --kills 20

The weights, their average and the optimiser must be those of the run that nobody disturbed, bit by bit. A few minutes.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from ignite.engine import Events

from meddiff.config_file import load_config, parse_config
from meddiff.data.scan import scan, write_scan
from meddiff.engines.checkpoint import load_checkpoint
from meddiff.engines.fit import fit
from meddiff.engines.run import Run
from meddiff.imaging.phantom import write_cohort

EVERY = 5  # steps between checkpoints
WORKERS = (0, 1, 2)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--kills", type=int, default=20)
    arguments.add_argument("--steps", type=int, default=200)
    arguments.add_argument("--seed", type=int, default=0, help="Of the moments.")
    arguments.add_argument("--child", nargs=4, metavar=("CONFIG", "RUN", "WORKERS", "STEPS"), help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.child:
        train(*given.child)
        return
    with tempfile.TemporaryDirectory(prefix="meddiff-kill-") as folder:
        ok = harness(Path(folder), given.kills, given.steps, random.Random(given.seed))
    sys.exit(0 if ok else 1)


def train(config: str, folder: str, workers: str, steps: str) -> None:
    """One life of a run: it notes every step that it finishes in the file `steps`."""
    torch.set_num_threads(1)
    descriptor = os.open(steps, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def attach(session) -> None:
        os.write(descriptor, f"from {session.engine.state.iteration}\n".encode())
        session.engine.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine: os.write(descriptor, f"{engine.state.iteration}\n".encode())
        )

    settings = load_config(Path(config), [f"data.workers={workers}"])
    fit(settings, Path(folder), resume=Run(folder).config_path.exists(), attach=[attach])


def harness(folder: Path, kills: int, steps: int, rng: random.Random) -> bool:
    """Whether the disturbed run ends as the other one; says what happened."""
    config = prepare(folder, steps)
    if life(config, folder / "whole", 0).wait() != 0:
        raise SystemExit("The run that nobody disturbs failed.")
    began = time.monotonic()
    life(config, folder / "whole", 0).wait()  # has nothing left to do: the time it takes to start
    startup = time.monotonic() - began
    torn = 0
    for number in range(kills):
        process = life(config, folder / "run", WORKERS[number % len(WORKERS)])
        before = reached(folder / "run.steps")
        if number % 5 == 4:
            time.sleep(rng.uniform(0.1, 0.9) * startup)
        else:
            wanted = before + rng.randrange(1, (steps - before) // (kills - number) + 1)
            while process.poll() is None and reached(folder / "run.steps") < wanted:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.05))
        if process.poll() is not None:
            said = (folder / "run.said").read_text()
            raise SystemExit(f"The run ended by itself before kill {number + 1}, with {process.returncode}.\n{said}")
        process.kill()
        process.wait()
        checkpoints = sorted((folder / "run" / "checkpoints").glob("*.pt"))
        tear = number % 3 == 2 and len(checkpoints) > 1
        if tear:
            newest = checkpoints[-1].read_bytes()
            checkpoints[-1].write_bytes(newest[: rng.randrange(len(newest))])
            torn += 1
        print(
            f"kill {number + 1} at step {reached(folder / 'run.steps')}{', newest checkpoint torn' * tear}", flush=True
        )
    ok = life(config, folder / "run", 0).wait() == 0 and same(Run(folder / "whole"), Run(folder / "run"))
    again = losses(folder / "run.steps")
    print(
        f"{kills} kills, {torn} torn checkpoints; steps done again after each: {again[1:]} (a checkpoint every {EVERY})"
    )
    print("the same bits" if ok else "NOT the same")
    return ok


def life(config: Path, run: Path, workers: int) -> subprocess.Popen:
    """A process that trains until it is done or killed."""
    child = ["--child", str(config), str(run), str(workers), str(run.with_suffix(".steps"))]
    with run.with_suffix(".said").open("w") as said:
        return subprocess.Popen([sys.executable, __file__, *child], stderr=said)


def noted(path: Path) -> list[str]:
    """The lines that the lives of a run wrote."""
    return path.read_text().split("\n")[:-1] if path.exists() else []


def reached(path: Path) -> int:
    """The step of the last line."""
    lines = noted(path)
    return int(lines[-1].removeprefix("from ")) if lines else 0


def losses(path: Path) -> list[int]:
    """How many steps each life did again."""
    step, again = 0, []
    for line in noted(path):
        number = int(line.removeprefix("from "))
        if line.startswith("from "):
            again.append(max(step - number, 0))
        step = number
    return again


def same(whole: Run, run: Run) -> bool:
    """Whether two runs ended in the same weights, average and optimiser."""
    (step, state), (step_whole, state_whole) = (load_checkpoint(one.checkpoints, {}) for one in (run, whole))
    groups, groups_whole = (json.dumps(s["optimizer"].pop("param_groups")) for s in (state, state_whole))
    try:
        torch.testing.assert_close(state, state_whole, rtol=0, atol=0)
    except AssertionError as e:
        print(e)
        return False
    alike = step == step_whole and groups == groups_whole
    return alike and whole.weights_path.read_bytes() == run.weights_path.read_bytes()


def prepare(folder: Path, steps: int) -> Path:
    """A config over a few small heads."""
    write_cohort(folder / "data", 6, format="nifti", size=24)
    write_scan(folder / "m.jsonl", *scan([folder / "data"], split=(0.7, 0.15, 0.15), key=b"of no patient", root=folder))
    tree = {
        "task": "synthesis",
        "data": {
            "manifest": str(folder / "m.jsonl"),
            "cache": str(folder / "cache"),
            "spacing_mm": [15, 15],
            "size": [16, 16],
            "crop": "random",
            "augment": {"flip": True, "rotate_deg": 10},
            "intensity": {"kind": "window", "low": -200, "high": 400},
        },
        "network": {"spatial_dims": 2, "channels": [8, 16], "blocks": 1, "dropout": 0.1},
        "train": {"steps": steps, "batch": 4, "checkpoint_every": EVERY, "validate_every": 50, "device": "cpu"},
    }
    path = folder / "config.yaml"
    path.write_text(parse_config(json.loads(json.dumps(tree)), "the harness").dump(), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
