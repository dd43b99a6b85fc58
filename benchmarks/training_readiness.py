"""Readiness tests before a long training.

Run ``python benchmarks/training_readiness.py [--tests litmus overfit memorize generalise]``.

* ``litmus``: five steps on one batch, with beta from 0 to 0.3, reduce its loss at beta = 0 by a fifth. At a
  learning rate of 0 they do not.
* ``overfit``: after 30 epochs on the same 512 scenes the training loss is below 0.2, and the validation loss
  on the same scenes below 0.5.
* ``memorize``: the same network continues with these scenes. The error of R_pred against R_true ends below
  0.1, and MUSIC on R_pred alone (no R_samp, no NF-MLE, K from the network) has an F1 above 0.95.
* ``generalise``: the preset ``tiny`` on new scenes in every step. On 500 unseen scenes of three sources at
  10 dB, without NF-MLE, it misses at most half as many sources as MUSIC on R_samp.

The budgets are 15 minutes on two cores for ``overfit`` and ``memorize`` together and 30 minutes for
``generalise``, counted in processor time of this process (2 x 15 x 60 s, 2 x 30 x 60 s), because other
processes may run at the same time. Each test writes its results to ``docs/measured/readiness_NAME.json`` and
its epochs to ``readiness_NAME.csv``.
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
from rismusic.io import Recording
from rismusic.metrics import match
from rismusic.nn.distributed import ProcessGroup
from rismusic.nn.learner import Learner
from rismusic.nn.losses import Targets
from rismusic.nn.monitors import LEAST_FALL, litmus
from rismusic.nn.run_folder import RunFolder
from rismusic.nn.spec import NetworkSpec, ScheduleSpec, TrainSpec
from rismusic.nn.train import start_from, train
from rismusic.nn.validation import sources_of
from rismusic.simulation.simulator import Simulator
from rismusic.sources import Sources
from rismusic.spec import SystemSpec

MEASURED = Path(__file__).parent.parent / "docs" / "measured"
CORES = 2
OVERFIT_S, GENERALISE_S = 15 * 60, 30 * 60
TRAINING_LOSS, VALIDATION_LOSS, ERROR, F1 = 0.2, 0.5, 0.1, 0.95
RATIO = 0.5
SOURCES, SNR_DB, SCENES = 3, 10.0, 500
MEMORIZE_EPOCHS = 20
# Network and rates that memorize the scenes.
OVERFIT_NETWORK = NetworkSpec(stages=2, depth=2, width=96)
OVERFIT_BATCH, OVERFIT_RATES, MEMORIZE_RATES = 8, (2e-3, 4e-3), (1e-3, 2e-3)

Figures = dict[str, Any]


def run_litmus(_: Path) -> tuple[Figures, list[Figures]]:
    """Five steps on one batch."""
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


def run_overfit(work: Path) -> tuple[Figures, list[Figures]]:
    """512 scenes, 30 epochs."""
    run = work / "overfit"
    figures = trained(overfit_spec(30, OVERFIT_RATES), run)
    rows = epochs_of(run)
    figures |= {"training_loss": rows[-1]["training_loss"], "validation_loss": rows[-1]["validation_loss"]}
    passed = figures["training_loss"] < TRAINING_LOSS and figures["validation_loss"] < VALIDATION_LOSS
    return figures | {"training_below": TRAINING_LOSS, "validation_below": VALIDATION_LOSS} | {
        "passed": passed and figures["processor_s"] <= CORES * OVERFIT_S
    }, rows


def run_memorize(work: Path) -> tuple[Figures, list[Figures]]:
    """The same scenes, on from the weights of ``overfit``."""
    run = work / "memorize"
    figures = trained(
        overfit_spec(MEMORIZE_EPOCHS, MEMORIZE_RATES), run, start=work / "overfit" / "last.safetensors"
    )
    rows = epochs_of(run)
    figures |= {name: rows[-1][name] for name in ("error_predicted", "f1_predicted", "training_loss")}
    passed = figures["error_predicted"] < ERROR and figures["f1_predicted"] > F1
    return figures | {"error_below": ERROR, "f1_above": F1, "passed": passed}, rows


def run_generalise(work: Path) -> tuple[Figures, list[Figures]]:
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
    "litmus": run_litmus,
    "overfit": run_overfit,
    "memorize": run_memorize,
    "generalise": run_generalise,
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
    train(spec, out=run, start=start, say=print)
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
    found = sources_of(covariance, count, learner.grid)
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
            (chosen.out / f"readiness_{name}.json").write_text(json.dumps(record, indent=1) + "\n")
            if rows:
                write_rows(chosen.out / f"readiness_{name}.csv", rows)
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
