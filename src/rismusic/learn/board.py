"""The numbers of a training for TensorBoard, where it is installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rismusic.errors import InputError


class Board:
    """Takes lines of the log and hands their numbers on.

    Args:
        folder: of the run; TensorBoard's files go to ``tensorboard`` in it.

    Raises:
        InputError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError(
                "tensorboard", "TensorBoard (pip install 'rismusic[tensorboard]')", "none"
            ) from None
        self._writer = SummaryWriter(str(folder / "tensorboard"))
        self._step = 0

    def __call__(self, record: dict[str, object]) -> None:
        """Numbers of a step are at the count of steps; those of an epoch where the epoch ends."""
        self._step += record["kind"] == "step"
        self._write(str(record["kind"]), record)
        if record["kind"] == "epoch":
            self._writer.flush()

    def _write(self, name: str, value: object) -> None:
        if isinstance(value, Mapping):
            for part, held in value.items():
                if part not in ("kind", "epoch", "step", "tag", "findings"):
                    self._write(f"{name}/{part}", held)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            self._writer.add_scalar(name, value, self._step)
