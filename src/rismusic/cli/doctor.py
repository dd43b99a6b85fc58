"""``rismusic doctor``: find out why a training does not learn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from rismusic.cli.command import Command, Option, SafeConsole, check_extras, note, progress_bar, say
from rismusic.cli.train import preset_settings
from rismusic.errors import InputError
from rismusic.files import check_output, write_text
from rismusic.nn.run_folder import RunFolder
from rismusic.nn.spec import TrainSpec
from rismusic.text import command_line

if TYPE_CHECKING:
    from rismusic.doctor.report import Diagnosis


class Doctor(Command):
    """Find out why a training does not learn. With settings, it checks a training before it starts; with
    the folder of a run, it reads the log of the run. Exit code 0: no problem found; 1: problem found.
    """  # noqa: D205

    FLAT: ClassVar[str] = "settings"
    POSITIONAL: ClassVar[str] = "config"

    settings: TrainSpec = TrainSpec()
    preset: Literal["tiny", "search", "final"] | None = None
    """Settings to start from, as in rismusic train."""
    config: Annotated[Path | None, Option("CONFIG.toml|RUN")] = None
    """TOML file with the settings of a training. --config can be left out."""
    folder: Annotated[Path | None, Option("RUN", name="run")] = None
    """Read the log of this run instead of checking settings. --run can be left out."""
    json_file: Annotated[Path | None, Option("FILE", name="json")] = None
    """Write all findings as JSON."""
    report: Annotated[Path | None, Option("FILE")] = None
    """Write all findings as an HTML page, beside the curves of the run."""
    overwrite: bool = False
    """Replace output files that exist."""

    @classmethod
    def positional_field(cls, value: str) -> str:
        """A folder is a run; anything else is a file of settings."""
        return "folder" if Path(value).is_dir() else "config"

    @classmethod
    def base(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Settings of the preset."""
        return preset_settings(given)

    def run(self) -> int:
        """Run the checks and print the findings."""
        if self.json_file is not None:
            check_output(self.json_file, overwrite=self.overwrite, endings=(".json",))
        if self.folder is not None:
            if self.settings != TrainSpec():
                raise InputError(
                    "--run",
                    "cannot be combined with settings; the run's folder has its settings",
                )
            # Checked before torch is imported, which takes seconds.
            RunFolder(self.folder).settings()
        if self.report is not None:
            check_extras("report", "jinja2", "matplotlib")
            from rismusic.report.page import check_report

            check_report(self.report, overwrite=self.overwrite)
        diagnosis = self._diagnose()
        self._print(diagnosis)
        return 0 if diagnosis.healthy else 1

    def _diagnose(self) -> Diagnosis:
        from rismusic.doctor.diagnose import CHECKS, diagnose
        from rismusic.doctor.run_log import diagnose_run

        if self.folder is not None:
            return diagnose_run(self.folder, say=say)
        with progress_bar() as bar:
            task = bar.add_task("checks", total=len(CHECKS))

            def begun(tag: str) -> None:
                bar.update(task, description=tag.lower())

            def told(line: str) -> None:
                bar.advance(task, 0 if "] !" in line else 1)
                say(line)

            return diagnose(self.settings, say=told, begun=begun)

    def _print(self, diagnosis: Diagnosis) -> None:
        from rismusic.doctor.report import findings_table, write_diagnosis

        if not diagnosis.healthy:
            SafeConsole().print(findings_table(diagnosis))
        say(diagnosis.verdict)
        if self.json_file is not None:
            text = json.dumps(diagnosis.record(), indent=1, allow_nan=False) + "\n"
            write_text(self.json_file, text, overwrite=self.overwrite)
        if self.report is not None:
            settings = self.settings if self.folder is None else RunFolder(self.folder).settings()
            write_diagnosis(
                self.report,
                diagnosis,
                settings=settings,
                run=self.folder,
                command=command_line(),
                overwrite=self.overwrite,
            )
            note(f"report written to {self.report}")
