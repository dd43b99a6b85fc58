"""The training: one loop over epochs, one over optimizer steps, and nothing hidden from either.

Which scenes a step sees, beta, the weights of the losses and the learning rate are functions of epoch and
step; everything else that a step depends on is in the checkpoint. So a training ends where an undisturbed one
does, however often and however rudely it was interrupted.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from rismusic.errors import InputError
from rismusic.learn import probes
from rismusic.learn.blame import culprit, guilty_of
from rismusic.learn.checkpoint import State, load_checkpoint, save_checkpoint
from rismusic.learn.findings import Report
from rismusic.learn.interrupt import remembered
from rismusic.learn.learner import Learner
from rismusic.learn.losses import check_start
from rismusic.learn.ranks import Ranks
from rismusic.learn.runfolder import BEST, LAST, RunFolder
from rismusic.learn.scenes import Scenes
from rismusic.learn.schedules import beta_at, weights_at
from rismusic.learn.spec import TrainSpec
from rismusic.learn.validation import Validation, report, validate
from rismusic.learn.weights import save_network

Progress = Callable[[int, int], None]
Say = Callable[[str], None]
Watch = Callable[[int, Validation], bool]


class Trainer:
    """A training in its folder.

    Args:
        spec: all settings.
        run: the folder, made and held.
        ranks: the processes and the device.
        progress: called with the number of scenes done and that of all.
        say: called with each line for the console.
        record: called with each line of the log, beside it.
        watch: told the number of each epoch and its validation; the training stops there if it says so.
    """

    def __init__(
        self,
        spec: TrainSpec,
        run: RunFolder,
        ranks: Ranks | None = None,
        *,
        progress: Progress = lambda *_: None,
        say: Say = lambda _: None,
        record: Callable[[dict[str, object]], None] | None = None,
        watch: Watch = lambda *_: False,
    ) -> None:
        self.spec, self.run, self.ranks = spec, run, ranks or Ranks()
        self.learner = Learner(spec, self.ranks)
        self.scenes = Scenes(spec, self.ranks)
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
        if self.ranks.first:
            self.run.cut_log(self.state.log_bytes)
            self.run.records("epoch")  # A damaged log is found now, not after the last epoch.
        self.ranks.wait()

    def train(self) -> None:
        """From where the state stands to the end.

        Raises:
            InputError: too many steps without a finite gradient; the disk is full.
            KeyboardInterrupt: after a checkpoint.
        """
        spec, state, learner = self.spec, self.state, self.learner
        if not state.begun:
            self._begin()
        with remembered() as interrupted:
            while not state.stopped:
                beta = beta_at(spec.schedule, state.epoch, spec.seed)
                weights = weights_at(spec.loss, spec.schedule, state.epoch, beta)
                if state.step == 0:
                    self._look(beta)
                while state.step < spec.steps_per_epoch:
                    first = self.ranks.first and state.step == 0
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
            who = ", ".join(guilty_of(self.learner, recording, 0, beta))
            raise InputError("loss", "a finite total", f"{float(losses.total.detach()):g}; not finite: {who}")
        check_start(losses, prediction)
        self._tell(probes.first_loss(float(losses.total.detach())))
        if self.ranks.first:
            if not self.spec.fresh:
                self._say("[VAL] on the scenes that are trained on, since fresh is off")
            first = validate(self.learner, self.scenes)
            self._tell(report(first, None, self.spec.network.sources_max, self._snapshots))
        self.state.begun = True
        self._save()

    def _look(self, beta: float) -> None:
        """The probes at the head of an epoch."""
        if not self.ranks.first:
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
            raise culprit(self.learner, self.scenes, bad[-1] if bad else records[-1], state.skipped)

    def _close_epoch(self, beta: float) -> None:
        """Validate, log, keep the weights, and decide whether to go on."""
        spec, state = self.spec, self.state
        stop = False
        if self.ranks.first:
            now = validate(self.learner, self.scenes)
            stop = self._judge(now, beta)
        state.stopped = self.ranks.told(stop)
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
        if self.ranks.first:
            self.state.scaler = self.learner.scaler.state_dict()
            self.state.log_bytes = self.run.log_size()
            save_checkpoint(self.run, self.spec, self.state, self.learner.tensors())
        self._saved = time.monotonic()

    def _due(self) -> bool:
        """Whether it is time for a checkpoint."""
        if not self.ranks.first:
            return False
        steps, minutes = self.spec.save_steps, self.spec.save_minutes
        return (steps > 0 and self.state.step % steps == 0) or time.monotonic() - self._saved > 60 * minutes

    def _tell(self, found: Report) -> None:
        """A line for the log and one for the console."""
        if self.ranks.first:
            self._write([found.record(self.state.epoch)])
            for line in found.lines:
                self._say(line)

    def _write(self, records: list[dict[str, object]]) -> None:
        if self.ranks.first:
            self.run.log(records)
            if self.record is not None:
                for record in records:
                    self.record(record)

    def _show(self) -> None:
        if self.ranks.first:
            spec, state = self.spec, self.state
            done = state.epoch * spec.scenes_per_epoch + state.step * spec.batch * spec.accumulation
            self._progress(done, spec.schedule.epochs * spec.scenes_per_epoch)

    @property
    def _snapshots(self) -> int:
        return self.spec.system.codebook.snapshots
