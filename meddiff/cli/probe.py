"""`python -m meddiff.cli.probe step|sample`: measure what stands on stdin as JSON in a process of its own, answer on stdout.

A process of its own, because the most memory that a process ever had is known for a whole process only. It imports what
`meddiff train` imports, so that the libraries take what they take there.
"""

import resource
import sys

from meddiff.cli import train
from meddiff.data.memory import exhausted
from meddiff.engines.measure import Request, measure_sample, measure_step
from meddiff.engines.trainer import choose_device
from meddiff.errors import MeddiffError
from meddiff.report import previews

TOO_LARGE, REFUSED = 3, 2  # exit codes beside 0
IMPORTED = (train, previews)


def main() -> None:
    """Exit code 3 where the memory of the machine is too small, 2 for bad input."""
    request = Request.model_validate_json(sys.stdin.read())
    limit = int(sys.argv[2])
    if choose_device(request.config.train.device).type == "cpu":
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # a refusal to us, not the end of another process
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401  training has it too

    act = {"step": measure_step, "sample": measure_sample}[sys.argv[1]]
    try:
        print(act(request).model_dump_json())  # noqa: T201  this is the answer
    except MeddiffError as e:
        print(e, file=sys.stderr)  # noqa: T201
        sys.exit(REFUSED)
    except (MemoryError, RuntimeError) as e:
        if not exhausted(e):
            raise
        print(e, file=sys.stderr)  # noqa: T201
        sys.exit(TOO_LARGE)


if __name__ == "__main__":
    main()
