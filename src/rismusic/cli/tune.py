"""``rismusic tune``: search settings of training and inference, on one machine or several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from rismusic.cli.command import Command, Option
from rismusic.cli.output import SafeConsole, check_extras, note, progress_bar
from rismusic.errors import InputError
from rismusic.spec import Count
from rismusic.text import command_line, plain
from rismusic.tuning.spec import TuneSpec

if TYPE_CHECKING:
    from rich.table import Table

    from rismusic.tuning.results import TuneResult


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
            note("finished trials are kept: run the command again with --resume instead of its settings")
            raise
        _show(tuned)
        note(f"wrote best.toml, locate.toml, tables and plots to {self.out}")
        return 0


def _show(tuned: TuneResult) -> None:
    """Print the final evaluation."""
    console = SafeConsole()
    console.print(_table(tuned))
    for sentence in tuned.sentences():
        console.print(plain(sentence), soft_wrap=True)


def _table(tuned: TuneResult) -> Table:
    from rich.table import Table

    table = Table("settings", "cost", "test cost", "F1", "GOSPA / m")
    for final in tuned.finals:
        f1, gospa = final.test_mean("f1"), final.test_mean("mean_gospa_m")
        name = final.name + (" (best)" if final is tuned.best else "")
        table.add_row(name, f"{final.cost:.4f}", f"{final.test_cost:.4f}", f"{f1:.3f}", f"{gospa:.3f}")
    return table
