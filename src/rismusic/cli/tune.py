"""``rismusic tune``: search settings of training and inference, on one machine or several."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from rismusic.cli.command import Command
from rismusic.cli.output import note, progress_bar
from rismusic.errors import InputError
from rismusic.spec import Count
from rismusic.tuning.spec import TuneSpec

if TYPE_CHECKING:
    from rich.table import Table

    from rismusic.tuning.results import TuneResult


class Tune(Command):
    """Search settings: rismusic tune [--trials N] [--epochs-per-trial N] [--space narrow|wide|FILE.toml].

    Unpromising trials are pruned. The best ones and the default are trained for longer from several seeds and
    compared on test scenes. Workers that are started with the same command and the same --storage share one
    study. After Ctrl-C, continue with --resume.
    """

    settings: Annotated[TuneSpec, arg(name="")] = TuneSpec()
    config: Annotated[Path | None, arg(metavar="FILE")] = None
    """TOML file with the training settings that are not searched, such as the settings.toml of a run."""
    trials: Count | None = None
    """Number of trials; default 50, and the number of the study with --resume."""
    out: Annotated[Path, arg(aliases=("-o",), metavar="FOLDER")] = Path("tune")
    """Folder for the training runs and the results."""
    storage: Annotated[str | None, arg(metavar="URL")] = None
    """Database server (postgresql://user@host/name) or SQLite file; default study.db in --out."""
    study: str = "tune"
    """Name of the study in the storage."""
    resume: bool = False
    """Continue a study with its own settings; --trials changes their number."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; 'auto' uses a GPU if there is one."""
    heartbeat_s: Count = 60
    """Seconds between two heartbeats of a worker; after twice as long without one its trial is repeated."""

    def run(self) -> int:
        """Search, and print the results."""
        spec = self.settings
        if self.resume and spec != TuneSpec():
            raise InputError(
                "resume",
                "--resume cannot be combined with settings of the search, which the study has already",
            )
        try:
            from rismusic.tuning.study import tune
        except ImportError as error:
            raise InputError(
                "tune",
                f"needs the extra 'tune' (pip install 'rismusic[tune]'); {error.name} is not installed",
            ) from None
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
                    command=shlex.join(["rismusic", *sys.argv[1:]]),
                    progress=lambda done, total: bar.update(task, completed=done, total=total),
                    say=lambda line: bar.console.print(line, markup=False, highlight=False, soft_wrap=True),
                )
        except KeyboardInterrupt:
            note("finished trials are kept: run the command again with --resume instead of its settings")
            raise
        _show(tuned)
        note(f"wrote best.toml, locate.toml, tables and plots to {self.out}")
        return 0


def _show(tuned: TuneResult) -> None:
    """Print the final evaluation."""
    from rich.console import Console

    console = Console()
    console.print(_table(tuned))
    for sentence in tuned.sentences():
        console.print(sentence, highlight=False, soft_wrap=True)


def _table(tuned: TuneResult) -> Table:
    from rich.table import Table

    table = Table("settings", "cost", "test cost", "F1", "GOSPA / m")
    for final in tuned.finals:
        f1, gospa = final.test_mean("f1"), final.test_mean("mean_gospa_m")
        name = final.name + (" (best)" if final is tuned.best else "")
        table.add_row(name, f"{final.cost:.4f}", f"{final.test_cost:.4f}", f"{f1:.3f}", f"{gospa:.3f}")
    return table
