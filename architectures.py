"""Three architectures for the same processor time: ``python architectures.py train|bench|collect NAME ...``.

An experiment, not a part of the package: each architecture takes the place of
:class:`rismusic.learn.network.Network` in this process, so that the trainer's losses, its validation and the
hybrid locator work on it unchanged.

* ``train NAME --minutes 20 --runs FOLDER``: the learner of the trainer on fresh scenes of the default system,
  for a given processor time of one thread. Learning rate, beta and weights of the losses follow the share of
  that time that is spent, as they follow the share of the steps in ``rismusic train``. Validations are not
  counted.
* ``measure NAME --runs FOLDER``: misses on the scenes of ``rismusic bench``.
* ``collect all --runs FOLDER``: the logs and misses in FOLDER/NAME as ``docs/measured/architectures.csv``.
* ``compare all --runs FOLDER``: differences of misses, scene by scene.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import rismusic.hybrid.trained
import rismusic.learn.learner
import rismusic.learn.weights
from rismusic.evaluate.bench.interval import share_interval
from rismusic.evaluate.bench.spec import BenchSpec
from rismusic.evaluate.metrics import match
from rismusic.hybrid.locate import locate
from rismusic.learn.learner import Learner
from rismusic.learn.losses.heatmap import heat_map_divergence, heat_map_target
from rismusic.learn.network import Network
from rismusic.learn.scenes import Scenes
from rismusic.learn.schedules import beta_at, learning_rate_factor, weights_at
from rismusic.learn.spec import TrainSpec
from rismusic.learn.validation import validate
from rismusic.learn.weights import load_network, save_network
from rismusic.simulator import Simulator

ROOT = Path(__file__).parent
FINE = 100_000
TERMS = ("covariance", "covariance_predicted", "heat_map", "count")
NAMES = ("fixed_point", "convolutions", "attention")


def chosen(name: str) -> type[Network]:
    if name == "fixed_point":
        return Network
    if name == "convolutions":
        from architecture_convolutions import Convolutions

        return Convolutions
    from architecture_attention import TokenAttention

    return TokenAttention


def install(name: str) -> None:
    """Put an architecture in the place of the package's."""
    network = chosen(name)
    for module in (rismusic.learn.learner, rismusic.learn.weights, rismusic.hybrid.trained):
        module.Network = network  # type: ignore[attr-defined]


class Timed(Learner):
    """A learner whose learning rate follows the time that was spent."""

    progress = 0.0

    def _factor(self) -> Tensor:
        step = min(FINE - 1, int(self.progress * FINE))
        return torch.tensor(learning_rate_factor(self.spec.schedule, step, FINE))


def settings(rate: float) -> TrainSpec:
    recipe = tomllib.loads((ROOT / "recipes" / "ideal.toml").read_text())
    return TrainSpec(**recipe).replace(backbone_learning_rate=rate, head_learning_rate=rate)


def train(name: str, rate: float, minutes: float, out: Path, validations: int) -> None:
    install(name)
    out.mkdir(parents=True, exist_ok=True)
    spec = settings(rate)
    learner, scenes = Timed(spec), Scenes(spec)
    parameters = sum(weight.numel() for weight in learner.weights.values())
    log = (out / "log.jsonl").open("w")

    def say(**record: object) -> None:
        print(json.dumps(record), file=log, flush=True)
        print({key: value for key, value in record.items() if key != "validation"}, flush=True)

    say(name=name, rate=rate, minutes=minutes, parameters=parameters)
    total, spent, step, told, validated = 60 * minutes, 0.0, 0, 0, 0
    sums: dict[str, float] = {}
    while spent < total:
        begin = time.process_time()
        learner.progress = spent / total
        learner._schedule()
        epoch = min(spec.schedule.epochs - 1, int(learner.progress * spec.schedule.epochs))
        beta = beta_at(spec.schedule, epoch, spec.seed)
        weights = weights_at(spec.loss, spec.schedule, epoch, beta)
        numbers = learner.step(scenes.step(*divmod(step, spec.steps_per_epoch)), beta, weights)
        step += 1
        for key, value in numbers.items():
            sums[key] = sums.get(key, 0.0) + float(value)
        spent += time.process_time() - begin
        if spent // 20 > told or spent >= total:
            told, count = int(spent // 20), max(1, step - sums.pop("_from", 0))
            say(spent=spent, scenes=step * spec.batch, **{key: value / count for key, value in sums.items()})
            sums = {"_from": step}
        if spent * validations / total >= validated + 1 or spent >= total:
            validated = int(spent * validations / total)
            now = validate(learner, scenes)
            say(
                spent=spent,
                scenes=step * spec.batch,
                loss=now.loss,
                **{f"validation_{key}": now.terms[key] for key in TERMS},
                blend_recall=now.scores["blend"].recall,
                validation=now.record(),
            )
            save_network(out / "last.safetensors", learner.network, learner.average, training=spec)


BENCHED: dict[str, tuple[str, dict[str, object]]] = {
    "hybrid:raw": ("hybrid:raw", {}),
    "hybrid:raw untrained": ("hybrid:raw", {"untrained": True}),
    "hybrid": ("hybrid", {}),
    "hybrid:raw without R_samp": ("hybrid:raw", {"beta": 0.0}),
}


@torch.no_grad()
def last_heat_map(runs: Path) -> float:
    """The loss of the last stage's heat map on the validation; the total has the mean over all stages."""
    network = load_network(runs / "last.safetensors")
    spec = settings(3e-3)
    values = []
    for recording in Scenes(spec).validation():
        logits = network(recording).grid_logits
        target = heat_map_target(recording.truth, network.grid, spec.loss.heat_map_width)
        values.append(heat_map_divergence(logits[:, -1], target, network.grid))
    return float(torch.cat(values).mean())


def measure(name: str, runs: Path) -> None:
    """Misses on the scenes of ``rismusic bench``, counted as it does, with its intervals; no oracles."""
    install(name)
    (runs / "heat_map.json").write_text(json.dumps(last_heat_map(runs)))
    with (runs / "misses.jsonl").open("w") as file:
        for said, (method, changes) in BENCHED.items():
            spec = BenchSpec(methods=(method,), sources=(3, 5), snr_db=(0.0, 5.0), scenes=100)
            search = spec.search(method).replace(weights=str(runs / "last.safetensors"))
            search = search.replace(hybrid=search.hybrid.replace(**changes))
            for cell in spec.cells():
                made = Simulator(cell.system, seed=spec.seed, split=spec.split).scenes(0, spec.scenes)
                begin = time.process_time()
                blind = replace(made, truth=None, noise_variance=None)
                found = locate(blind, sources=cell.sources, spec=search).sources
                took = time.process_time() - begin
                missed = (~match(made.truth, found).hit).sum(-1).numpy().astype(float)
                low, high = share_interval(missed, np.full_like(missed, cell.sources))
                record = {
                    "method": said,
                    "sources": cell.sources,
                    "snr_db": cell.snr_db,
                    "scenes": spec.scenes,
                    "misses": float(missed.sum()) / (cell.sources * spec.scenes),
                    "misses_low": float(low),
                    "misses_high": float(high),
                    "missed": missed.astype(int).tolist(),
                }
                print(json.dumps(record), file=file, flush=True)
                print(record, f"{took:.1f} s", flush=True)


def collect(runs: Path, out: Path, minutes: float) -> None:
    """Logs and misses of all architectures as one table, from the validation after so many minutes."""
    rows = []
    for folder in (runs / name for name in NAMES):
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        validated = [line for line in log if "validation" in line]
        end = min(validated, key=lambda line: abs(line["spent"] - 60 * minutes))
        shared = {
            "architecture": folder.name,
            "parameters": log[0]["parameters"],
            "learning_rate": log[0]["rate"],
            "minutes": end["spent"] / 60,
            "of_minutes": log[0]["minutes"],
            "scenes_seen": end["scenes"],
            "scenes_per_s": end["scenes"] / end["spent"],
            "validation_loss": end["loss"],
            "validation_heat_map": end["validation_heat_map"],
            "validation_heat_map_last": json.loads((folder / "heat_map.json").read_text()),
            "validation_count": end["validation_count"],
            "validation_covariance": end["validation_covariance"],
            "validation_covariance_predicted": end["validation_covariance_predicted"],
        }
        for line in (folder / "misses.jsonl").read_text().splitlines():
            record = json.loads(line)
            del record["missed"]
            rows.append(shared | record)
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def compare(runs: Path) -> None:
    """Misses beyond those of the first architecture over all cells, in % of the sources; pairs of scenes."""

    def missed(name: str, method: str) -> np.ndarray:
        lines = map(json.loads, (runs / name / "misses.jsonl").read_text().splitlines())
        return np.array([line["missed"] for line in lines if line["method"] == method], dtype=float)

    sources = 100 * np.array([3, 3, 5, 5]).sum()
    for method in BENCHED:
        for name in NAMES[1:]:
            more = missed(name, method) - missed(NAMES[0], method)
            # Scenes are independent; the cells are strata.
            error = 1.96 * np.sqrt((more.var(axis=1, ddof=1) * more.shape[1]).sum())
            middle = more.sum()
            ends = 100 * np.array([middle, middle - error, middle + error]) / sources
            print(f"{method}: {name}: {ends[0]:+.1f} ({ends[1]:+.1f} to {ends[2]:+.1f})")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=("train", "measure", "collect", "compare"))
    parser.add_argument("name", choices=(*NAMES, "all"))
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--validations", type=int, default=4)
    parser.add_argument("--runs", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.action == "measure":
        measure(given.name, given.runs)
    elif given.action == "compare":
        compare(given.runs)
    elif given.action == "collect":
        collect(given.runs, ROOT / "docs" / "measured" / "architectures.csv", given.minutes)
    else:
        train(given.name, given.rate, given.minutes, given.runs, given.validations)


if __name__ == "__main__":
    main()
