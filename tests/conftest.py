import logging
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

torch.set_num_threads(2)  # for fixtures that are made before the first test
torch.backends.cudnn.conv.fp32_precision = "ieee"  # where there is a GPU, float32 is float32


@pytest.fixture(autouse=True)
def two_threads():
    """The same floating-point sums whatever machine the tests run on."""
    torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def own_log():
    """A command sets up the log of its process, which is the next test's too."""
    yield
    logger = logging.getLogger("meddiff")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
