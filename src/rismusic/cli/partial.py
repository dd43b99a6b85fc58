"""Output of ``rismusic locate``, written block by block, which a later run can continue."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rismusic.estimation.table import COLUMNS, position_rows, scene_records
from rismusic.files import interrupts_held, writing
from rismusic.partial import PartialFile
from rismusic.text import csv_text
from rismusic.version import __version__

if TYPE_CHECKING:
    from rismusic.estimation.estimate import Estimate

# Bytes that are read at a time.
_PIECE = 2**20


class PartialOutput(PartialFile):
    """A table of positions under construction; see :class:`~rismusic.partial.PartialFile`.

    Args:
        path: the .csv or .json file.
        recording: the recording that is located.
        settings: the settings.
        name: name of the recording, for a .json file.
        resume: continue the output of an earlier run, if there is one.
        overwrite: replace an existing output, and drop that of an earlier run.
        columns: columns of a .csv file.

    Raises:
        InputError: see :class:`~rismusic.partial.PartialFile`; or the part has changed.
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
        super().__init__(
            path, "locate", recording, settings, resume=resume, overwrite=overwrite, columns=columns
        )
        self._head = {"version": __version__, "recording": name}
        with contextlib.ExitStack() as stack:
            stack.push(self)
            with writing(self.part):
                self._file = stack.enter_context(self.part.open("r+b"))
                self._continue()
            stack.pop_all()

    def append(self, estimate: Estimate) -> None:
        """Write the estimates of the next scenes and wait until they are on the disk.

        Raises:
            InputError: the disk is full or not writable; what was complete before is kept.
        """
        first = self.progress.scenes
        self._write(
            self._text(estimate, first),
            scenes=first + len(estimate),
            sources=self.progress.sources + int(estimate.n_sources.sum()),
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
        self.publish()

    def __enter__(self) -> PartialOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After a failed write, closing tries to write the rest again.
        with contextlib.suppress(OSError, AttributeError):  # or it could not be opened
            self._file.close()
        super().__exit__(kind, error, trace)

    def _continue(self) -> None:
        """Write the head of a new table; check what is complete of an earlier one, and drop the rest."""
        self._digest = hashlib.sha256()
        if not self.scenes:
            head = csv_text(self.progress.columns, [])
            if self.path.suffix == ".json":
                head = json.dumps(self._head, indent=1)[:-2] + ',\n "scenes": ['
            self._write(head)
            return
        while chunk := self._file.read(min(_PIECE, self.progress.bytes - self._file.tell())):
            self._digest.update(chunk)
        if self._digest.hexdigest() != self.progress.digest:
            raise self.changed()
        self._file.truncate(self.progress.bytes)

    def _write(self, text: str, **progress: int) -> None:
        content = text.encode()
        # What is on the disk is what the progress says, whenever Ctrl-C comes.
        with interrupts_held():
            with writing(self.part):
                self._file.write(content)
                self._file.flush()
                os.fsync(self._file.fileno())
            self._digest.update(content)
            self.keep(digest=self._digest.hexdigest(), bytes=self._file.tell(), **progress)

    def _text(self, estimate: Estimate, first: int) -> str:
        if self.path.suffix == ".csv":
            rows = position_rows(estimate, first_scene=first)
            return csv_text(self.progress.columns, map(asdict, rows), header=False)
        records = scene_records(estimate, first_scene=first)
        texts = [textwrap.indent(json.dumps(record, indent=1, allow_nan=False), "  ") for record in records]
        return (",\n" if first else "\n") + ",\n".join(texts)
