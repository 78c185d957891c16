"""What models run on."""

import platform
import subprocess
import sys

import pytest

AGAIN = """
import resource
import torch
from exitkit.configuration import runtime
from exitkit.configuration.config import Common

def use_and_free(times):
    for _ in range(times):
        large = [torch.ones(3_000_000) for _ in range(4)]
        del large

def fetched():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

runtime.device(Common())
use_and_free(30)
before = fetched()
use_and_free(5)
print(fetched() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have limits of their own")
def test_memory_of_large_tensors_is_not_fetched_from_the_system_again_and_again() -> None:
    ran = subprocess.run([sys.executable, "-c", AGAIN], capture_output=True, text=True, check=True)
    pages = int(ran.stdout)
    assert pages < 1000, "five times 48 MB would be 58,000 pages"
