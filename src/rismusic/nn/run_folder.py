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

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from rismusic.errors import InputError
from rismusic.files import check_not_link, is_vacant, locked, read_small, sync, write_text, writing
from rismusic.nn.spec import TrainSpec
from rismusic.spec import JsonNumber, Natural, Record, dump_spec, parse_record, read_spec
from rismusic.version import __version__

SETTINGS, LOG, STATE, LOCK, CURVES = "settings.toml", "log.jsonl", "state.json", "lock", "curves.png"
BEST, LAST = "best.safetensors", "last.safetensors"
# Largest size of a log that is read: millions of steps.
_LARGEST_LOG = 2**30
# Beginning of a log.
_BEGIN = b'{"kind": "'
_WITHOUT_LOG = "without the file the training can be resumed, but its learning curves are lost"


class _Step(Record):
    # The other numbers are the values of the losses.
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonNumber] = Field(init=False)

    kind: Literal["step"]
    epoch: Natural
    step: Natural
    taken: JsonNumber
    loss: JsonNumber = None


class _Finding(Record):
    name: str
    value: JsonNumber
    threshold: JsonNumber
    fine: bool
    meaning: str
    advice: str


class _Probe(Record):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonNumber] = Field(init=False)

    kind: Literal["probe"]
    tag: str
    epoch: Natural
    findings: list[_Finding]


class _Score(Record):
    """What the curves show of a score."""

    recall: JsonNumber = None
    count_right: JsonNumber = None


class _Scores(Record):
    """Scores of MUSIC on R_blend and on R_pred."""

    blend: _Score = _Score()
    predicted: _Score = _Score()


class _Validation(Record):
    loss: JsonNumber
    terms: dict[str, JsonNumber]
    scores: _Scores = _Scores()


class _Epoch(Record):
    model_config = ConfigDict(extra="allow")

    kind: Literal["epoch"]
    epoch: Natural
    training: dict[str, JsonNumber]
    validation: _Validation


Kind = Literal["step", "probe", "epoch"]


class _Line(Record):
    kind: Kind


_RECORDS: dict[Kind, type[Record]] = {"step": _Step, "probe": _Probe, "epoch": _Epoch}


class RunFolder:
    """A training on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def check_new(self) -> None:
        """Check that a training can be started in the folder."""
        if (self.folder / SETTINGS).exists():
            raise InputError(
                str(self.folder),
                "the folder already contains a training; choose another one, or continue it with --resume",
            )
        if not is_vacant(self.folder):
            raise InputError(str(self.folder), "the output must be a new or empty folder")

    def create(self, spec: TrainSpec) -> None:
        """Create the folder and write the settings."""
        self.check_new()
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / SETTINGS, f"# rismusic {__version__}\n{dump_spec(spec)}", overwrite=True)

    def settings(self) -> TrainSpec:
        """The settings that the training was started with."""
        if not (self.folder / SETTINGS).exists():
            reason = f"it has no {SETTINGS}" if self.folder.is_dir() else "it does not exist"
            raise InputError(str(self.folder), f"not the folder of a training: {reason}")
        return read_spec(TrainSpec, self.folder / SETTINGS)

    @contextmanager
    def lock(self, is_main: bool = True) -> Iterator[None]:
        """Lock the folder against other processes. The operating system releases it when the process ends.

        Only the main process takes the lock.
        """
        if not is_main:
            yield
            return
        with locked(self.folder / LOCK, str(self.folder), "the folder is in use by another training"):
            yield

    def log(self, records: Sequence[Mapping[str, object]]) -> None:
        """Append records to the run log."""
        text = "".join(json.dumps(json_value(record), allow_nan=False) + "\n" for record in records)
        path = self.folder / LOG
        check_not_link(path)
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(text)

    def sync_log(self) -> int:
        """Wait until the log is on the disk, so that no power cut shortens it; return its size in bytes."""
        path = self.folder / LOG
        if not path.exists():
            return 0
        with writing(path):
            sync(path)
        return path.stat().st_size

    def check_log(self, size: int) -> int:
        """Check, by reading alone, that the log can be continued from a checkpoint.

        Return the size of the log before the checkpoint: ``size``, or 0 if the file is missing.
        """
        path = self.folder / LOG
        check_not_link(path)
        if not path.exists():
            return 0
        self.records("epoch")
        content = read_small(path, limit=_LARGEST_LOG)
        if b"\n" not in content and not _BEGIN.startswith(content[: len(_BEGIN)]):
            raise InputError(str(path), f"line 1 is not a log record; {_WITHOUT_LOG}")
        if content.rfind(b"\n", 0, size) + 1 != size:
            raise InputError(str(path), f"has changed since the last checkpoint; {_WITHOUT_LOG}")
        return size

    def cut_log(self, size: int) -> None:
        """Remove the lines that were logged after the checkpoint, since those steps are repeated."""
        path = self.folder / LOG
        check_not_link(path)
        if path.exists() and path.stat().st_size > size:
            with writing(path):
                os.truncate(path, size)

    def records(self, kind: Kind) -> list[dict[str, Any]]:
        """The records of one kind in the log. An incomplete last line is ignored."""
        path = self.folder / LOG
        if not path.exists():
            return []
        records: list[dict[str, Any]] = []
        for number, text in enumerate(read_small(path, limit=_LARGEST_LOG).split(b"\n")[:-1], start=1):
            try:
                if parse_record(_Line, text, str(path), "a log record").kind == kind:
                    records.append(parse_record(_RECORDS[kind], text, str(path), "a log record").model_dump())
            except InputError as error:
                raise InputError(str(path), f"line {number} {error.problem}; {_WITHOUT_LOG}") from None
        return records


def json_value(value: object) -> object:
    """The value as JSON can hold it: non-finite numbers become strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): json_value(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(part) for part in value]
    return value
