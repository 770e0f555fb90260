"""The same as `meddiff train`, for batch jobs: python scripts/train.py --help"""

import sys

from meddiff.cli import main

main(["train", *sys.argv[1:]])
