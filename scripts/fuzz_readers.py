"""Damaged DICOM and NIfTI files through our readers, each under limits of 2 s and 1 GiB.

    python scripts/fuzz_readers.py [--quick] [--json FILE] [--seed N] [--keep FOLDER]

Bytes of real files are changed, cut, repeated and blanked at random, the same for the same seed. A file may be read or be
refused with a message; a crash, a dead process, or more time or memory is a failure, and the exit code is 1. Needs the test extra.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "imaging"))
from fuzz import BYTES, SECONDS, Reader, damaged


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100 files instead of 1,000")
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="keep the files that fail here")
    options = parser.parse_args()
    answers = []
    with Reader() as reader, tempfile.TemporaryDirectory() as scratch:
        for name, content in damaged(100 if options.quick else 1000, options.seed):
            path = Path(scratch) / name
            path.write_bytes(content)
            answer = reader(path)
            answers.append(answer)
            if answer["outcome"] not in ("read", "refused") or answer["seconds"] > SECONDS:
                print(f"{name}: {answer}")
                if options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    (options.keep / name).write_bytes(content)
            path.unlink()
    outcomes = Counter(answer["outcome"] for answer in answers)
    figures = {
        "files": len(answers),
        **{outcome: outcomes[outcome] for outcome in ("read", "refused", "crash", "timeout", "died")},
        "slowest_s": round(max(answer["seconds"] for answer in answers), 3),
        "median_ms": round(1000 * statistics.median(answer["seconds"] for answer in answers), 2),
        "peak_mib": round(max(answer["bytes"] for answer in answers) / 2**20),
    }
    for key, value in figures.items():
        print(f"{key:12} {value}")
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=2))
    within = figures["slowest_s"] <= SECONDS and figures["peak_mib"] * 2**20 <= BYTES
    return 0 if within and outcomes["read"] + outcomes["refused"] == len(answers) else 1


if __name__ == "__main__":
    sys.exit(main())
