"""``rismusic doctor``: why a training does not learn."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from rismusic.cli.command import Command
from rismusic.cli.output import note, progress_bar
from rismusic.errors import InputError
from rismusic.files import check_output, replace_file
from rismusic.nn.run_folder import RunFolder
from rismusic.nn.spec import TrainSpec
from rismusic.spec import Count

if TYPE_CHECKING:
    from rismusic.doctor.diagnose import Diagnosis


class Doctor(Command):
    """Find out why a training does not learn: rismusic doctor [CONFIG.toml | RUN] [--preset tiny].

    Exit code 0: nothing is wrong; 1: something is. With the folder of a run it reads the run's log and says
    what went wrong when. rismusic doctor faults plants known mistakes, one at a time, into a small healthy
    training and shows which finding catches each.
    """

    settings: Annotated[TrainSpec, arg(name="")] = TrainSpec()
    preset: Literal["tiny", "search", "final"] | None = None
    """Settings to begin with, as in rismusic train."""
    config: Annotated[Path | None, arg(metavar="FILE")] = None
    """TOML file with settings; the flag's name can be left out."""
    folder: Annotated[Path | None, arg(name="run", metavar="RUN")] = None
    """Read the log of this run in place of looking at settings; the flag's name can be left out."""
    overfit: bool = False
    """See too whether 512 scenes can be learned by heart (minutes)."""
    json_file: Annotated[Path | None, arg(name="json", metavar="FILE")] = None
    """Write all findings as JSON."""
    report: Annotated[Path | None, arg(metavar="FILE")] = None
    """Write all findings as an HTML page, beside the curves of the run."""
    overwrite: bool = False
    """Replace these files if they exist."""
    faults: bool = False
    """Plant known mistakes and show what catches them; can be typed as the word 'faults'."""
    only: tuple[str, ...] = ()
    """Of the mistakes, these alone, by number or name."""
    seeds: Count = 1
    """Seeds of the healthy training beside the mistakes; none may raise a finding."""
    csv: Annotated[Path | None, arg(metavar="FILE")] = None
    """Write the table of mistakes and findings as CSV."""

    def run(self) -> int:
        """Look, and say what is wrong."""
        for path, endings in ((self.json_file, (".json",)), (self.csv, (".csv",))):
            if path is not None:
                check_output(path, overwrite=self.overwrite, endings=endings)
        if self.faults:
            return self._faults()
        if self.folder is not None:
            if self.settings != TrainSpec() or self.overfit:
                raise InputError("run", "no settings beside it (they are in the folder)", "some")
            # Before torch is waited for.
            RunFolder(self.folder).settings()
        from rismusic.doctor.report import check_report

        if self.report is not None:
            check_report(self.report, overwrite=self.overwrite)
        diagnosis = self._diagnose()
        self._print(diagnosis)
        return 0 if diagnosis.healthy else 1

    def _diagnose(self) -> Diagnosis:
        from rismusic.doctor.after import diagnose_run
        from rismusic.doctor.diagnose import CHECKS, diagnose

        if self.folder is not None:
            return diagnose_run(self.folder, say=_say)
        with progress_bar() as bar:
            task = bar.add_task("checks", total=len(CHECKS) + self.overfit)

            def begun(tag: str) -> None:
                bar.update(task, description=tag.lower())

            def say(line: str) -> None:
                bar.advance(task, 0 if "] !" in line else 1)
                _say(line)

            return diagnose(self.settings, overfit=self.overfit, say=say, begun=begun)

    def _print(self, diagnosis: Diagnosis) -> None:
        from rich.console import Console

        from rismusic.doctor.report import findings_table, write_diagnosis

        if not diagnosis.healthy:
            Console().print(findings_table(diagnosis))
        print(diagnosis.verdict)
        if self.json_file is not None:
            text = json.dumps(diagnosis.record(), indent=1, allow_nan=False) + "\n"
            with replace_file(self.json_file, overwrite=self.overwrite) as temporary:
                temporary.write_text(text, encoding="utf-8")
        if self.report is not None:
            settings = self.settings if self.folder is None else RunFolder(self.folder).settings()
            write_diagnosis(
                self.report,
                diagnosis,
                settings=settings,
                run=self.folder,
                command=" ".join(("rismusic", *sys.argv[1:])),
                overwrite=self.overwrite,
            )
            note(f"report written to {self.report}")

    def _faults(self) -> int:
        from rismusic.doctor.faults.table import try_faults

        with progress_bar() as bar:
            task = bar.add_task("faults", total=None)
            tried = try_faults(
                only=self.only,
                seeds=self.seeds,
                say=_say,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        if self.csv is not None:
            tried.write(self.csv, overwrite=self.overwrite)
        print(tried.verdict)
        return 0 if tried.passed else 1


def with_target(args: list[str]) -> list[str]:
    """What is typed right behind ``doctor``: the word ``faults``, the folder of a run, or a configuration.

    Args:
        args: the command and its flags; those of other commands are left alone.
    """
    if args[:1] != ["doctor"] or len(args) < 2 or args[1].startswith("-"):
        return args
    if args[1] == "faults":
        return ["doctor", "--faults", *args[2:]]
    return ["doctor", "--run" if Path(args[1]).is_dir() else "--config", *args[1:]]


def _say(line: str) -> None:
    print(line, flush=True)
