"""Speed of a training step and the share of each part: ``python benchmarks/training.py [--json FILE]``."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from measure import peak_memory_mib, rate, report
from rismusic.nn.data import TrainingScenes
from rismusic.nn.distributed import ProcessGroup
from rismusic.nn.learner import Learner
from rismusic.nn.losses import Targets, total_loss
from rismusic.nn.network import Network
from rismusic.nn.spec import NetworkSpec, TrainSpec

SIZES = {"tiny": NetworkSpec.tiny(), "base": NetworkSpec()}
STEPS = 6


class Clock:
    """Seconds spent on each part; synchronises the device, so that parts do not overlap."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, dict[str, float]()

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Count what is done meanwhile for this part."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


def shares(learner: Learner, scenes: TrainingScenes) -> dict[str, float]:
    """Seconds per step of each part: what :meth:`Learner.step` does, taken apart."""
    weights, parameters = learner.spec.loss.weights, list(learner.weights.values())
    network = learner.network
    assert isinstance(network, Network)
    for warm in (True, False):
        clock = Clock(learner.group.device)
        for step in range(1 if warm else STEPS):
            with clock.on("simulation"):
                recording = next(scenes.step(0, step))
            with clock.on("front end"):
                looked = network.initial_statistics(recording)
            with clock.on("network, forward"):
                prediction = network.predict(*looked)
            with clock.on("targets and losses"):
                targets = Targets.of(recording, learner.grid)
                losses = total_loss(
                    prediction, targets, learner.spec.loss, beta=0.3, weights=weights, oracle=False
                )
            with clock.on("backward"):
                losses.total.backward()
            with clock.on("clipping and optimizer"):
                torch.nn.utils.clip_grad_norm_(parameters, learner.spec.clip_norm)
                learner.optimizer.step()
                learner.optimizer.zero_grad()
    return {part: seconds / STEPS for part, seconds in clock.seconds.items()}


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: dict[str, float | str] = {"device": str(device)}
    for name, size in SIZES.items():
        spec = TrainSpec(network=size, batch=32, scenes_per_epoch=32 * 1000)
        learner, scenes = (
            Learner(spec, ProcessGroup(device=device)),
            TrainingScenes(spec, ProcessGroup(device=device)),
        )
        count = itertools.count()

        def step(
            learner: Learner = learner, scenes: TrainingScenes = scenes, count: Iterator[int] = count
        ) -> int:
            learner.step(scenes.step(0, next(count)), 0.3, learner.spec.loss.weights)
            if device.type == "cuda":
                torch.cuda.synchronize()
            return learner.spec.batch

        rows[f"{name}: parameters"] = sum(weight.numel() for weight in learner.weights.values())
        rows[f"{name}: training, scenes/s"] = rate(step, seconds=10.0)
        parts = shares(learner, scenes)
        for part, seconds in parts.items():
            rows[f"{name}: share of {part}, %"] = 100 * seconds / sum(parts.values())
    rows["peak memory, MiB"] = peak_memory_mib()
    report("training step, batches of 32 scenes of the default system", rows)


if __name__ == "__main__":
    main()
