"""The folder of a training: its settings, its log, its checkpoints, and who is at work in it.

========================= =============================================================================
``settings.toml``         the settings, as ``rismusic train`` takes them
``log.jsonl``             a JSON object a line: every step, every epoch, every finding
``state.json``            where the training stands, and the name of the file of tensors that belongs to it
``state-*.safetensors``   weights, their average, and the optimizer
``best.safetensors``      the averaged weights of the epoch with the best validation loss
``last.safetensors``      those of the last epoch
``curves.png``            losses, learning rates and scores
``lock``                  the process that is at work
========================= =============================================================================
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rismusic.errors import InputError
from rismusic.files import replace_file
from rismusic.learn.spec import TrainSpec
from rismusic.spec import dump_spec, read_toml
from rismusic.version import __version__

SETTINGS, LOG, STATE, LOCK, CURVES = "settings.toml", "log.jsonl", "state.json", "lock", "curves.png"
BEST, LAST = "best.safetensors", "last.safetensors"


class RunFolder:
    """A training on disk.

    Args:
        folder: see the head of this module.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self, spec: TrainSpec) -> None:
        """Make the folder and write the settings.

        Raises:
            InputError: there is something in the folder already, or it cannot be made.
        """
        if (self.folder / SETTINGS).exists():
            raise InputError(
                str(self.folder), "a new folder (or resume, --resume, to go on)", "a training in it"
            )
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise InputError(str(self.folder), "a new or empty folder", "something else in its place")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                str(self.folder), "a folder that can be made", error.strerror or str(error)
            ) from error
        with replace_file(self.folder / SETTINGS, overwrite=True) as temporary:
            temporary.write_text(f"# rismusic {__version__}\n{dump_spec(spec)}", encoding="utf-8")

    def settings(self) -> TrainSpec:
        """The settings that the training was begun with.

        Raises:
            InputError: there are none, or not of this version.
        """
        return load_train_spec(self.folder / SETTINGS)

    @contextmanager
    def held(self, first: bool = True) -> Iterator[None]:
        """Keep others out; the lock goes with the process, however it ends.

        Args:
            first: whether this is the process that writes; the others of the same training hold nothing.

        Raises:
            InputError: another process is at work in the folder.
        """
        if not first:
            yield
            return
        path = self.folder / LOCK
        try:
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise InputError(str(path), "a file that can be written", error.strerror or str(error)) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                who = file.read().strip() or "unknown"
                raise InputError(
                    str(self.folder), "a folder in which nobody is at work", f"process {who}"
                ) from None
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    def log(self, records: Sequence[Mapping[str, object]]) -> None:
        """Append to the log.

        Raises:
            InputError: the disk is full or refuses.
        """
        text = "".join(json.dumps(_plain(record), allow_nan=False) + "\n" for record in records)
        path = self.folder / LOG
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise InputError(
                str(path), "a place that can be written to", error.strerror or str(error)
            ) from error

    def log_size(self) -> int:
        """Bytes of the log."""
        path = self.folder / LOG
        return path.stat().st_size if path.exists() else 0

    def cut_log(self, size: int) -> None:
        """Take back what was logged after a checkpoint; it is done again."""
        path = self.folder / LOG
        if path.exists():
            os.truncate(path, min(size, path.stat().st_size))

    def records(self, kind: str) -> list[dict[str, object]]:
        """Lines of the log of one kind."""
        path = self.folder / LOG
        if not path.exists():
            return []
        lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        return [line for line in lines if line["kind"] == kind]


def load_train_spec(path: Path) -> TrainSpec:
    """The settings of a training from a TOML file; what it does not name keeps its default.

    Raises:
        InputError: the file is missing, is no TOML, or holds an unknown or impossible setting.
    """
    return TrainSpec(**read_toml(path))


def _plain(value: object) -> object:
    """What JSON can hold: numbers that are not finite become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value
