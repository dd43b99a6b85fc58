"""Three gates before a long training: ``python benchmarks/gates.py [--gates litmus overfit generalise]``.

* ``litmus``: five steps on one batch, beta from 0 to 0.3, take a fifth off its loss at beta = 0; without a
  learning rate they do not.
* ``overfit``: 512 scenes, seen 30 times, are learned: their loss falls by 30 % at least.
* ``generalise``: as many epochs of new scenes bring the loss of the validation down by 15 % at least, and not
  a tenth above that of the scenes of the last epoch.

Losses are compared at the same beta and weights, those of the end of the training. Each gate writes its
figures to ``docs/measured/gate_NAME.json``, and its epochs to ``gate_NAME.csv``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rismusic.learn.learner import Learner
from rismusic.learn.litmus import LEAST_FALL, litmus
from rismusic.learn.ranks import Ranks
from rismusic.learn.runfolder import RunFolder
from rismusic.learn.scenes import Scenes
from rismusic.learn.schedules import weights_at
from rismusic.learn.spec import TrainSpec
from rismusic.learn.trainer import Trainer
from rismusic.learn.validation import validate

MEASURED = Path(__file__).parent.parent / "docs" / "measured"
SCENES, EPOCHS = 512, 30
OVERFIT_FALL, GENERALISE_FALL, GAP = 0.3, 0.15, 0.1

Figures = dict[str, Any]


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def loss_of(learner: Learner, scenes: Scenes, epoch: int) -> float:
    """Loss of the training scenes of an epoch, at the beta and weights of the end, averaged weights."""
    spec = learner.spec
    weights = weights_at(spec.loss, spec.schedule, spec.schedule.epochs - 1, spec.schedule.beta)
    total = 0.0
    for step in range(spec.steps_per_epoch):
        for recording in scenes.step(epoch, step):
            prediction = learner.predict(recording)
            losses = learner.judged(prediction, recording, spec.schedule.beta, weights)
            total += float(losses.total) * len(recording)
    return total / spec.scenes_per_epoch


def gate_litmus() -> tuple[Figures, list[Figures]]:
    spec = TrainSpec.tiny()
    result = litmus(spec)
    still = litmus(spec.replace(backbone_learning_rate=0.0, head_learning_rate=0.0))
    figures = {
        "before": result.before,
        "after": result.after,
        "fall": result.fall,
        "fall_at_rate_0": still.fall,
    }
    return figures | {"passed": result.passed and not still.passed, "least_fall": LEAST_FALL}, []


def trained(spec: TrainSpec) -> tuple[Figures, list[Figures]]:
    """Losses before and after a training, and what was logged of its epochs."""
    ranks = Ranks(device=device())
    scenes = Scenes(spec, ranks)
    fresh = Learner(spec, ranks)
    first = validate(fresh, scenes)
    figures: Figures = {"loss_before": loss_of(fresh, scenes, 0), "validation_before": first.loss}
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "run")
        run.create(spec)
        started = time.perf_counter()
        trainer = Trainer(spec, run, ranks, say=print)
        trainer.train()
        figures["scenes_per_s"] = (
            spec.scenes_per_epoch * spec.schedule.epochs / (time.perf_counter() - started)
        )
        epochs: list[Any] = run.records("epoch")
    figures["loss_after"] = loss_of(trainer.learner, scenes, spec.schedule.epochs - 1)
    figures["validation_after"] = epochs[-1]["validation"]["loss"]
    figures |= {f"hit_{name}_before": score.recall for name, score in first.scores.items()}
    rows = []
    for line in epochs:
        held, scores = line["validation"], line["validation"]["scores"]
        rows.append(
            {
                "epoch": line["epoch"],
                "beta": line["beta"],
                "training_loss": line["training"]["loss"],
                "gradient": line["training"]["gradient"],
                "clipped": line["training"]["clipped"],
                "validation_loss": held["loss"],
                **{
                    f"validation_{name}": held["terms"][name] for name in ("covariance_predicted", "heat_map")
                },
                **{f"hit_{name}": score["recall"] for name, score in scores.items()},
                "count_right": scores["blend"]["count_right"],
                "gospa_m": scores["blend"]["gospa_m"],
            }
        )
    return figures, rows


def gate_overfit() -> tuple[Figures, list[Figures]]:
    spec = TrainSpec.tiny().replace(
        fresh=False, scenes_per_epoch=SCENES, schedule=TrainSpec.tiny().schedule.replace(epochs=EPOCHS)
    )
    figures, rows = trained(spec)
    figures["fall"] = 1 - figures["loss_after"] / figures["loss_before"]
    return figures | {"least_fall": OVERFIT_FALL, "passed": figures["fall"] >= OVERFIT_FALL}, rows


def gate_generalise() -> tuple[Figures, list[Figures]]:
    spec = TrainSpec.tiny().replace(
        scenes_per_epoch=SCENES,
        schedule=TrainSpec.tiny().schedule.replace(epochs=EPOCHS),
        validation_scenes=512,
    )
    figures, rows = trained(spec)
    figures["fall"] = 1 - figures["validation_after"] / figures["validation_before"]
    figures["gap"] = figures["validation_after"] / figures["loss_after"] - 1
    passed = figures["fall"] >= GENERALISE_FALL and figures["gap"] <= GAP
    return figures | {"least_fall": GENERALISE_FALL, "largest_gap": GAP, "passed": passed}, rows


GATES: dict[str, Callable[[], tuple[Figures, list[Figures]]]] = {
    "litmus": gate_litmus,
    "overfit": gate_overfit,
    "generalise": gate_generalise,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gates", nargs="+", choices=GATES, default=list(GATES))
    parser.add_argument("--out", type=Path, default=MEASURED)
    chosen = parser.parse_args()
    for name in chosen.gates:
        figures, rows = GATES[name]()
        threads = f"{torch.get_num_threads()} threads, {os.cpu_count()} cores, {device()}"
        machine = f"torch {torch.__version__}, {threads}"
        record = {"gate": name, **figures, "machine": machine, "load": round(os.getloadavg()[0], 1)}
        (chosen.out / f"gate_{name}.json").write_text(json.dumps(record, indent=1) + "\n")
        if rows:
            with (chosen.out / f"gate_{name}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(
                    {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
                )
        print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
