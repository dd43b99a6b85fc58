"""``rismusic train``: train a network. A training can be stopped and resumed at any time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from rismusic.cli.command import Command, Option
from rismusic.cli.output import check_extras, note, progress_bar
from rismusic.errors import InputError
from rismusic.nn.run_folder import SETTINGS, RunFolder
from rismusic.nn.spec import TrainSpec
from rismusic.spec import Count
from rismusic.text import plain

BESIDE_RESUME = ("resume", "device", "tensorboard")
PRESETS = {"tiny": TrainSpec.tiny, "search": TrainSpec.search, "final": TrainSpec.final}


class Train(Command):
    """Train a network. Options win over CONFIG.toml, which wins over the preset. Ctrl-C stops after a
    checkpoint; --resume RUN continues. torchrun -m rismusic train ... trains on several processes.
    """  # noqa: D205

    FLAT: ClassVar[str] = "settings"
    POSITIONAL: ClassVar[str] = "config"

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
    def base(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Settings of the preset."""
        return preset_settings(given)

    @classmethod
    def check_options(cls, typed: Mapping[str, Any]) -> None:
        """Refuse options that contradict each other."""
        others = [name for name in typed if name not in BESIDE_RESUME]
        if "resume" in typed and others:
            flag = "--" + others[0].replace("_", "-")
            raise InputError("--resume", f"cannot be combined with other settings (found {flag})")
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
        note(f"{len(trained.epochs)} epochs in {folder}; weights in {folder / 'best.safetensors'}")
        return 0


def preset_settings(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings of the preset that is named, if any.

    Args:
        given: values of files and options.
    """
    preset = PRESETS.get(str(given.get("preset")))
    return {} if preset is None else preset().model_dump(exclude_unset=True)
