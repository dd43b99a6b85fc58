"""Outputs that are written block by block, and that a later run can continue.

The blocks of ``NAME`` are collected in ``NAME.part``; ``NAME.run.json`` says how much of it is complete.
Both are on the disk before the next block starts. ``NAME.part`` is renamed at the end. ``NAME.run.json``
stays, so that a later run knows what the output is of.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal

from rismusic.errors import InputError
from rismusic.files import check_output, kind_of, locked, publish, read_small, write_text, writing
from rismusic.spec import Natural, Record, flat_settings, parse_record
from rismusic.version import __version__

# Bytes at the beginning and at the end of a file that identify it, with its size.
_MARK = 2**20
_ENDS = (".part", ".run.json", ".part.lock")


class Progress(Record):
    """How much of an output is complete."""

    format: Literal["rismusic-locate/1", "rismusic-simulate/1"]
    version: str  # of rismusic
    recording: str  # identifies the recording that is read, if any
    settings: dict[str, object]
    columns: tuple[str, ...] = ()  # of a table
    scenes: Natural = 0  # number of complete scenes
    sources: Natural = 0  # number of sources in them
    bytes: Natural = 0  # size of the complete part of a table
    digest: str = ""  # SHA-256 of what is complete
    output: str = ""  # identifies the output, once it has its name


def part_files(path: Path) -> list[Path]:
    """The files beside an output under construction: the part, its progress, and a lock; none of a folder."""
    if not path.name:
        return []
    stem = path.name
    if len(os.fsencode(stem)) > 240:  # so that the names of the parts are not too long
        stem = hashlib.sha256(os.fsencode(stem)).hexdigest()[:32]
    return [path.parent / f"{stem}{end}" for end in _ENDS]


class PartialFile:
    """An output under construction; a context manager.

    A part without a scene is removed at the end, others stay. ``resume`` continues the output of an earlier
    run, if there is one, or finds that it is complete; ``overwrite`` drops it.

    Attributes:
        part: the file under construction.
        progress: how much of it is complete.
        is_complete: whether an earlier run has completed the output, so that nothing is left to do.

    Raises:
        InputError: the output cannot be written, another process writes it, an earlier run left a part of it
            and neither ``resume`` nor ``overwrite`` is given, or that part, or the complete output that is
            resumed, belongs to other settings.
    """

    def __init__(
        self,
        path: Path,
        command: Literal["locate", "simulate"],
        recording: Path | None,
        settings: Mapping[str, object],
        *,
        resume: bool,
        overwrite: bool,
        columns: Sequence[str] = (),
    ) -> None:
        self.is_complete = resume and not overwrite and path.is_file() and not path.is_symlink()
        if not self.is_complete:
            check_output(path, overwrite=overwrite)
        self.path, self._command, self._overwrite = path, command, overwrite
        self.part, self._state, self._lock = part_files(path)
        self.progress = Progress(
            format="rismusic-locate/1" if command == "locate" else "rismusic-simulate/1",
            version=__version__,
            recording="" if recording is None else fingerprint(recording),
            settings=json.loads(json.dumps(dict(settings))),
            columns=tuple(columns),
        )
        with ExitStack() as stack:
            stack.enter_context(locked(self._lock, str(path), "another process is writing this file"))
            # While the lock is held, so that no other process can have begun.
            stack.callback(self._lock.unlink, missing_ok=True)
            if self.is_complete:
                self._check_complete()
            else:
                self._begin(resume=resume)
            stack.callback(lambda: None if self.scenes else self._drop())
            self._exit = stack.pop_all()

    @property
    def scenes(self) -> int:
        """Number of complete scenes."""
        return self.progress.scenes

    def keep(self, **changed: int | str) -> None:
        """Store how much is complete. The part must be on the disk before."""
        progress = self.progress.model_copy(update=changed)
        write_text(self._state, progress.model_dump_json(indent=1) + "\n", overwrite=True)
        self.progress = progress

    def publish(self) -> None:
        """Give the complete file its name."""
        with writing(self.path):
            self.keep(output=fingerprint(self.part))
            publish(self.part, self.path, overwrite=self._overwrite)

    def changed(self) -> InputError:
        """The error of a part that is not what was written."""
        return InputError(str(self.part), "has changed since it was written; start again with --overwrite")

    def __enter__(self) -> PartialFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    def _begin(self, *, resume: bool) -> None:
        """Start the part, or continue that of an earlier run."""
        earlier = self._earlier()
        if earlier is not None and not (resume or self._overwrite):
            raise InputError(
                str(self.path),
                f"an earlier run left {earlier.scenes:,} scenes in {self.part.name}; continue it with "
                "--resume, or start again with --overwrite",
            )
        if resume and earlier is not None:
            self._check_same(earlier, self.part)
            self.progress = earlier
            return
        self._drop()
        # First the progress, so that a part without one is never ours.
        self.keep()
        with writing(self.part), self.part.open("xb"):
            if self.path.exists():
                self.part.chmod(stat.S_IMODE(self.path.stat().st_mode))

    def _check_complete(self) -> None:
        """Check that the output is what an earlier run with the same settings has completed."""
        earlier = self._record()
        if earlier is None or earlier.output != fingerprint(self.path):
            raise InputError(
                str(self.path),
                "exists and is not known to be of this recording and these settings; replace it with "
                "--overwrite, or give another name",
            )
        self._check_same(earlier, self.path)
        self.progress = earlier
        if self._is_output():
            self.part.unlink()

    def _is_output(self) -> bool:
        """Whether a process was killed while the output got its name: it leaves a part that is the output."""
        return self.part.exists() and self.path.exists() and self.part.samefile(self.path)

    def _record(self) -> Progress | None:
        """The record of an earlier run."""
        for path in (self.part, self._state):
            if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
                raise InputError(str(path), f"is {kind_of(path.lstat().st_mode)}; remove it")
        if not self._state.exists():
            return None
        name, expected = str(self._state), f"the progress of rismusic {self._command}"
        try:
            return parse_record(Progress, read_small(self._state), name, expected)
        except InputError as error:
            raise InputError(name, f"{error.problem}; remove it") from None

    def _earlier(self) -> Progress | None:
        """What an earlier run has left to be continued; none if that is nothing."""
        earlier = self._record()
        if earlier is None:
            if self.part.exists():
                raise InputError(
                    str(self.part),
                    f"was not written by rismusic {self._command}, or its .run.json is missing; remove it",
                )
            return None
        return earlier if earlier.scenes and self.part.exists() and not self._is_output() else None

    def _check_same(self, earlier: Progress, path: Path) -> None:
        for name, what in (
            ("format", "another command"),
            ("version", "another version"),
            ("recording", "another recording"),
            ("columns", "other columns"),
            ("settings", "other settings"),
        ):
            if getattr(earlier, name) != getattr(self.progress, name):
                if name == "settings":
                    before, now = (flat_settings(one.settings) for one in (earlier, self.progress))
                    changed = next(one for one in {**before, **now} if before.get(one) != now.get(one))
                    what += f" ({changed}: {before.get(changed)}, now {now.get(changed)})"
                raise InputError(
                    str(path), f"was written with {what}; use the same, or start again with --overwrite"
                )

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
