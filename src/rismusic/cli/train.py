"""``rismusic train``, ``doctor`` and ``tune``: train a network, diagnose a training, search settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from rich.table import Table

from rismusic.cli.command import Command, Option, SafeConsole, check_extras, note, progress_bar, say
from rismusic.errors import InputError
from rismusic.files import write_text
from rismusic.nn.run_folder import BEST, LOG, SETTINGS, RunFolder
from rismusic.nn.spec import TrainSpec
from rismusic.spec import Count
from rismusic.text import command_line, counted, json_text, plain
from rismusic.tuning.spec import TuneSpec

if TYPE_CHECKING:
    from rismusic.doctor.report import Diagnosis
    from rismusic.tuning.results import TuneResult


BESIDE_RESUME = ("resume", "device", "tensorboard")
PRESETS = {"tiny": TrainSpec.tiny, "search": TrainSpec.search, "final": TrainSpec.final}


class _OfTraining(Command):
    """A command with the settings of a training, which may start from a preset."""

    FLAT: ClassVar[str] = "settings"
    POSITIONAL: ClassVar[str] = "config"

    @classmethod
    def base(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Settings of the preset that is named, if any."""
        preset = PRESETS.get(str(given.get("preset")))
        return {} if preset is None else preset().model_dump(exclude_unset=True)


class Train(_OfTraining):
    """Train a network. Options win over CONFIG.toml, which wins over the preset. Ctrl-C stops after a
    checkpoint; --resume RUN continues. torchrun -m rismusic train ... trains on several processes.
    """  # noqa: D205

    settings: TrainSpec = TrainSpec()
    preset: Literal["tiny", "search", "final"] | None = None
    """Settings to start from: for a first look, for a search of settings, or for final weights."""
    config: Annotated[Path | None, Option("CONFIG.toml")] = None
    """TOML file with these settings, such as the settings.toml of a run. --config can be left out."""
    epochs: Count | None = None
    """Number of epochs; the same as --schedule.epochs."""
    out: Annotated[Path, Option("RUN", short="-o")] = Path("run")
    """Folder for settings, log, checkpoints, curves and weights."""
    resume: Annotated[Path | None, Option("RUN")] = None
    """Resume the training in this folder, with its own settings."""
    start: Annotated[Path | None, Option("FILE")] = None
    """Weights to start from (.safetensors), of a network of the same sizes and panel."""
    device: str = "auto"
    """Device to train on, such as cpu or cuda; auto: a GPU if there is one."""
    tensorboard: bool = False
    """Write the log for TensorBoard, too."""

    @classmethod
    def check_options(cls, typed: Mapping[str, Any]) -> None:
        """Refuse options that contradict each other."""
        others = [name for name in typed if name not in BESIDE_RESUME]
        if "resume" in typed and others:
            flag = "--" + others[0].replace("_", "-")
            raise InputError(
                "--resume",
                f"cannot be combined with other settings (found {flag}); to train further with others, start "
                "from its weights: rismusic train RUN/settings.toml --start RUN/last.safetensors",
            )
        if {"epochs", "schedule.epochs"} <= typed.keys():
            raise InputError("--epochs", "give either --epochs or --schedule.epochs, not both")

    def run(self) -> int:
        """Train, and print where the result is."""
        spec = self.settings
        if self.epochs is not None:
            spec = spec.replace(schedule=spec.schedule.replace(epochs=self.epochs))
        if self.resume is not None:
            # Checked before torch is imported, which takes seconds.
            RunFolder(self.resume).settings()
        if self.tensorboard:
            check_extras("tensorboard", "tensorboard")
        folder = self.resume or self.out
        from rismusic.nn.train import train

        try:
            with progress_bar() as bar:
                task = bar.add_task("scenes", total=None)
                trained = train(
                    None if self.resume else spec,
                    out=folder,
                    resume=self.resume is not None,
                    start=self.start,
                    device=None if self.device == "auto" else self.device,
                    tensorboard=self.tensorboard,
                    progress=lambda done, total: bar.update(task, completed=done, total=total),
                    log=lambda line: bar.console.print(plain(line), soft_wrap=True),
                )
        except KeyboardInterrupt:
            if (folder / SETTINGS).exists():
                note(f"the last checkpoint is in {folder}; continue with rismusic train --resume {folder}")
            raise
        note(f"{counted(len(trained.epochs), 'epoch')} in {folder / LOG}; weights in {folder / BEST}")
        return 0


class Doctor(_OfTraining):
    """Find out why a training does not learn. With settings, it checks a training before it starts; with
    the folder of a run, it reads the log of the run. Exit code 0: no problem found; 1: problem found. Loops
    and networks of your own are checked in Python, by rismusic.watch and rismusic.diagnose_module.
    """  # noqa: D205

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
    def check_options(cls, typed: Mapping[str, Any]) -> None:
        """Refuse scripts."""
        script = Path(str(typed.get("config", "")))
        if script.suffix == ".py":
            raise InputError(
                str(script),
                "is a Python script; to check its training loop, run the loop there within "
                "`with rismusic.watch(model, optimizer):`",
            )

    def run(self) -> int:
        """Run the checks and print the findings."""
        if self.folder is not None:
            if self.settings != TrainSpec():
                raise InputError(
                    "--run", "cannot be combined with settings; the run's folder has its settings"
                )
            # Checked before torch is imported, which takes seconds.
            RunFolder(self.folder).settings()
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
            write_text(self.json_file, json_text(diagnosis.record()), overwrite=self.overwrite)
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


class Tune(Command):
    """Search the settings of training and inference. Short trials are pruned; the best are trained longer
    from several seeds and compared with the default. Machines with the same --storage share one study.
    """  # noqa: D205

    FLAT: ClassVar[str] = "settings"
    CONFIG_TABLES: ClassVar[Mapping[str, str]] = {"config": "", "training_config": "training"}

    settings: TuneSpec = TuneSpec()
    config: Annotated[Path | None, Option("FILE")] = None
    """TOML file with these settings; options on the command line win."""
    training_config: Annotated[Path | None, Option("FILE")] = None
    """TOML file with the settings of the trainings, such as the settings.toml of a run."""
    trials: Count | None = None
    """Number of trials (default: 50, or as many as before with --resume)."""
    out: Annotated[Path, Option("FOLDER", short="-o")] = Path("tune")
    """Folder for trainings and results."""
    storage: Annotated[str | None, Option("URL")] = None
    """Database server (postgresql://user@host/name) or SQLite file (default: study.db in --out)."""
    study: str = "tune"
    """Name of the study in the storage."""
    resume: bool = False
    """Resume a study with its own settings; a larger --trials extends it."""
    device: str = "auto"
    """Device to train on, such as cpu or cuda; auto: a GPU if there is one."""
    heartbeat_s: Count = 60
    """Seconds between heartbeats in a database. A trial without one for twice as long is run again."""

    def run(self) -> int:
        """Search, and print the results."""
        spec = self.settings
        if self.resume and spec != TuneSpec():
            raise InputError(
                "--resume",
                "cannot be combined with settings other than --trials; those of the study are used",
            )
        check_extras("tune", "optuna", "sqlalchemy")
        from rismusic.tuning.storage import DATABASE
        from rismusic.tuning.study import tune

        try:
            with progress_bar() as bar:
                task = bar.add_task("trials", total=None)
                tuned = tune(
                    None if self.resume else spec,
                    out=self.out,
                    storage=self.storage,
                    study=self.study,
                    resume=self.resume,
                    trials=self.trials,
                    device=None if self.device == "auto" else self.device,
                    heartbeat_s=self.heartbeat_s,
                    command=command_line(),
                    progress=lambda done, total: bar.update(task, completed=done, total=total),
                    say=lambda line: bar.console.print(plain(line), soft_wrap=True),
                )
        except KeyboardInterrupt:
            if self.storage is None and not (self.out / DATABASE).exists():
                raise
            note("finished trials are kept: run the command again with --resume instead of its settings")
            raise
        console = SafeConsole()
        console.print(_table(tuned))
        for sentence in tuned.sentences():
            console.print(plain(sentence), soft_wrap=True)
        return 0


def _table(tuned: TuneResult) -> Table:
    table = Table("settings", "cost", "test cost", "F1", "GOSPA / m")
    for final in tuned.finals:
        f1, gospa = final.test_mean("f1"), final.test_mean("mean_gospa_m")
        name = final.name + (" (best)" if final is tuned.best else "")
        table.add_row(name, f"{final.cost:.4f}", f"{final.test_cost:.4f}", f"{f1:.3f}", f"{gospa:.3f}")
    return table
