"""The same as `meddiff sample`, for batch jobs: python scripts/synthesize.py --help"""

import sys

from meddiff.cli import main

main(["sample", *sys.argv[1:]])
