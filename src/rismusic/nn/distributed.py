"""Several processes that train one network, each on its share of every batch.

Ctrl-C between two steps, never within one.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from rismusic.errors import InputError


@dataclass(frozen=True)
class ProcessGroup:
    """Which of how many processes this is, and its device.

    Args:
        rank: from 0; process 0 writes and speaks.
        world: number of processes.
        device: of this process.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def average(self, parameters: Sequence[nn.Parameter], numbers: Tensor) -> Tensor:
        """Make the gradients of all processes their mean, and return the mean of the numbers: one message."""
        if self.world == 1:
            return numbers
        held = [parameter for parameter in parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in held]
        message = torch.cat([numbers, *(g.flatten() for g in gradients if g is not None)]) / self.world
        distributed.all_reduce(message)
        parts = message[len(numbers) :].split([parameter.numel() for parameter in held])
        for gradient, part in zip(gradients, parts, strict=True):
            assert gradient is not None
            gradient.copy_(part.view_as(gradient))
        return message[: len(numbers)]

    def told(self, value: bool) -> bool:
        """What process 0 says."""
        if self.world == 1:
            return value
        message = torch.tensor([float(value)], device=self.device)
        distributed.broadcast(message, src=0)
        return bool(message.item())

    @contextmanager
    def together(self) -> Iterator[None]:
        """What only process 0 does in here: bad input that it meets ends all processes, with its sentence.

        Raises:
            InputError: that of process 0.
        """
        said: list[InputError | None] = [None]
        try:
            yield
        except InputError as error:
            if not self.first:
                raise
            said[0] = error
        if self.world > 1:
            distributed.broadcast_object_list(said, src=0, device=self.device)
        if said[0] is not None:
            raise said[0]

    def wait(self) -> None:
        """Go on when all have come this far."""
        if self.world > 1:
            distributed.barrier()


@contextmanager
def process_group(device: torch.device | str | None = None) -> Iterator[ProcessGroup]:
    """The processes that ``torchrun`` started, or this one alone.

    Args:
        device: of a process alone; a GPU where there is one, if none. Under ``torchrun`` each process has the
            GPU of its local rank, or the CPU if that is asked for or there is no GPU.

    Raises:
        InputError: a device that is not there.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    kind = _device(device)
    if world == 1:
        yield ProcessGroup(device=kind)
        return
    if kind.type == "cuda":
        kind = _device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(kind)
    distributed.init_process_group("nccl" if kind.type == "cuda" else "gloo")
    try:
        yield ProcessGroup(distributed.get_rank(), world, kind)
    finally:
        distributed.destroy_process_group()


def _device(wanted: torch.device | str | None) -> torch.device:
    """The device of that name, if it is there."""
    gpus = torch.cuda.device_count()
    try:
        found = torch.device(wanted or ("cuda" if gpus else "cpu"))
    except RuntimeError:
        raise InputError("device", "cpu or cuda", str(wanted)) from None
    if found.type not in ("cpu", "cuda"):
        raise InputError("device", "cpu or cuda", str(wanted))
    if found.type == "cuda" and (found.index or 0) >= gpus:
        seen = f"one of the {gpus} GPUs" if gpus else "cpu (no GPU is to be seen)"
        raise InputError("device", seen, str(wanted))
    return found


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Remember the first Ctrl-C (or SIGTERM) instead of stopping there; a second one acts at once.

    Yields:
        Whether there has been one. Outside the main thread, where nothing can be caught, there never is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    seen = False
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def remember(_: int, __: FrameType | None) -> None:
        nonlocal seen
        seen = True
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, remember)
    try:
        yield lambda: seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
