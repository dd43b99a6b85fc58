"""A training from Python: begun, resumed, alone or under ``torchrun``."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import torch

from rismusic.errors import InputError
from rismusic.learn.board import Board
from rismusic.learn.curves import save_curves
from rismusic.learn.learner import Learner
from rismusic.learn.network import Network
from rismusic.learn.ranks import all_ranks
from rismusic.learn.runfolder import BEST, RunFolder
from rismusic.learn.spec import TrainSpec
from rismusic.learn.trainer import Progress, Say, Trainer, Watch
from rismusic.learn.weights import load_network, restore


@dataclass(frozen=True, eq=False)
class Trained:
    """What came of a training.

    Args:
        network: with the averaged weights of the best epoch.
        epochs: what was logged of each epoch.
        folder: of the run.
    """

    network: Network
    epochs: list[dict[str, object]]
    folder: Path


def train(
    spec: TrainSpec | None = None,
    *,
    out: str | Path = "run",
    resume: bool = False,
    start: str | Path | None = None,
    device: torch.device | str | None = None,
    tensorboard: bool = False,
    progress: Progress = lambda *_: None,
    say: Say = lambda _: None,
    watch: Watch = lambda *_: False,
    **settings: object,
) -> Trained:
    """Train a network; the twin of ``rismusic train``.

    Under ``torchrun`` all of its processes train one network together.

    Args:
        spec: the settings; the default ones if none.
        out: folder for settings, log, checkpoints and weights.
        resume: go on with the training in this folder, with its own settings.
        start: weights to start from, of the same panel and sizes.
        device: ``cpu`` or ``cuda``; a GPU where there is one, if none.
        tensorboard: whether to write the numbers for TensorBoard too.
        progress: called with the number of scenes done and that of all.
        say: called with each line for the console.
        watch: told the number of each epoch and its validation; the training stops there if it says so.
        settings: fields of :class:`~rismusic.learn.spec.TrainSpec` to change, such as ``batch=32``.

    Raises:
        InputError: an unknown or impossible setting, a folder that holds something else or is in use, weights
            of another network, a full disk, gradients that are not finite in too many steps.
        KeyboardInterrupt: on Ctrl-C, after a checkpoint.
    """
    run = RunFolder(Path(out))
    if resume and (settings or spec is not None or start is not None):
        raise InputError("resume", "no settings beside it (they are in the folder)", "some")
    with all_ranks(device) as ranks, ExitStack() as held:
        chosen = run.settings() if resume else (spec or TrainSpec()).replace(**settings)
        with ranks.together():
            if ranks.first and not resume:
                run.create(chosen)
            held.enter_context(run.held(ranks.first))
        trainer = Trainer(chosen, run, ranks, progress=progress, say=say, watch=watch)
        if resume:
            trainer.resume()
        elif start is not None:
            start_from(start, trainer.learner)
        with ExitStack() as stack:
            if ranks.first:
                stack.callback(save_curves, run, say)
            if tensorboard and ranks.first:
                steps = chosen.steps_per_epoch
                done = trainer.state.epoch * steps + trainer.state.step
                trainer.record = stack.enter_context(closing(Board(run.folder, steps, done)))
            trainer.train()
        held.close()
        ranks.wait()
        network = load_network(run.folder / BEST, device=ranks.device)
    return Trained(network, run.records("epoch"), run.folder)


def start_from(path: str | Path, learner: Learner) -> None:
    """Give a learner the weights of a file, and its average too."""
    other = load_network(path, panel=learner.grid.panel)
    restore(str(path), learner.network, dict(other.named_parameters()))
    for name, weight in learner.weights.items():
        learner.average[name].copy_(weight.detach())
