"""Devices, and the memory budget of temporary arrays on them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rismusic.errors import InputError

VARIABLE = "RISMUSIC_MEMORY_BUDGET_MIB"
"""Environment variable that replaces the default budget, in MiB."""

# MiB by type of device: small blocks stay in the caches of a CPU; a GPU needs large ones.
_DEFAULT_MIB = {"cpu": 256, "cuda": 2048}


def device_of(device: torch.device | str) -> torch.device:
    """The device, if this machine has it."""
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen).cpu()  # a device without data has no values to return
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = str(error).splitlines()[0]
        if reason.startswith("Expected one of"):  # a name that torch does not know, and all that it does
            reason = "devices have names such as cpu, cuda and cuda:1"
        raise InputError(
            "device", f"{str(device)!r} is not available on this machine ({reason}); use 'cpu'"
        ) from None
    return chosen


def memory_budget(device: torch.device) -> int:
    """Memory budget in bytes for one block of work; temporary arrays use a quarter of it."""
    mebibytes = budget_of_environment()
    if mebibytes is None:
        mebibytes = _DEFAULT_MIB.get(device.type, _DEFAULT_MIB["cpu"])
    return int(mebibytes * 2**20)


def budget_of_environment() -> float | None:
    """The memory budget in MiB that the environment variable sets; none without it."""
    text = os.environ.get(VARIABLE)
    if text is None:
        return None
    try:
        mebibytes = float(text)
    except ValueError:
        mebibytes = 0.0
    if not 0 < mebibytes < float("inf"):
        raise InputError(VARIABLE, f"the memory budget must be a positive number of MiB; got {text!r}")
    return mebibytes


def block_size(bytes_each: int, device: torch.device) -> int:
    """Number of items whose temporary arrays fit into the budget, at least one."""
    return max(1, memory_budget(device) // 4 // max(1, bytes_each))


def blocks(count: int, bytes_each: int, device: torch.device) -> list[slice]:
    """Split ``count`` items, such as scenes, into slices whose temporary arrays fit into the budget."""
    step = block_size(bytes_each, device)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in a single thread, so that results do not depend on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
