"""Short trainings that a network must pass before a long one: ``python benchmarks/learning_tests.py``.

``--tests`` selects some of them:

* ``litmus``: five steps on one batch, beta from 0 to 0.3, take a fifth off its loss at beta = 0; without a
  learning rate they do not.
* ``overfit``: 512 scenes, seen 30 times: the training loss ends below 0.2, and the loss of a validation on
  the same scenes below 0.5.
* ``overfit_continued``: the same network goes on with these scenes; the error of R_pred against R_true ends
  below 0.1, and MUSIC on R_pred alone (no R_samp, no NF-MLE, K from the network) has an F1 above 0.95.
* ``generalise``: the preset ``tiny`` on scenes that are always new; on 500 unseen ones of three sources at
  10 dB, without NF-MLE, it misses at most half of what MUSIC on R_samp misses.

The budgets are those of two cores, 15 minutes for ``overfit`` and ``overfit_continued`` together and 30
minutes for ``generalise``, counted in seconds of processor time of this process (2 x 15 x 60, 2 x 30 x 60),
since other processes may be at work beside it. Each test writes its results to
``docs/measured/learning_test_NAME.json``, and its epochs to ``learning_test_NAME.csv``.
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

from rismusic.benchmark.summary import share_interval
from rismusic.covariance import Covariance, recording_covariance
from rismusic.estimation.maximum_likelihood import nfmle
from rismusic.estimation.spectra import music, rap_music_sources
from rismusic.io import Recording
from rismusic.metrics import match
from rismusic.nn.distributed import ProcessGroup
from rismusic.nn.learner import Learner
from rismusic.nn.losses import Targets
from rismusic.nn.monitors import MIN_DECREASE, overfit_one_batch
from rismusic.nn.run_folder import RunFolder
from rismusic.nn.spec import NetworkSpec, ScheduleSpec, TrainSpec
from rismusic.nn.train import start_from, train
from rismusic.simulation.simulator import Simulator
from rismusic.sources import Sources
from rismusic.spec import SystemSpec

MEASURED = Path(__file__).parent.parent / "docs" / "measured"
CORES = 2
OVERFIT_S, GENERALISE_S = 15 * 60, 30 * 60
TRAINING_LOSS, VALIDATION_LOSS, ERROR, F1 = 0.2, 0.5, 0.1, 0.95
RATIO = 0.5
SOURCES, SNR_DB, SCENES = 3, 10.0, 500
BY_HEART_EPOCHS = 20
# The fixed scenes of the overfitting tests.
OVERFIT_NETWORK = NetworkSpec(stages=2, depth=2, width=96)
OVERFIT_BATCH, OVERFIT_RATES, BY_HEART_RATES = 8, (2e-3, 4e-3), (1e-3, 2e-3)

Figures = dict[str, Any]


def learning_test_litmus(_: Path) -> tuple[Figures, list[Figures]]:
    """Five steps on one batch."""
    spec = TrainSpec.tiny()
    result = overfit_one_batch(spec)
    still = overfit_one_batch(spec.replace(backbone_learning_rate=0.0, head_learning_rate=0.0))
    figures = {
        "before": result.before,
        "after": result.after,
        "fall": result.decrease,
        "fall_at_rate_0": still.decrease,
    }
    return figures | {"passed": result.passed and not still.passed, "least_fall": MIN_DECREASE}, []


def learning_test_overfit(work: Path) -> tuple[Figures, list[Figures]]:
    """512 scenes, 30 epochs."""
    run = work / "overfit"
    figures = trained(overfit_spec(30, OVERFIT_RATES), run)
    rows = epochs_of(run)
    figures |= {"training_loss": rows[-1]["training_loss"], "validation_loss": rows[-1]["validation_loss"]}
    passed = figures["training_loss"] < TRAINING_LOSS and figures["validation_loss"] < VALIDATION_LOSS
    return figures | {"training_below": TRAINING_LOSS, "validation_below": VALIDATION_LOSS} | {
        "passed": passed and figures["processor_s"] <= CORES * OVERFIT_S
    }, rows


def learning_test_overfit_continued(work: Path) -> tuple[Figures, list[Figures]]:
    """The same scenes, on from the weights of ``overfit``."""
    run = work / "overfit_continued"
    figures = trained(
        overfit_spec(BY_HEART_EPOCHS, BY_HEART_RATES), run, start=work / "overfit" / "last.safetensors"
    )
    rows = epochs_of(run)
    figures |= {name: rows[-1][name] for name in ("error_predicted", "f1_predicted", "training_loss")}
    passed = figures["error_predicted"] < ERROR and figures["f1_predicted"] > F1
    return figures | {"error_below": ERROR, "f1_above": F1, "passed": passed}, rows


def learning_test_generalise(work: Path) -> tuple[Figures, list[Figures]]:
    """New scenes in each epoch; then misses on unseen ones, beside those of MUSIC on R_samp."""
    spec = TrainSpec.tiny()
    run = work / "generalise"
    figures = trained(spec, run)
    recording = Simulator(SystemSpec(sources=SOURCES, snr_db=SNR_DB), seed=spec.seed, split="test").scenes(
        0, SCENES
    )
    learner = Learner(spec)
    misses: Figures = {"MUSIC on R_samp": missed(learner, recording, recording_covariance(recording))}
    misses["untrained network"] = missed(learner, recording, blended(learner, recording))
    start_from(run / "last.safetensors", learner)
    misses["trained network"] = missed(learner, recording, blended(learner, recording))
    ratio = misses["trained network"]["misses"] / misses["MUSIC on R_samp"]["misses"]
    figures |= {"misses": misses, "sources": SOURCES, "snr_db": SNR_DB, "test_scenes": SCENES, "ratio": ratio}
    return figures | {"ratio_at_most": RATIO} | {
        "passed": ratio <= RATIO and figures["processor_s"] <= CORES * GENERALISE_S
    }, epochs_of(run)


TESTS: dict[str, Callable[[Path], tuple[Figures, list[Figures]]]] = {
    "litmus": learning_test_litmus,
    "overfit": learning_test_overfit,
    "overfit_continued": learning_test_overfit_continued,
    "generalise": learning_test_generalise,
}


def overfit_spec(epochs: int, rates: tuple[float, float]) -> TrainSpec:
    """All scenes the same in each epoch, and validated on; small steps in number, large in size."""
    return TrainSpec(
        network=OVERFIT_NETWORK,
        schedule=ScheduleSpec(epochs=epochs),
        fresh=False,
        scenes_per_epoch=512,
        batch=OVERFIT_BATCH,
        backbone_learning_rate=rates[0],
        head_learning_rate=rates[1],
        weight_decay=0.0,
        clip_norm=10.0,
        average_decay=0.98,
        validation_scenes=512,
        scored_scenes=128,
    )


def trained(spec: TrainSpec, run: Path, start: Path | None = None) -> Figures:
    """Train, and say what it took."""
    wall, processor = time.perf_counter(), time.process_time()
    train(spec, out=run, start=start, log=print)
    scenes = spec.scenes_per_epoch * spec.schedule.epochs
    seconds = time.process_time() - processor
    return {
        "scenes": scenes,
        "epochs": spec.schedule.epochs,
        "processor_s": round(seconds),
        "wall_s": round(time.perf_counter() - wall),
        "scenes_per_processor_s": scenes / seconds,
    }


def epochs_of(run: Path) -> list[Figures]:
    """What was logged of each epoch, as rows of a table."""
    rows = []
    for line in RunFolder(run).records("epoch"):
        held: Any = line["validation"]
        training: Any = line["training"]
        scores = held["scores"]
        rows.append(
            {
                "epoch": line["epoch"],
                "beta": line["beta"],
                "training_loss": training["loss"],
                "gradient": training["gradient"],
                "clipped": training["clipped"],
                "validation_loss": held["loss"],
                "heat_map": held["terms"]["heat_map"],
                "error_predicted": held["covariance"]["error_predicted"],
                "f1_predicted": scores["predicted"]["f1"],
                "f1_blend": scores["blend"]["f1"],
                "count_right": scores["blend"]["count_right"],
            }
        )
    return rows


@torch.no_grad()
def blended(learner: Learner, recording: Recording) -> Covariance:
    """R_blend as in inference."""
    targets = Targets.of(recording, learner.grid)
    prediction = learner.predict(recording)
    return prediction.blended(targets.sample, targets.conditioning, learner.spec.schedule.beta)


def missed(learner: Learner, recording: Recording, covariance: Covariance) -> Figures:
    """Share of the sources that MUSIC misses, K known, as it is and with NF-MLE behind it."""
    count = torch.full((len(recording),), SOURCES)
    found, _ = rap_music_sources(music(covariance, count), learner.grid, count)
    polished = nfmle(recording, found, learner.grid.volume, criterion="unconditional").sources
    return {**_share(recording, found, ""), **_share(recording, polished, "_with_nfmle")}


def _share(recording: Recording, found: Sources, name: str) -> Figures:
    assert recording.truth is not None
    matched = match(recording.truth, found)
    whole = recording.truth.active.sum(-1).double().numpy()
    part = whole - matched.hit.sum(-1).double().numpy()
    low, high = share_interval(part, whole)
    return {f"misses{name}": part.sum() / whole.sum(), f"interval{name}": [float(low), float(high)]}


def main() -> None:
    """Run the tests and write their results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tests", nargs="+", choices=TESTS, default=list(TESTS))
    parser.add_argument("--out", type=Path, default=MEASURED)
    parser.add_argument("--work", type=Path, help="folder for the runs; none: a temporary one")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = chosen.work or Path(temporary)
        for name in chosen.tests:
            figures, rows = TESTS[name](work)
            threads = f"{torch.get_num_threads()} threads, {os.cpu_count()} cores, {ProcessGroup().device}"
            machine = f"torch {torch.__version__}, {threads}"
            record = {"test": name, **figures, "machine": machine, "load": round(os.getloadavg()[0], 1)}
            (chosen.out / f"learning_test_{name}.json").write_text(json.dumps(record, indent=1) + "\n")
            if rows:
                write_rows(chosen.out / f"learning_test_{name}.csv", rows)
            print(json.dumps(record, indent=1))


def write_rows(path: Path, rows: list[Figures]) -> None:
    """A table of numbers, with as many digits as they are worth."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
        )


if __name__ == "__main__":
    main()
