"""The folder of a training: its settings, its log, its checkpoints, and who is at work in it.

========================= =============================================================================
``settings.toml``         the settings, as ``rismusic train`` takes them
``log.jsonl``             a JSON object a line: every step, every epoch, every finding
``state.json``            where the training stands, and the name of the file of tensors that belongs to it
``state-*.safetensors``   weights, their average, and the optimizer
``best.safetensors``      the averaged weights of the epoch with the best validation loss
``last.safetensors``      those of the last epoch
``curves.png``            losses and scores
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
from rismusic.nn.spec import TrainSpec
from rismusic.spec import dump_spec, read_spec
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
            InputError: there is no training in the folder, or one with settings that are not of this version.
        """
        if not (self.folder / SETTINGS).exists():
            found = "no settings.toml in it" if self.folder.is_dir() else "no such folder"
            raise InputError(str(self.folder), "the folder of a training", found)
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
        with writing(path):
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                who = os.read(file, 100).decode(errors="replace").strip() or "unknown"
                raise InputError(
                    str(self.folder), "a folder in which nobody is at work", f"process {who}"
                ) from None
            with writing(path):
                os.truncate(file, 0)
                os.write(file, f"{os.getpid()}\n".encode())
            yield
        finally:
            os.close(file)

    def log(self, records: Sequence[Mapping[str, object]]) -> None:
        """Append to the log.

        Raises:
            InputError: the disk is full or refuses.
        """
        text = "".join(json.dumps(_plain(record), allow_nan=False) + "\n" for record in records)
        path = self.folder / LOG
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(text)

    def log_size(self) -> int:
        """Bytes of the log."""
        path = self.folder / LOG
        return path.stat().st_size if path.exists() else 0

    def cut_log(self, size: int) -> None:
        """Take back what was logged after a checkpoint; it is done again.

        Raises:
            InputError: the file refuses.
        """
        path = self.folder / LOG
        if path.exists():
            with writing(path):
                os.truncate(path, min(size, path.stat().st_size))

    def records(self, kind: str) -> list[dict[str, object]]:
        """Lines of the log of one kind; one that a full disk or the end of the process cut short is left out.

        Raises:
            InputError: a line that is no record.
        """
        path = self.folder / LOG
        if not path.exists():
            return []
        found = []
        for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                line = json.loads(text)
                if line["kind"] == kind:
                    found.append(line)
            except (ValueError, TypeError, KeyError):
                raise InputError(
                    str(path),
                    "a record in each line (without the file the training goes on, and its curves are lost)",
                    f"something else in line {number}",
                ) from None
        return found


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say it in a sentence where a file cannot be written.

    Raises:
        InputError: the disk is full or refuses.
    """
    try:
        yield
    except OSError as error:
        raise InputError(str(path), "a place that can be written to", error.strerror or str(error)) from error


def load_train_spec(path: Path) -> TrainSpec:
    """The settings of a training from a TOML file; what it does not name keeps its default.

    Raises:
        InputError: the file is missing, is no TOML, or holds an unknown or impossible setting.
    """
    return read_spec(TrainSpec, path)


def _plain(value: object) -> object:
    """What JSON can hold: numbers that are not finite become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value
