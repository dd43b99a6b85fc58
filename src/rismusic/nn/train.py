"""Training of a network, in Python and under ``torchrun``.

:func:`train` sets a run folder up; :meth:`Trainer.train` is the loop over epochs and optimizer steps. Scenes,
beta, loss weights and learning rate are functions of epoch and step, and the checkpoint holds everything else
that a step depends on, so an interrupted and resumed training gives the same result as an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from rismusic.errors import InputError
from rismusic.interruption import deferred_interrupt
from rismusic.nn import monitors as probes
from rismusic.nn.checkpoint import (
    State,
    load_checkpoint,
    load_network,
    restore,
    save_checkpoint,
    save_network,
)
from rismusic.nn.data import TrainingScenes, beta_at, weights_at
from rismusic.nn.distributed import ProcessGroup, process_group
from rismusic.nn.learner import Learner
from rismusic.nn.losses import check_start
from rismusic.nn.monitors import Report, TensorBoardLog, find_nonfinite, nonfinite_gradient_error, save_curves
from rismusic.nn.network import GridNetwork
from rismusic.nn.run_folder import BEST, LAST, LOG, RunFolder
from rismusic.nn.spec import TermName, TrainSpec
from rismusic.nn.validation import Validation, report, validate

Progress = Callable[[int, int], None]
LogCallback = Callable[[str], None]
EpochCallback = Callable[[int, Validation], bool]


class Trainer:
    """The training loop, in a run folder that is created and locked.

    Callbacks are those of :func:`train`, and ``on_record`` for the run log.
    """

    def __init__(
        self,
        spec: TrainSpec,
        run: RunFolder,
        group: ProcessGroup | None = None,
        *,
        progress: Progress = lambda *_: None,
        log: LogCallback = lambda _: None,
        on_record: Callable[[dict[str, object]], None] = lambda _: None,
        on_epoch: EpochCallback = lambda *_: False,
    ) -> None:
        self.spec, self.run, self.group = spec, run, group or ProcessGroup()
        self.learner = Learner(spec, self.group)
        self.scenes = TrainingScenes(spec, self.group)
        self.state = State()
        self.on_record = on_record
        self._progress, self._log, self._on_epoch = progress, log, on_epoch
        # Numbers of the last steps, still on the device.
        self._pending: list[dict[str, Tensor]] = []
        self._checkpoint_time = time.monotonic()
        # Size that the log of a resumed training is cut to.
        self._log_bytes: int | None = None

    def resume(self) -> None:
        """Restore the last checkpoint, if there is one. No file is changed before the training goes on."""
        checkpoint = load_checkpoint(self.run)
        if checkpoint is not None:
            self.state, tensors = checkpoint
            self.learner.restore(tensors)
            self.learner.scaler.load_state_dict(self.state.scaler)
        with self.group.propagate_errors():
            if self.group.is_main:
                self._log_bytes = self.run.check_log(self.state.log_bytes)
                if self._log_bytes < self.state.log_bytes:
                    self._log(f"{self.run.folder / LOG} is missing; the learning curves up to here are lost")

    def train(self) -> None:
        """Train from the current state to the end.

        On Ctrl-C it writes a checkpoint and raises ``KeyboardInterrupt``.
        """
        spec, state = self.spec, self.state
        if self._log_bytes is not None:
            self.run.cut_log(self._log_bytes)
            self._log_bytes = None
        if not state.begun:
            self._check_start()
        with deferred_interrupt() as interrupted:
            while not state.stopped:
                beta = beta_at(spec.schedule, state.epoch, spec.seed)
                weights = weights_at(spec.loss, spec.schedule, state.epoch, beta)
                if self.group.is_main:
                    place = f", from step {state.step}" if state.step else ""
                    self._log(f"epoch {state.epoch} (0 to {spec.schedule.epochs - 1}){place}")
                if state.step == 0:
                    self._probe(beta, weights)
                while state.step < spec.steps_per_epoch:
                    self._step(beta, weights)
                    if interrupted() or self._checkpoint_due():
                        self._checkpoint()
                    if interrupted():
                        raise KeyboardInterrupt
                self._log_steps()
                self._end_epoch(beta, weights)
                self._checkpoint()

    def _check_start(self) -> None:
        """Before the first step: do outputs have gradients, does validation run, can files be written?"""
        weights = self.spec.loss.weights
        recording = next(self.scenes.step(0, 0))
        prediction = self.learner.network(recording)
        losses = self.learner.prediction_losses(prediction, recording, 0.0, weights)
        if not losses.total.isfinite():
            names = ", ".join(find_nonfinite(self.learner, recording, 0, 0.0))
            total = float(losses.total.detach())
            raise InputError("loss", f"the total loss of the first batch is {total:g}; not finite: {names}")
        check_start(losses, prediction)
        self._report(probes.first_loss(float(losses.total.detach())))
        if self.group.is_main:
            if not self.spec.fresh:
                self._log("[VAL] fresh is off: validation uses the training scenes")
            validation = validate(self.learner, self.scenes)
            self._report(report(validation, None, self.spec))
        self.state.begun = True
        self._checkpoint()

    def _probe(self, beta: float, weights: Mapping[TermName, float]) -> None:
        if not self.group.is_main:
            return
        self._report(probes.beta(beta))
        self._report(probes.learning_rate(self.learner))
        for one in probes.gradients(self.learner, self.scenes.probe(), beta, weights):
            self._report(one)

    def _step(self, beta: float, weights: Mapping[TermName, float]) -> None:
        """One optimizer step; the first one of an epoch is probed."""
        spec, state, learner = self.spec, self.state, self.learner
        probed = self.group.is_main and state.step == 0
        before = probes.copy_parameters(learner) if probed else {}
        rates = probes.learning_rate(learner).values if probed else {}
        self._pending.append(learner.step(self.scenes.step(state.epoch, state.step), beta, weights))
        state.step += 1
        if probed:
            self._report(probes.parameter_updates(learner, before, rates))
        if len(self._pending) >= spec.log_steps:
            self._log_steps()
        if self.group.is_main:
            done = state.epoch * spec.scenes_per_epoch + state.step * spec.batch * spec.accumulation
            self._progress(done, spec.schedule.epochs * spec.scenes_per_epoch)

    def _log_steps(self) -> None:
        """Fetch and log the numbers of the last steps; stop after too many skipped steps."""
        if not self._pending:
            return
        state, names = self.state, list(self._pending[0])
        rows = torch.stack([torch.stack(list(row.values())) for row in self._pending]).tolist()
        records: list[dict[str, object]] = []
        for step, row in enumerate(rows, start=state.step - len(rows)):
            values = dict(zip(names, row, strict=True))
            records.append({"kind": "step", "epoch": state.epoch, "step": step, **values})
            taken = values["taken"] == 1
            state.skipped += not taken
            state.clipped += bool(values["clipped"])
            for name, value in values.items():
                # The means of an epoch are over the steps that were taken.
                state.sums[name] = state.sums.get(name, 0.0) + (value if taken else 0.0)
        self._pending.clear()
        self._write(records)
        if state.skipped > self.spec.skipped_max:
            bad = [record for record in records if record["taken"] != 1] or records
            raise nonfinite_gradient_error(self.learner, self.scenes, bad[-1], state.skipped)

    def _end_epoch(self, beta: float, weights: Mapping[TermName, float]) -> None:
        """Validate, save the weights, and decide whether to stop."""
        spec, state = self.spec, self.state
        stop = False
        if self.group.is_main:
            try:
                validation = validate(self.learner, self.scenes)
            except LinAlgError as error:
                raise InputError(
                    "training",
                    f"has diverged: after epoch {state.epoch} the predicted covariances have no eigenvalues; "
                    "lower the learning rates",
                ) from error
            self._log_epoch(validation, beta, weights)
            self._save_weights(validation)
            stop = self._on_epoch(state.epoch, validation)
            stop = stop or 0 < spec.patience <= state.epoch - state.best_epoch
        state.stopped = self.group.broadcast(stop)
        state.epoch, state.step, state.clipped, state.sums = state.epoch + 1, 0, 0, {}
        state.stopped = state.stopped or state.epoch == spec.schedule.epochs

    def _log_epoch(self, validation: Validation, beta: float, weights: Mapping[TermName, float]) -> None:
        state = self.state
        taken = state.sums.get("taken", 0.0)
        means = {name: total / taken for name, total in state.sums.items()} if taken else {}
        self._report(probes.steps(state, self.spec.clip_norm))
        self._report(probes.losses(means, weights))
        self._report(report(validation, state.validation, self.spec))
        record = {"kind": "epoch", "epoch": state.epoch, "beta": beta, "training": means}
        self._write([{**record, "validation": validation.record()}])

    def _save_weights(self, validation: Validation) -> None:
        """Save the averaged weights as the last ones, and as the best ones if they are."""
        spec, state, learner, loss = self.spec, self.state, self.learner, validation.loss
        state.validation = loss if math.isfinite(loss) else None
        if math.isfinite(loss) and (state.best is None or loss < state.best):
            state.best, state.best_epoch = loss, state.epoch
        notes = {"epoch": str(state.epoch), "validation_loss": json.dumps(loss)}
        is_best = state.best is None or state.best_epoch == state.epoch
        for name in (BEST, LAST) if is_best else (LAST,):
            save_network(self.run.folder / name, learner.network, learner.average, training=spec, notes=notes)

    def _checkpoint(self) -> None:
        self._log_steps()
        if self.group.is_main:
            self.state.scaler = self.learner.scaler.state_dict()
            self.state.log_bytes = self.run.sync_log()
            save_checkpoint(self.run, self.spec, self.state, self.learner.tensors())
        self._checkpoint_time = time.monotonic()

    def _checkpoint_due(self) -> bool:
        if not self.group.is_main:
            return False
        steps = self.spec.save_steps
        minutes = (time.monotonic() - self._checkpoint_time) / 60
        return (steps > 0 and self.state.step % steps == 0) or minutes > self.spec.save_minutes

    def _report(self, finding: Report) -> None:
        """Write a probe's report to the run log and the console."""
        if self.group.is_main:
            self._write([finding.record(self.state.epoch)])
            for line in finding.lines:
                self._log(line)

    def _write(self, records: list[dict[str, object]]) -> None:
        if self.group.is_main:
            self.run.log(records)
            for record in records:
                self.on_record(record)


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """The network, with the averaged weights of the best epoch, the log of each epoch, and the run folder."""

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
    log: LogCallback = lambda _: None,
    on_epoch: EpochCallback = lambda *_: False,
    **settings: object,
) -> TrainingResult:
    """Train a network, as ``rismusic train`` does.

    Under ``torchrun`` all processes train one network together.

    Args:
        spec: the settings; the defaults if none.
        out: folder for settings, log, checkpoints and weights.
        resume: continue the training in this folder, with its own settings.
        start: initial weights, of a network with the same panel and sizes.
        device: ``cpu`` or ``cuda``; by default a GPU if there is one.
        tensorboard: whether to write TensorBoard events.
        progress: called with the number of scenes done and the total.
        log: called with each message for the console.
        on_epoch: called with the number of each epoch and its validation; returns whether to stop.
        settings: fields of :class:`~rismusic.nn.spec.TrainSpec` to change, such as ``batch=32``.

    Raises:
        InputError: an invalid setting, a folder that is not empty or in use, weights of another network, a
            full disk, or non-finite gradients in too many steps.
        KeyboardInterrupt: on Ctrl-C, after a checkpoint.
    """
    run = RunFolder(Path(out))
    if resume and (settings or spec is not None or start is not None):
        given = [*settings, *["spec"] * (spec is not None), *["start"] * (start is not None)]
        raise InputError(
            "resume",
            f"cannot be combined with other settings (got {', '.join(given)}); they are read from the folder",
        )
    with process_group(device) as group, ExitStack() as lock:
        chosen = run.settings() if resume else (spec or TrainSpec()).replace(**settings)
        with group.propagate_errors():
            if group.is_main and not resume:
                run.check_new()
        trainer = Trainer(chosen, run, group, progress=progress, log=log, on_epoch=on_epoch)
        if start is not None:
            start_from(start, trainer.learner)
        with group.propagate_errors():
            if group.is_main and not resume:
                run.create(chosen)
            lock.enter_context(run.lock(group.is_main))
        if resume:
            trainer.resume()
            if (run.folder / BEST).exists():  # damaged weights are refused before anything is written
                load_network(run.folder / BEST, device=group.device)
        with ExitStack() as stack:
            if tensorboard and group.is_main:
                steps = chosen.steps_per_epoch
                done = trainer.state.epoch * steps + trainer.state.step
                trainer.on_record = stack.enter_context(closing(TensorBoardLog(run.folder, steps, done)))
            if group.is_main:
                stack.callback(save_curves, run, log)
            trainer.train()
        lock.close()
        group.barrier()
        network = load_network(run.folder / BEST, device=group.device)
    return TrainingResult(network, run.records("epoch"), run.folder)


def start_from(path: str | Path, learner: Learner) -> None:
    """Load initial weights from a file into a learner and its moving average."""
    other = load_network(path, panel=learner.grid.panel)
    restore(str(path), learner.network, dict(other.named_parameters()))
    for name, weight in learner.weights.items():
        learner.average[name].copy_(weight.detach())
