"""`python -m meddiff`, and `torchrun -m meddiff`: the same as the command `meddiff`."""

from meddiff.cli import main

main()
