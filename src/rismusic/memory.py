"""How much memory temporary arrays may take: one budget, from which all block sizes follow."""

from __future__ import annotations

import os

import torch

from rismusic.errors import InputError

VARIABLE = "RISMUSIC_MEMORY_BUDGET_MIB"
"""Environment variable that replaces the default budget, in MiB."""

# MiB by type of device. On a processor small blocks stay in its caches; a GPU wants large ones.
_DEFAULT_MIB = {"cpu": 256, "cuda": 2048}


def memory_budget(device: torch.device) -> int:
    """Bytes that the arrays kept for one block of work may take; temporary arrays take a quarter of it.

    Args:
        device: where the work is done.

    Raises:
        InputError: the environment variable holds no positive number.
    """
    text = os.environ.get(VARIABLE)
    if text is None:
        return _DEFAULT_MIB.get(device.type, _DEFAULT_MIB["cpu"]) * 2**20
    try:
        mebibytes = float(text)
    except ValueError:
        mebibytes = 0.0
    if not 0 < mebibytes < float("inf"):
        raise InputError(VARIABLE, f"the memory budget must be a positive number of MiB; got {text!r}")
    return int(mebibytes * 2**20)


def block_size(bytes_each: int, device: torch.device) -> int:
    """How many items fit into a block of temporary arrays, at least one.

    Args:
        bytes_each: of the arrays made for one item.
        device: where they are.
    """
    return max(1, memory_budget(device) // 4 // max(1, bytes_each))


def blocks(count: int, bytes_each: int, device: torch.device) -> list[slice]:
    """Slices of ``count`` items, such as scenes, whose temporary arrays fit the budget.

    Args:
        count: all items.
        bytes_each: of the arrays made for one item.
        device: where they are.
    """
    step = block_size(bytes_each, device)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]
