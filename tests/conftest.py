"""No network, one thread (tests of two workers share two cores), and clocks that look a few times only."""

import gc
import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

torch.set_num_threads(1)

pytest_plugins = ["artifacts"]


@pytest.fixture(scope="session", autouse=True)
def few_objects_to_look_through() -> Iterator[None]:
    """Every training collects garbage; what the libraries hold for good is left out of that, and most of its time."""
    import exitkit.distillation.distill
    import exitkit.report.page
    import exitkit.training.trainer  # noqa: F401

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def brief_timing() -> Iterator[None]:
    """Commands measure times as they always do, but few of them: no test rests on how long something took."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exitkit.benchmarking.benchmark.MOST_TIMED", 4)
        patch.setattr("exitkit.calibration.study.TIMED_BATCHES", {1: 4})
        patch.setattr("exitkit.calibration.layer_time.REPEATS", 2)
        yield
