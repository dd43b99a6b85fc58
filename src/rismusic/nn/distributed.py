"""Data-parallel training: several processes, each with a share of every batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from rismusic.devices import device_of
from rismusic.errors import InputError


@dataclass(frozen=True)
class ProcessGroup:
    """The rank of this process, the number of processes, and the device.

    Rank 0, the main process, writes files and messages.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, rank 0."""
        return self.rank == 0

    def average_gradients(self, parameters: Sequence[nn.Parameter], numbers: Tensor) -> Tensor:
        """Average the gradients, in place, and ``numbers`` over all processes with one all-reduce."""
        if self.world_size == 1:
            return numbers
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        message = torch.cat([numbers, *(gradient.flatten() for gradient in gradients)]) / self.world_size
        distributed.all_reduce(message)
        parts = message[len(numbers) :].split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return message[: len(numbers)]

    def broadcast(self, value: bool) -> bool:
        """The value of the main process."""
        if self.world_size == 1:
            return value
        message = torch.tensor([float(value)], device=self.device)
        distributed.broadcast(message, src=0)
        return bool(message.item())

    @contextmanager
    def propagate_errors(self) -> Iterator[None]:
        """Raise an :class:`InputError` of the main process in all processes."""
        errors: list[InputError | None] = [None]
        try:
            yield
        except InputError as error:
            if not self.is_main:
                raise
            errors[0] = error
        if self.world_size > 1:
            distributed.broadcast_object_list(errors, src=0, device=self.device)
        if errors[0] is not None:
            raise errors[0]

    def barrier(self) -> None:
        """Wait until all processes have called this."""
        if self.world_size > 1:
            distributed.barrier()


@contextmanager
def process_group(device: torch.device | str | None = None) -> Iterator[ProcessGroup]:
    """The process group that ``torchrun`` started, or a group of this process alone.

    A single process uses ``device``, by default a GPU if there is one. Under ``torchrun`` each process uses
    the GPU of its local rank, or the CPU if that is requested or there is no GPU.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdecimal() or int(size) < 1:
        raise InputError(
            "WORLD_SIZE", f"the variable, which torchrun sets, must be 1 or larger; got {size!r}"
        )
    world_size = int(size)
    own = device_of(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if world_size == 1:
        yield ProcessGroup(device=own)
        return
    if own.type == "cuda":
        own = device_of(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(own)
    distributed.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        yield ProcessGroup(distributed.get_rank(), world_size, own)
    finally:
        distributed.destroy_process_group()
