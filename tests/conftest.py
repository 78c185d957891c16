"""No network, and one thread: tests of two workers share two cores."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

torch.set_num_threads(1)

pytest_plugins = ["artifacts"]
