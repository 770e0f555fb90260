"""The same as `meddiff restore`, for batch jobs: python scripts/denoise.py --help"""

import sys

from meddiff.cli import main

main(["restore", *sys.argv[1:]])
