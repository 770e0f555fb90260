"""The same as `meddiff deidentify`, for batch jobs: python scripts/deidentify.py --help"""

import sys

from meddiff.cli import main

if __name__ == "__main__":  # the workers import this file
    main(["deidentify", *sys.argv[1:]])
