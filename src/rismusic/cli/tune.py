"""``rismusic tune``: settings of training and inference are searched, on one machine or many."""

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

    from rismusic.tuning.outcome import Tuned


class Tune(Command):
    """Search settings: rismusic tune [--trials N] [--epochs-per-trial N] [--space narrow|wide|FILE.toml].

    Short trainings are stopped where they do badly; the best few are trained for longer from several seeds,
    beside the default, and compared with it on fresh scenes. The same command started on several machines
    with one --storage joins one study. Ctrl-C puts the running trial back; go on with --resume.
    """

    settings: Annotated[TuneSpec, arg(name="")] = TuneSpec()
    config: Annotated[Path | None, arg(metavar="FILE")] = None
    """TOML file with settings of a training to begin with, such as the settings.toml of a run."""
    trials: Count | None = None
    """Short trainings of the first stage: 50 of a new study, as many as before of one that is resumed."""
    out: Annotated[Path, arg(aliases=("-o",), metavar="FOLDER")] = Path("tune")
    """Folder for the trainings and the results."""
    storage: Annotated[str | None, arg(metavar="URL")] = None
    """Database for many machines (postgresql://user@host/name), or a journal file; else one in the folder."""
    study: str = "tune"
    """Name of the study in the storage."""
    resume: bool = False
    """Go on with a study, with its own settings; a larger --trials adds to it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to work; 'auto': on a GPU where there is one."""
    heartbeat_s: Count = 60
    """Seconds between two signs of life in a database; without one for twice as long, a trial is put back."""

    def run(self) -> int:
        """Search, and show what came of it."""
        spec = self.settings
        if self.resume and spec != TuneSpec():
            raise InputError("resume", "no settings beside it but trials (they are in the study)", "some")
        try:
            from rismusic.tuning.run import tune
        except ImportError as error:
            raise InputError("tune", "optuna (pip install 'rismusic[tune]')", f"no {error.name}") from None
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
            note("what is done is kept: go on with the same command and --resume in place of its settings")
            raise
        _show(tuned)
        note(f"settings in {self.out / 'best.toml'} and {self.out / 'locate.toml'}; the rest beside them")
        return 0


def _show(tuned: Tuned) -> None:
    """The finalists on the screen."""
    from rich.console import Console

    console = Console()
    console.print(_table(tuned))
    for sentence in tuned.sentences():
        console.print(sentence, highlight=False, soft_wrap=True)


def _table(tuned: Tuned) -> Table:
    from rich.table import Table

    table = Table("settings", "cost", "fresh cost", "F1", "GOSPA / m")
    for final in tuned.finals:
        f1, gospa = final.fresh_mean("f1"), final.fresh_mean("mean_gospa_m")
        name = final.name + (" (best)" if final is tuned.best else "")
        table.add_row(name, f"{final.cost:.4f}", f"{final.fresh_cost:.4f}", f"{f1:.3f}", f"{gospa:.3f}")
    return table
