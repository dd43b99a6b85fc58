"""``rismusic train``: a network learns, and can be stopped and resumed at any time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from rismusic.cli.command import Command, flags_of, value_of
from rismusic.cli.output import note, progress_bar
from rismusic.errors import InputError
from rismusic.nn.run_folder import SETTINGS, RunFolder, load_train_spec
from rismusic.nn.spec import TrainSpec
from rismusic.spec import Count

BESIDE_RESUME = ("--resume", "--device", "--tensorboard", "--no-tensorboard", "--help", "-h")
PRESETS = {"tiny": TrainSpec.tiny, "search": TrainSpec.search, "final": TrainSpec.final}


class Train(Command):
    """Train a network: rismusic train [CONFIG.toml] [--preset tiny] [--epochs N] [--out RUN].

    Flags win over the configuration, and this over the preset. Ctrl-C stops after a checkpoint; a training
    goes on, however it ended, with --resume RUN. Under torchrun (torchrun --nproc-per-node 2 -m rismusic
    train ...) all processes train one network together.
    """

    settings: Annotated[TrainSpec, arg(name="")] = TrainSpec()
    preset: Literal["tiny", "search", "final"] | None = None
    """Settings to begin with: for a first look, for the search of settings, for weights to be used."""
    config: Annotated[Path | None, arg(metavar="FILE")] = None
    """TOML file with settings, such as the settings.toml of a run; the flag's name can be left out."""
    epochs: Count | None = None
    """Short for --schedule.epochs."""
    out: Annotated[Path, arg(aliases=("-o",), metavar="RUN")] = Path("run")
    """Folder for settings, log, checkpoints, curves and weights."""
    resume: Annotated[Path | None, arg(metavar="RUN")] = None
    """Go on with the training in this folder, with its own settings."""
    start: Annotated[Path | None, arg(metavar="FILE")] = None
    """Weights to start from (.safetensors), of a network of the same sizes and panel."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to work; 'auto': on a GPU where there is one."""
    tensorboard: bool = False
    """Write the numbers for TensorBoard too."""

    def run(self) -> int:
        """Train, and say where the result is."""
        spec = self.settings
        if self.epochs is not None:
            spec = spec.replace(schedule=spec.schedule.replace(epochs=self.epochs))
        if self.resume is not None:
            # Before torch is waited for.
            RunFolder(self.resume).settings()
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
                    log=lambda line: bar.console.print(line, markup=False, highlight=False, soft_wrap=True),
                )
        except KeyboardInterrupt:
            if (folder / SETTINGS).exists():
                note(f"what is learned is kept in {folder}: go on with rismusic train --resume {folder}")
            raise
        note(f"{len(trained.epochs)} epochs in {folder}; weights in {folder / 'best.safetensors'}")
        return 0


def with_settings(args: list[str]) -> list[str]:
    """Put the flags that a preset and a configuration stand for before those that were typed.

    Args:
        args: the command and its flags; those of other commands are left alone.

    Raises:
        InputError: the file is no configuration of a training.
    """
    if args[:1] not in (["train"], ["doctor"]):
        return args
    if len(args) > 1 and not args[1].startswith("-"):
        args = [args[0], "--config", *args[1:]]
    _check_flags([typed.partition("=")[0] for typed in args if typed.startswith("-")])
    preset, config = value_of(args, "--preset"), value_of(args, "--config")
    flags = flags_of(PRESETS[preset]()) if preset in PRESETS else []
    if config is not None:
        flags += flags_of(load_train_spec(Path(config)))
    return [args[0], *flags, *args[1:]]


def _check_flags(typed: list[str]) -> None:
    """Refuse flags that contradict each other.

    Raises:
        InputError: settings beside ``--resume``, or the same setting under two names.
    """
    for flag in typed if "--resume" in typed else []:
        if flag not in BESIDE_RESUME:
            raise InputError("--resume", "no settings beside it (they are in the folder)", flag)
    if {"--epochs", "--schedule.epochs"} <= set(typed):
        raise InputError("--epochs", "one of --epochs and --schedule.epochs", "both")
