"""The same as `meddiff evaluate`, for batch jobs: python scripts/evaluate.py --help"""

import sys

from meddiff.cli import main

main(["evaluate", *sys.argv[1:]])
