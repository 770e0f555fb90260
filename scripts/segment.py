"""The same as `meddiff segment`, for batch jobs: python scripts/segment.py --help"""

import sys

from meddiff.cli import main

main(["segment", *sys.argv[1:]])
