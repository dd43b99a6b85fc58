"""The training: one loop over epochs, one over optimizer steps, and nothing hidden from either.

Which scenes a step sees, beta, the weights of the losses and the learning rate are functions of epoch and
step; everything else that a step depends on is in the checkpoint. So a training ends where an undisturbed one
does, however often and however rudely it was interrupted.

A training from Python: begun, resumed, alone or under ``torchrun``.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rismusic.errors import InputError
from rismusic.nn import monitors as probes
from rismusic.nn.checkpoint import State, load_checkpoint, save_checkpoint
from rismusic.nn.curves import TensorBoardLog, save_curves
from rismusic.nn.data import TrainingScenes
from rismusic.nn.distributed import ProcessGroup, deferred_interrupt, process_group
from rismusic.nn.learner import Learner
from rismusic.nn.losses import check_start
from rismusic.nn.monitors import Report, nonfinite_error, nonfinite_parts
from rismusic.nn.network import GridNetwork
from rismusic.nn.run_folder import BEST, LAST, RunFolder
from rismusic.nn.schedules import beta_at, weights_at
from rismusic.nn.spec import TrainSpec
from rismusic.nn.validation import Validation, report, validate
from rismusic.nn.weights import load_network, restore, save_network

Progress = Callable[[int, int], None]
Say = Callable[[str], None]
Watch = Callable[[int, Validation], bool]


class Trainer:
    """A training in its folder.

    Args:
        spec: all settings.
        run: the folder, made and held.
        group: the processes and the device.
        progress: called with the number of scenes done and that of all.
        say: called with each line for the console.
        record: called with each line of the log, beside it.
        watch: told the number of each epoch and its validation; the training stops there if it says so.
    """

    def __init__(
        self,
        spec: TrainSpec,
        run: RunFolder,
        group: ProcessGroup | None = None,
        *,
        progress: Progress = lambda *_: None,
        say: Say = lambda _: None,
        record: Callable[[dict[str, object]], None] | None = None,
        watch: Watch = lambda *_: False,
    ) -> None:
        self.spec, self.run, self.group = spec, run, group or ProcessGroup()
        self.learner = Learner(spec, self.group)
        self.scenes = TrainingScenes(spec, self.group)
        self.state = State()
        self._progress, self._say, self.record, self._watch = progress, say, record, watch
        self._pending: list[dict[str, Tensor]] = []
        self._saved = time.monotonic()

    def resume(self) -> None:
        """Go back to the last checkpoint, if there is one."""
        found = load_checkpoint(self.run)
        if found is not None:
            self.state, tensors = found
            self.learner.restore(tensors)
            self.learner.scaler.load_state_dict(self.state.scaler)
        if self.group.first:
            self.run.cut_log(self.state.log_bytes)
            self.run.records("epoch")  # A damaged log is found now, not after the last epoch.
        self.group.wait()

    def train(self) -> None:
        """From where the state stands to the end.

        Raises:
            InputError: too many steps without a finite gradient; the disk is full.
            KeyboardInterrupt: after a checkpoint.
        """
        spec, state, learner = self.spec, self.state, self.learner
        if not state.begun:
            self._begin()
        with deferred_interrupt() as interrupted:
            while not state.stopped:
                beta = beta_at(spec.schedule, state.epoch, spec.seed)
                weights = weights_at(spec.loss, spec.schedule, state.epoch, beta)
                if state.step == 0:
                    self._look(beta)
                while state.step < spec.steps_per_epoch:
                    first = self.group.first and state.step == 0
                    before = probes.snapshot(learner) if first else {}
                    rates = probes.learning_rate(learner).values if first else {}
                    self._pending.append(
                        learner.step(self.scenes.step(state.epoch, state.step), beta, weights)
                    )
                    state.step += 1
                    if first:
                        self._tell(probes.change(learner, before, rates))
                    if len(self._pending) >= spec.log_steps:
                        self._fetch()
                    self._show()
                    if interrupted() or self._due():
                        self._save()
                    if interrupted():
                        raise KeyboardInterrupt
                self._fetch()
                self._close_epoch(beta)
                self._save()

    def _begin(self) -> None:
        """Before the first step: do all outputs learn, and can the folder be written?"""
        beta, weights = 0.0, self.spec.loss.weights
        recording = next(self.scenes.step(0, 0))
        prediction = self.learner.network(recording)
        losses = self.learner.judged(prediction, recording, beta, weights)
        if not losses.total.isfinite():
            who = ", ".join(nonfinite_parts(self.learner, recording, 0, beta))
            raise InputError("loss", "a finite total", f"{float(losses.total.detach()):g}; not finite: {who}")
        check_start(losses, prediction)
        self._tell(probes.first_loss(float(losses.total.detach())))
        if self.group.first:
            if not self.spec.fresh:
                self._say("[VAL] on the scenes that are trained on, since fresh is off")
            first = validate(self.learner, self.scenes)
            self._tell(report(first, None, self.spec.network.sources_max, self._snapshots))
        self.state.begun = True
        self._save()

    def _look(self, beta: float) -> None:
        """The probes at the head of an epoch."""
        if not self.group.first:
            return
        weights = weights_at(self.spec.loss, self.spec.schedule, self.state.epoch, beta)
        self._tell(probes.beta(beta))
        self._tell(probes.learning_rate(self.learner))
        for each in probes.gradients(self.learner, self.scenes.probe(), beta, weights):
            self._tell(each)

    def _fetch(self) -> None:
        """Bring the numbers of the last steps to the host, log them, and stop after too many bad ones."""
        if not self._pending:
            return
        state, names = self.state, list(self._pending[0])
        rows = torch.stack([torch.stack(list(row.values())) for row in self._pending]).tolist()
        step = state.step - len(rows)
        records: list[dict[str, object]] = []
        for number, row in enumerate(rows, start=step):
            values = dict(zip(names, row, strict=True))
            records.append({"kind": "step", "epoch": state.epoch, "step": number, **values})
            taken = values["taken"] == 1
            state.skipped += not taken
            state.clipped += bool(values["clipped"])
            for name, value in values.items():
                # What a skipped step leaves has no mean.
                state.sums[name] = state.sums.get(name, 0.0) + (value if taken else 0.0)
        self._pending.clear()
        self._write(records)
        if state.skipped > self.spec.skipped_max:
            bad = [record for record in records if record["taken"] != 1]
            raise nonfinite_error(self.learner, self.scenes, bad[-1] if bad else records[-1], state.skipped)

    def _close_epoch(self, beta: float) -> None:
        """Validate, log, keep the weights, and decide whether to go on."""
        spec, state = self.spec, self.state
        stop = False
        if self.group.first:
            now = validate(self.learner, self.scenes)
            stop = self._judge(now, beta)
        state.stopped = self.group.told(stop)
        state.epoch, state.step, state.clipped, state.sums = state.epoch + 1, 0, 0, {}
        state.stopped = state.stopped or state.epoch == spec.schedule.epochs

    def _judge(self, now: Validation, beta: float) -> bool:
        """Log an epoch and keep its weights; whether the training has gone on for long enough."""
        spec, state, learner = self.spec, self.state, self.learner
        taken = state.sums.get("taken", 0.0)
        means = {name: total / taken for name, total in state.sums.items()} if taken else {}
        weights = weights_at(spec.loss, spec.schedule, state.epoch, beta)
        self._tell(probes.steps(state, spec.clip_norm))
        self._tell(probes.losses(means, weights))
        self._tell(report(now, state.validation, spec.network.sources_max, self._snapshots))
        record = {"kind": "epoch", "epoch": state.epoch, "beta": beta, "training": means}
        self._write([{**record, "validation": now.record()}])
        state.validation = now.loss if math.isfinite(now.loss) else None
        notes = {"epoch": str(state.epoch), "validation_loss": json.dumps(now.loss)}
        if math.isfinite(now.loss) and (state.best is None or now.loss < state.best):
            state.best, state.best_epoch = now.loss, state.epoch
        if state.best is None or state.best_epoch == state.epoch:
            save_network(self.run.folder / BEST, learner.network, learner.average, training=spec, notes=notes)
        save_network(self.run.folder / LAST, learner.network, learner.average, training=spec, notes=notes)
        enough = self._watch(state.epoch, now)
        return enough or 0 < spec.patience <= state.epoch - state.best_epoch

    def _save(self) -> None:
        """A checkpoint, of what all steps so far have left."""
        self._fetch()
        if self.group.first:
            self.state.scaler = self.learner.scaler.state_dict()
            self.state.log_bytes = self.run.log_size()
            save_checkpoint(self.run, self.spec, self.state, self.learner.tensors())
        self._saved = time.monotonic()

    def _due(self) -> bool:
        """Whether it is time for a checkpoint."""
        if not self.group.first:
            return False
        steps, minutes = self.spec.save_steps, self.spec.save_minutes
        return (steps > 0 and self.state.step % steps == 0) or time.monotonic() - self._saved > 60 * minutes

    def _tell(self, found: Report) -> None:
        """A line for the log and one for the console."""
        if self.group.first:
            self._write([found.record(self.state.epoch)])
            for line in found.lines:
                self._say(line)

    def _write(self, records: list[dict[str, object]]) -> None:
        if self.group.first:
            self.run.log(records)
            if self.record is not None:
                for record in records:
                    self.record(record)

    def _show(self) -> None:
        if self.group.first:
            spec, state = self.spec, self.state
            done = state.epoch * spec.scenes_per_epoch + state.step * spec.batch * spec.accumulation
            self._progress(done, spec.schedule.epochs * spec.scenes_per_epoch)

    @property
    def _snapshots(self) -> int:
        return self.spec.system.codebook.snapshots


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """What came of a training.

    Args:
        network: with the averaged weights of the best epoch.
        epochs: what was logged of each epoch.
        folder: of the run.
    """

    network: GridNetwork
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
) -> TrainingResult:
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
        settings: fields of :class:`~rismusic.nn.spec.TrainSpec` to change, such as ``batch=32``.

    Raises:
        InputError: an unknown or impossible setting, a folder that holds something else or is in use, weights
            of another network, a full disk, gradients that are not finite in too many steps.
        KeyboardInterrupt: on Ctrl-C, after a checkpoint.
    """
    run = RunFolder(Path(out))
    if resume and (settings or spec is not None or start is not None):
        raise InputError("resume", "no settings beside it (they are in the folder)", "some")
    with process_group(device) as group, ExitStack() as held:
        chosen = run.settings() if resume else (spec or TrainSpec()).replace(**settings)
        with group.together():
            if group.first and not resume:
                run.create(chosen)
            held.enter_context(run.held(group.first))
        trainer = Trainer(chosen, run, group, progress=progress, say=say, watch=watch)
        if resume:
            trainer.resume()
        elif start is not None:
            start_from(start, trainer.learner)
        with ExitStack() as stack:
            if group.first:
                stack.callback(save_curves, run, say)
            if tensorboard and group.first:
                steps = chosen.steps_per_epoch
                done = trainer.state.epoch * steps + trainer.state.step
                trainer.record = stack.enter_context(closing(TensorBoardLog(run.folder, steps, done)))
            trainer.train()
        held.close()
        group.wait()
        network = load_network(run.folder / BEST, device=group.device)
    return TrainingResult(network, run.records("epoch"), run.folder)


def start_from(path: str | Path, learner: Learner) -> None:
    """Give a learner the weights of a file, and its average too."""
    other = load_network(path, panel=learner.grid.panel)
    restore(str(path), learner.network, dict(other.named_parameters()))
    for name, weight in learner.weights.items():
        learner.average[name].copy_(weight.detach())
