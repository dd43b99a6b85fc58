"""Console output of trainings with planted faults: ``python benchmarks/training_faults.py``.

Each fault is patched into a healthy training. The output has each finding outside its limit once, and
the error with which the training stops, if it does.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from rismusic.errors import InputError
from rismusic.io import Recording
from rismusic.nn.data import TrainingScenes
from rismusic.nn.monitors import overfit_one_batch
from rismusic.nn.network import Network, Prediction
from rismusic.nn.run_folder import RunFolder
from rismusic.nn.spec import TermName, TrainSpec
from rismusic.nn.train import Trainer
from training_robustness import SMALL

OUT = Path(__file__).parent.parent / "docs" / "measured" / "training_faults.txt"
HEALTHY = SMALL.replace(
    schedule=SMALL.schedule.replace(epochs=2),
    scenes_per_epoch=128,
    validation_scenes=16,
    save_steps=0,
    skipped_max=3,
    clip_norm=10.0,
)
Patches = list[Any]


def planted(value: float, steps: int) -> Patches:
    """Replace one sample of the first scene in the first steps of the second epoch."""
    made = TrainingScenes.step

    def faulty(self: TrainingScenes, epoch: int, step: int) -> Iterator[Recording]:
        for recording in made(self, epoch, step):
            if epoch == 1 and step < steps:
                recording.snapshots[0, 0, 0] = value
            yield recording

    return [patch.object(TrainingScenes, "step", faulty)]


def predicting(change: Callable[[Prediction], Prediction], epoch: int = 0) -> Patches:
    """Change the network's output, from an epoch on."""
    forward, look = Network.forward, Trainer._probe
    now = 0

    def seen(self: Trainer, beta: float, weights: Mapping[TermName, float]) -> None:
        nonlocal now
        now = self.state.epoch
        look(self, beta, weights)

    def changed(self: Network, recording: Recording) -> Prediction:
        prediction = forward(self, recording)
        return change(prediction) if now >= epoch else prediction

    return [patch.object(Network, "forward", changed), patch.object(Trainer, "_probe", seen)]


def detached(prediction: Prediction) -> Prediction:
    return replace(prediction, range_factor=prediction.range_factor.detach())


def constant(prediction: Prediction) -> Prediction:
    """The prediction for the first scene is used for all scenes; gradients stay as they are."""
    factors = {
        name: (value := getattr(prediction, name)) + (value[:1] - value).detach()
        for name in ("angle_factor", "range_factor", "count_logits")
    }
    return replace(prediction, **factors)


def frozen_head() -> Patches:
    made = Trainer.__init__

    def frozen(self: Trainer, *given: Any, **named: Any) -> None:
        made(self, *given, **named)
        self.learner.network.count.requires_grad_(False)

    return [patch.object(Trainer, "__init__", frozen)]


RATE_0 = HEALTHY.replace(backbone_learning_rate=0.0, head_learning_rate=0.0)
CASES: dict[str, tuple[TrainSpec, Callable[[], Patches]]] = {
    "no fault": (HEALTHY, list),
    "a NaN in one snapshot of one scene": (HEALTHY, lambda: planted(torch.nan, 1)),
    "a NaN in every step of an epoch": (HEALTHY, lambda: planted(torch.nan, HEALTHY.steps_per_epoch)),
    "an infinity in one snapshot of one scene": (HEALTHY, lambda: planted(torch.inf, 1)),
    "an infinity in every step of an epoch": (HEALTHY, lambda: planted(torch.inf, HEALTHY.steps_per_epoch)),
    "a frozen head (the number of sources)": (HEALTHY, frozen_head),
    "a detached factor (range), from the start": (HEALTHY, lambda: predicting(detached)),
    "a detached factor (range), from the second epoch on": (HEALTHY, lambda: predicting(detached, 1)),
    "the same prediction for every scene": (HEALTHY, lambda: predicting(constant)),
    "learning rate 0": (RATE_0, list),
    "clip_norm = 0.001": (HEALTHY.replace(clip_norm=1e-3), list),
    "clip_norm = 1e-12": (HEALTHY.replace(clip_norm=1e-12), list),
}


def messages_of(spec: TrainSpec, patches: Patches) -> list[str]:
    """Findings outside their limits, with the first epoch of each, and how the training ended."""
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for each in patches:
            stack.enter_context(each)
        run = RunFolder(Path(folder) / "run")
        run.create(spec)

        def keep(line: str) -> None:
            if "] ! " in line:
                # The same finding with another value counts once.
                found.setdefault(line.split(" = ")[0], f"epoch {trainer.state.epoch}  {line}")

        trainer = Trainer(spec, run, log=keep)
        try:
            trainer.train()
        except InputError as error:
            return [*found.values(), f"error: {error}"]
        return [
            *found.values(),
            f"(all {trainer.state.epoch} epochs done, {trainer.state.skipped} steps skipped)",
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    text = ""
    for name, (spec, fault) in CASES.items():
        lines = "\n".join(messages_of(spec, fault()))
        text += f"== {name}\n{lines}\n\n"
        print(text.rsplit("== ", 1)[1])
    text += "== the overfit_one_batch, with and without a learning rate\n"
    for spec in (HEALTHY, RATE_0):
        result = overfit_one_batch(spec)
        verdict = "passed" if result.passed else "failed"
        text += f"loss {result.before:.4f} -> {result.after:.4f}, {result.decrease:.1%} less: {verdict}\n"
    out.write_text(text)


if __name__ == "__main__":
    main()
