"""Where models run: device, number format, threads, memory."""

from __future__ import annotations

import torch

from exitkit.configuration.config import Common
from exitkit.errors import UsageError


def device(config: Common) -> torch.device:
    """The device that was asked for, or the best there is. Sets what CPUs work with too: threads and memory."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    keep_freed_memory()
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(config.device)
    except RuntimeError:
        raise UsageError(f"--device '{config.device}' is not a device; use cpu, cuda, cuda:N, mps or auto.") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(chosen.type, False):
        raise UsageError(f"--device '{config.device}' is not there on this machine; use cpu or auto.")
    return chosen


def keep_freed_memory() -> None:
    """Let the C library keep up to 62 MB that tensors have left, for the next ones.

    It hands free memory back to the system from some size on, and getting it again, page by page, has taken up to a
    tenth of a batch's time. glibc's limit is twice the largest block that was ever freed, of 32 MB at most
    (mallopt(3), M_MMAP_THRESHOLD); so one such block is asked for and freed, untouched. Elsewhere this does nothing.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def inference_dtype(config: Common) -> torch.dtype:
    """fp32 unless bf16 is asked for, so that answers are those of plain transformers by default."""
    return torch.bfloat16 if config.precision == "bf16" else torch.float32


def precision_of(dtype: torch.dtype) -> str:
    """What settings and files call a number format."""
    return "bf16" if dtype == torch.bfloat16 else "fp32"


def training_bf16(config: Common, device: torch.device) -> bool:
    """Whether to train in bf16 autocast: asked for, or `auto` on hardware that multiplies bf16 natively."""
    if config.precision != "auto":
        return config.precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device.type == "cpu":
        can = torch.cpu.get_capabilities()
        return bool(can.get("amx_bf16") or can.get("avx512_bf16"))
    return False


def describe(device: torch.device, dtype: torch.dtype) -> dict[str, object]:
    """The environment of a measurement, for reports."""
    import platform

    import transformers

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "device": str(device),
        "processor": name,
        "threads": torch.get_num_threads(),
        "precision": precision_of(dtype),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    import platform

    return str(torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine())
