"""Output of ``rismusic locate``, written block by block, which a later run can continue.

The rows of ``NAME`` are collected in ``NAME.part``; ``NAME.part.json`` says how many scenes and bytes of it
are complete. Both are on the disk before the next block starts. ``NAME.part`` is renamed at the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from rismusic.errors import InputError
from rismusic.estimation.table import COLUMNS, position_rows, scene_records
from rismusic.files import check_output, kind_of, locked, publish, read_small, write_text, writing
from rismusic.records import Natural, Record, parse_record
from rismusic.text import csv_text
from rismusic.version import __version__

if TYPE_CHECKING:
    from rismusic.estimation.estimate import Estimate

# Bytes at the beginning and at the end of a recording that identify it, with its size; read at a time.
_MARK = 2**20


class Progress(Record):
    """How much of an output is complete.

    Args:
        format: marks the file.
        version: version of rismusic.
        recording: identifies the recording.
        settings: the settings.
        columns: columns of the table.
        scenes: number of complete scenes.
        sources: number of sources in them.
        bytes: size of the complete part.
        digest: its SHA-256.
    """

    format: Literal["rismusic-locate/1"] = "rismusic-locate/1"
    version: str
    recording: str
    settings: dict[str, object]
    columns: tuple[str, ...] = ()
    scenes: Natural = 0
    sources: Natural = 0
    bytes: Natural = 0
    digest: str = ""


class PartialOutput:
    """A table of positions under construction; a context manager.

    Args:
        path: the .csv or .json file.
        recording: the recording that is located.
        settings: the settings.
        name: name of the recording, for a .json file.
        resume: continue the output of an earlier run, if there is one.
        overwrite: replace an existing output, and drop that of an earlier run.
        columns: columns of a .csv file.

    Raises:
        InputError: the output cannot be written, another process writes it, an earlier run left a part of it
            and neither ``resume`` nor ``overwrite`` is given, or that part belongs to other settings.
    """

    def __init__(
        self,
        path: Path,
        recording: Path,
        settings: Mapping[str, object],
        *,
        name: str,
        resume: bool,
        overwrite: bool,
        columns: Sequence[str] = COLUMNS,
    ) -> None:
        check_output(path, overwrite=overwrite)
        self.path, self._overwrite, self._columns = path, overwrite, columns
        stem = path.name
        if len(os.fsencode(stem)) > 240:  # so that the names of the parts are not too long
            stem = hashlib.sha256(os.fsencode(stem)).hexdigest()[:32]
        self.part = path.with_name(f"{stem}.part")
        self._state, self._lock = (path.with_name(f"{stem}.part.{end}") for end in ("json", "lock"))
        self.progress = Progress(
            version=__version__,
            recording=fingerprint(recording),
            settings=json.loads(json.dumps(dict(settings))),
            columns=tuple(columns),
        )
        self._head = {"version": __version__, "recording": name}
        self._exit = ExitStack()
        with ExitStack() as stack:
            stack.enter_context(locked(self._lock, str(path), "another process is writing this file"))
            # While the lock is held, so that no other process can have begun.
            stack.callback(self._lock.unlink, missing_ok=True)
            self._begin(resume=resume)
            with writing(self.part):
                self._file = stack.enter_context(self.part.open("r+b"))
                self._digest = hashlib.sha256()
                while chunk := self._file.read(min(_MARK, self.progress.bytes - self._file.tell())):
                    self._digest.update(chunk)
            if self._digest.hexdigest() != self.progress.digest:
                raise InputError(
                    str(self.part), "has changed since it was written; start again with --overwrite"
                )
            with writing(self.part):
                self._file.truncate(self.progress.bytes)
            self._exit = stack.pop_all()

    @property
    def scenes(self) -> int:
        """Number of complete scenes."""
        return self.progress.scenes

    def append(self, estimate: Estimate) -> None:
        """Write the estimates of the next scenes and wait until they are on the disk.

        Raises:
            InputError: the disk is full or not writable; what was complete before is kept.
        """
        first = self.progress.scenes
        content = self._text(estimate, first).encode()
        with writing(self.part):
            self._file.write(content)
            self._file.flush()
            os.fsync(self._file.fileno())
        self._digest.update(content)
        self._keep(
            digest=self._digest.hexdigest(),
            scenes=first + len(estimate),
            sources=self.progress.sources + int(estimate.n_sources.sum()),
            bytes=self._file.tell(),
        )

    def finish(self) -> None:
        """Complete the file and give it its name.

        Raises:
            InputError: it cannot be written.
        """
        with writing(self.path):
            if self.path.suffix == ".json":
                self._file.write(b"\n ]\n}\n")
            self._file.close()
            publish(self.part, self.path, overwrite=self._overwrite)
            self._state.unlink(missing_ok=True)

    def __enter__(self) -> PartialOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After a failed write, closing tries to write the rest again.
        with contextlib.suppress(OSError):
            self._file.close()
        if not self.progress.scenes:
            self._drop()
        self._exit.close()

    def _begin(self, *, resume: bool) -> None:
        """Start the part, or continue that of an earlier run."""
        for path in (self.part, self._state):
            if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
                raise InputError(str(path), f"is {kind_of(path.lstat().st_mode)}; remove it")
        earlier = self._earlier()
        if earlier is not None and earlier.scenes and not (resume or self._overwrite):
            raise InputError(
                str(self.path),
                f"an earlier run left {earlier.scenes:,} scenes in {self.part.name}; continue it with "
                "--resume, or start again with --overwrite",
            )
        if resume and earlier is not None:
            self._check_same(earlier)
            self.progress = earlier
            return
        self._drop()
        with writing(self.part):
            head = csv_text(self._columns, [])
            if self.path.suffix == ".json":
                head = json.dumps(self._head, indent=1)[:-2] + ',\n "scenes": ['
            with self.part.open("xb") as file:
                if self.path.exists():
                    self.part.chmod(stat.S_IMODE(self.path.stat().st_mode))
                file.write(head.encode())
        self._keep(bytes=len(head.encode()), digest=hashlib.sha256(head.encode()).hexdigest())

    def _earlier(self) -> Progress | None:
        if not self._state.exists():
            if self.part.exists():
                raise InputError(
                    str(self.part), "was not written by rismusic locate, or its .json is missing; remove it"
                )
            return None
        return parse_record(
            Progress, read_small(self._state), str(self._state), "the progress of rismusic locate"
        )

    def _check_same(self, earlier: Progress) -> None:
        for name, what in (
            ("version", "another version"),
            ("recording", "another recording"),
            ("columns", "other columns"),
            ("settings", "other settings"),
        ):
            if getattr(earlier, name) != getattr(self.progress, name):
                raise InputError(
                    str(self.part),
                    f"was written with {what}; use the same, or start again with --overwrite",
                )
        if not self.part.exists() or self.part.stat().st_size < earlier.bytes:
            raise InputError(str(self.part), "is shorter than it was; start again with --overwrite")

    def _text(self, estimate: Estimate, first: int) -> str:
        if self.path.suffix == ".csv":
            rows = position_rows(estimate, first_scene=first)
            return csv_text(self._columns, map(asdict, rows), header=False)
        records = scene_records(estimate, first_scene=first)
        texts = [textwrap.indent(json.dumps(record, indent=1, allow_nan=False), "  ") for record in records]
        return (",\n" if first else "\n") + ",\n".join(texts)

    def _keep(self, **changed: int | str) -> None:
        self.progress = self.progress.model_copy(update=changed)
        write_text(self._state, self.progress.model_dump_json(indent=1) + "\n", overwrite=True)

    def _drop(self) -> None:
        self.part.unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)


def fingerprint(path: Path) -> str:
    """Size and SHA-256 of the beginning and the end of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(_MARK))
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _MARK))
        digest.update(file.read(_MARK))
    return f"{size} {digest.hexdigest()}"
