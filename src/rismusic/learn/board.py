"""The numbers of a training for TensorBoard, where it is installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rismusic.errors import InputError
from rismusic.learn.runfolder import writing


class Board:
    """Takes lines of the log and hands their numbers on.

    Args:
        folder: of the run; TensorBoard's files go to ``tensorboard`` in it.
        steps_per_epoch: of the training, by which numbers have their place.
        begin: steps done before; what an interrupted training has shown of later ones is hidden.

    Raises:
        InputError: TensorBoard is not installed, or the folder cannot be written to.
    """

    def __init__(self, folder: Path, steps_per_epoch: int, begin: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError(
                "tensorboard", "TensorBoard (pip install 'rismusic[tensorboard]')", "none"
            ) from None
        self._folder, self._steps = folder / "tensorboard", steps_per_epoch
        self._step = begin
        with writing(self._folder):
            # An event at the step of the purge is hidden too.
            self._writer = SummaryWriter(str(self._folder), purge_step=begin + 1 if begin else None)

    def __call__(self, record: dict[str, object]) -> None:
        """Numbers of a step are at the count of steps; those of an epoch where the epoch ends."""
        if record["kind"] == "step":
            self._step = int(str(record["epoch"])) * self._steps + int(str(record["step"])) + 1
        with writing(self._folder):
            self._write("/".join(str(record[key]) for key in ("kind", "tag") if key in record), record)
            if record["kind"] == "epoch":
                self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        with writing(self._folder):
            self._writer.close()

    def _write(self, name: str, value: object) -> None:
        if isinstance(value, Mapping):
            for part, held in value.items():
                if part not in ("kind", "epoch", "step", "tag", "findings"):
                    self._write(f"{name}/{part}", held)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            self._writer.add_scalar(name, value, self._step)
