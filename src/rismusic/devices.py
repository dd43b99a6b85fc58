"""The device that a user names."""

from __future__ import annotations

import torch

from rismusic.errors import InputError


def device_of(device: torch.device | str) -> torch.device:
    """The device, if this machine has it.

    Raises:
        InputError: no device has this name, or this machine has none of it.
    """
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            "device", f"{str(device)!r} is not available on this machine ({reason}); use 'cpu'"
        ) from None
    return chosen
