"""The run folder of a training.

========================= =============================================================================
``settings.toml``         the settings, as ``rismusic train`` takes them
``log.jsonl``             one JSON object per line: every step, epoch and finding
``state.json``            progress of the training, and the name of the tensor file
``state-*.safetensors``   weights, their moving average, and the optimizer state
``best.safetensors``      averaged weights of the epoch with the lowest validation loss
``last.safetensors``      averaged weights of the last epoch
``curves.png``            losses and scores
``lock``                  number of the process that uses the folder
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
        folder: its path; the module docstring lists the files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self, spec: TrainSpec) -> None:
        """Create the folder and write the settings.

        Raises:
            InputError: the folder is not empty, or cannot be created.
        """
        if (self.folder / SETTINGS).exists():
            raise InputError(
                str(self.folder),
                "the folder already contains a training; choose another one, or continue it with --resume",
            )
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise InputError(str(self.folder), "the output must be a new or empty folder")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                str(self.folder), f"cannot create the folder: {error.strerror or error}"
            ) from error
        with replace_file(self.folder / SETTINGS, overwrite=True) as temporary:
            temporary.write_text(f"# rismusic {__version__}\n{dump_spec(spec)}", encoding="utf-8")

    def settings(self) -> TrainSpec:
        """The settings that the training was started with.

        Raises:
            InputError: there is no training in the folder, or its settings are not valid in this version.
        """
        if not (self.folder / SETTINGS).exists():
            reason = f"it has no {SETTINGS}" if self.folder.is_dir() else "it does not exist"
            raise InputError(str(self.folder), f"not the folder of a training: {reason}")
        return load_train_spec(self.folder / SETTINGS)

    @contextmanager
    def lock(self, is_main: bool = True) -> Iterator[None]:
        """Lock the folder against other processes. The operating system releases it when the process ends.

        Args:
            is_main: whether this is the process that writes. Other ranks of the same training take no lock.

        Raises:
            InputError: another process uses the folder.
        """
        if not is_main:
            yield
            return
        path = self.folder / LOCK
        with writing(path):
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                process = os.read(file, 100).decode(errors="replace").strip() or "unknown"
                raise InputError(
                    str(self.folder), f"the folder is in use by another training (process {process})"
                ) from None
            with writing(path):
                os.truncate(file, 0)
                os.write(file, f"{os.getpid()}\n".encode())
            yield
        finally:
            os.close(file)

    def log(self, records: Sequence[Mapping[str, object]]) -> None:
        """Append records to the run log.

        Raises:
            InputError: the disk is full or not writable.
        """
        text = "".join(json.dumps(_plain(record), allow_nan=False) + "\n" for record in records)
        path = self.folder / LOG
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(text)

    def log_size(self) -> int:
        """Size of the log in bytes."""
        path = self.folder / LOG
        return path.stat().st_size if path.exists() else 0

    def cut_log(self, size: int) -> None:
        """Remove the lines that were logged after the checkpoint, since those steps are repeated.

        Raises:
            InputError: the file is not writable.
        """
        path = self.folder / LOG
        if path.exists():
            with writing(path):
                os.truncate(path, min(size, path.stat().st_size))

    def records(self, kind: str) -> list[dict[str, object]]:
        """The records of one kind in the log. An incomplete last line is ignored.

        Raises:
            InputError: a line is not a record.
        """
        path = self.folder / LOG
        if not path.exists():
            return []
        records = []
        for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                line = json.loads(text)
                if line["kind"] == kind:
                    records.append(line)
            except (ValueError, TypeError, KeyError):
                raise InputError(
                    str(path),
                    f"line {number} is not a log record; without the file the training can be resumed, but "
                    "its learning curves are lost",
                ) from None
        return records


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert errors of writing a file to :class:`~rismusic.errors.InputError`.

    Raises:
        InputError: the disk is full or not writable.
    """
    try:
        yield
    except OSError as error:
        raise InputError(str(path), f"cannot write: {error.strerror or error}") from error


def load_train_spec(path: Path) -> TrainSpec:
    """Read the settings of a training from a TOML file; missing ones have their default.

    Raises:
        InputError: the file is missing or no TOML, or a setting is unknown or invalid.
    """
    return read_spec(TrainSpec, path)


def _plain(value: object) -> object:
    """The value as JSON can hold it: non-finite numbers become strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value
