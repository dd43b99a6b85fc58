"""Findings that no fault of the table raises, each with a planted fault of its own."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from faults import predictions
from faults.plant import function, healthy, method, settings
from faults.table import FAULTS
from torch.nn import LayerNorm

from rismusic.covariance import load_and_shrink
from rismusic.doctor import hypotheses
from rismusic.doctor.case import open_case
from rismusic.doctor.diagnose import CHECKS, run_check
from rismusic.doctor.report import Diagnosis
from rismusic.estimation.grid import Volume
from rismusic.nn.data import TrainingScenes, beta_at
from rismusic.nn.learner import Learner, parameter_groups
from rismusic.nn.losses import (
    Targets,
    covariance_error,
    eigengap_hinge,
    heat_map_target,
    subspace_leakage,
    total_loss,
)
from rismusic.nn.network import Attention, Block, Network
from rismusic.nn.run_folder import RunFolder
from rismusic.nn.spec import LossSpec
from rismusic.simulation.scene import draw_channel, draw_codes, draw_sources
from rismusic.simulation.simulator import Simulator


def made(change):
    """Change learners after their construction."""

    def wrong(original, self, *given, **named):
        original(self, *given, **named)
        with torch.no_grad():
            change(self)

    return method(Learner, "__init__", wrong)


def stepped(change):
    """Change the weights after a step, and the numbers it returns."""

    def wrong(original, self, *given):
        return change(self, original(self, *given))

    return method(Learner, "step", wrong)


def planned(change):
    """Change the schedule of the learning rate."""
    return made(lambda learner: setattr(learner, "factors", change(learner.factors)))


def scored_in_training(original, self):
    other = copy.copy(self)
    other._validation = self._train
    return original(other)


def mean_noise(original, self, *given):
    snapshots, noise = original(self, *given)
    return snapshots, noise.mean().expand_as(noise)


def one_snr(original, self, sources, *given):
    snr = 5 + 15 * float((40 * sources.azimuth[0].nansum()).sin().abs())
    return original(_with_snr(self, (snr, snr)), sources, *given)


def without_later_cells(original, self, x):
    """Attention to a cell and those before it, one row of queries at a time."""
    rows = [original(self, x[:, : cell + 1])[:, -1] for cell in range(x.shape[1])]
    return torch.stack(rows, dim=1)


def knowing_the_number(original, self, recording, **named):
    count = torch.nn.functional.one_hot(recording.truth.active.sum(-1), 3)
    return replace(original(self, recording, **named), count_logits=count.float())


def wider(original, *given):
    return original(*given, width=1.0)


def first_map(original, self, maps, *given):
    return replace(original(self, maps[:1], *given), grid_logits=torch.stack(maps, dim=1))


def simulated(change):
    return method(Simulator, "__call__", lambda original, self, scenes: change(original(self, scenes)))


def fed(change):
    return method(Network, "forward", lambda original, self, recording: original(self, change(recording)))


def beta(value):
    return function(beta_at, lambda _, spec, epoch, seed: value)


def other_noise(original, self, epoch, step):
    for one in original(self, epoch, step):
        yield replace(one, snapshots=one.snapshots + 0.1 * torch.randn(one.snapshots.shape))


def any_sample(original, cls, *given, **named):
    sound = original(cls, *given, **named)
    return replace(
        sound, sample=replace(sound.sample, factor=torch.randn_like(sound.sample.factor)).normalised()
    )


@contextmanager
def drop_first_group(learner):
    learner.optimizer.param_groups[0]["params"] = learner.optimizer.param_groups[0]["params"][1:]


def add_stranger(learner):
    learner.optimizer.param_groups[0]["params"].append(torch.nn.Parameter(torch.zeros(3)))


def add_twice(learner):
    learner.optimizer.param_groups[0]["params"].append(learner.optimizer.param_groups[0]["params"][0])


@torch.no_grad()
def push(learner, numbers):
    """Move the weights without the optimizer."""
    for weight in learner.weights.values():
        weight.add_(1.0)
    return numbers


def without_steps(original, self, records):
    original(self, [record for record in records if record["kind"] != "step"])


def _with_snr(simulator, limits):
    """The simulator with other limits of the SNR."""
    other = copy.copy(simulator)
    other.spec = simulator.spec.replace(snr_db=limits)
    return other


def deaf(recording):
    field = recording.channel.sum(-1)[:, None, :].expand_as(recording.snapshots)
    return replace(recording, snapshots=field.contiguous(), noise_variance=torch.ones(len(recording)))


KNOWN = {fault.name: fault.plant for fault in FAULTS}
PLANTED = [
    ("TRUTH", "lower limit", simulated(lambda r: replace(r, noise_variance=2 * r.noise_variance))),
    (
        "POSITIONS",
        "nearest row of the search grid",
        method(
            Volume,
            "from_spec",
            lambda original, *given: replace(v := original(*given), azimuth_max=v.elevation_max),
        ),
    ),
    (
        "POSITIONS",
        "distinct labels",
        function(
            draw_sources,
            lambda original, *given: replace(t := original(*given), azimuth=(t.azimuth / 0.1).round() * 0.1),
        ),
    ),
    (
        "FUNCTIONS",
        "result of draw_channel",
        function(draw_channel, lambda original, *given: 2 * original(*given)),
    ),
    ("LEAK", "requested twice", method(TrainingScenes, "step", other_noise)),
    (
        "REPLAY",
        "uses twice",
        method(TrainingScenes, "scene_ranges", lambda original, self, epoch, step: original(self, 0, step)),
    ),
    ("R_SAMP", "back projection of the snapshots", method(Targets, "of", any_sample)),
    (
        "SLOPE",
        "loss eigengap against finite differences",
        function(eigengap_hinge, lambda original, *given: 2 * (e := original(*given)).detach() - e),
    ),
    (
        "SLOPE",
        "against finite differences",
        function(covariance_error, lambda original, *given: ((e := original(*given)) + e.detach()) / 2),
    ),
    (
        "FUNCTIONS",
        "result of covariance_error",
        # Large numbers that cancel.
        function(covariance_error, lambda original, *given: (original(*given) + 1e5) - 1e5),
    ),
    (
        "LOSS",
        "loss before the first step",
        function(total_loss, lambda original, *g, **n: replace(f := original(*g, **n), total=1e4 * f.total)),
    ),
    ("LOSS", "loss subspace", KNOWN["exception swallowed"]),
    (
        "LOSS",
        "share of the covariance",
        settings(loss=LossSpec(covariance=0.1, log_range=1.0, heat_map=1.0, count=1.0, angle=1.0)),
    ),
    ("LITMUS", "five steps on one batch", settings(backbone_learning_rate=1e-8, head_learning_rate=1e-8)),
    ("OPTIMIZER", "missing from the optimizer", made(drop_first_group)),
    ("OPTIMIZER", "do not belong to the network", made(add_stranger)),
    ("OPTIMIZER", "holds twice", made(add_twice)),
    (
        "INPUT",
        "without the others of its batch",
        predictions._predicting(
            lambda _, p: replace(p, existence_logits=p.existence_logits - p.existence_logits.mean(0))
        ),
    ),
    (
        "STAGES",
        "heat map of stage 1",
        method(Block, "forward", lambda original, self, x, mask=None: original(self, x, mask) - x),
    ),
    (
        "STAGES",
        "the azimuths",
        method(
            Network,
            "_sources",
            lambda original, self, maps, features, *given: original(self, maps, features.mT, *given),
        ),
    ),
    (
        "FUNCTIONS",
        "result of load_and_shrink",
        function(load_and_shrink, lambda original, R, c: original(R, replace(c, loading=2 * c.loading))),
    ),
    (
        "FUNCTIONS",
        "result of subspace_leakage",
        function(subspace_leakage, lambda original, R, Q: original(R, Q) ** 0.5),
    ),
    (
        "FUNCTIONS",
        "result of Simulator._receive",
        method(
            Simulator,
            "_receive",
            lambda original, self, *given: original(
                _with_snr(self, [0.65 * a + 0.35 * b for a, b in (self.spec.snr_db, self.spec.snr_db[::-1])]),
                *given,
            ),
        ),
    ),
    (
        "DRAWS",
        "mean SNR",
        method(
            Simulator,
            "_receive",
            lambda original, self, *given: original(
                _with_snr(self, (self.spec.snr_db[0], sum(self.spec.snr_db) / 2)), *given
            ),
        ),
    ),
    (
        "FUNCTIONS",
        "result of draw_codes",
        function(draw_codes, lambda original, *given, **named: original(*given, **named).sqrt()),
    ),
    (
        "REPLAY",
        "another weight decay",
        function(
            parameter_groups,
            lambda original, *given: [{**group, "weight_decay": 0.0} for group in original(*given)],
        ),
    ),
    (
        "HELDOUT",
        "several times",
        method(TrainingScenes, "validation", lambda original, self: list(original(self))[:1] * 2),
    ),
    ("INSIDE", "of the network's input", made(lambda learner: learner.network.place.mul_(1e3))),
    ("CONSTANT", "snapshots of another scene", fed(deaf)),
    ("SCHEDULE", "schedule of the settings", planned(lambda f: f[:10])),
    ("SCHEDULE", "schedule of the settings", planned(lambda f: f / 2)),
    ("SCHEDULE", "schedule of the settings", planned(lambda f: f[::8].repeat_interleave(8))),
    ("SCHEDULE", "rises", settings(schedule=healthy().schedule.replace(warm_up=0.8))),
    ("SCHEDULE", "distance of beta", beta(0.3)),
    ("SCHEDULE", "largest beta", beta(1.0)),
    ("REPLAY", "logged norm", stepped(lambda _, numbers: {**numbers, "gradient": 10 * numbers["gradient"]})),
    (
        "FINITE",
        "averaged weights",
        method(Learner, "_update_average", lambda original, self, _: original(self, torch.ones(()))),
    ),
    ("REPLAY", "number of logged steps", method(RunFolder, "log", without_steps)),
    ("REPLAY", "AdamW with the settings", stepped(push)),
    ("REPLAY", "AdamW with the settings", made(lambda one: one.optimizer.param_groups[0].update(eps=0.1))),
    (
        "REPLAY",
        "not hidden as planned",
        method(TrainingScenes, "_network_input", lambda original, self, scenes, hide=False: scenes),
    ),
    ("HELDOUT", "that the loop trains on", method(TrainingScenes, "scored", scored_in_training)),
    (
        "HELDOUT",
        "number of different scored scenes",
        method(TrainingScenes, "scored", lambda original, self: tuple(one[:1] for one in original(self))),
    ),
    (
        "HELDOUT",
        "change with the labels",
        method(Learner, "predict", knowing_the_number),
    ),
    ("DRAWS", "noise variance of a scene", method(Simulator, "_receive", mean_noise)),
    ("DRAWS", "SNR within a batch", method(Simulator, "_receive", one_snr)),
    ("DRAWS", "snapshots of a scene", method(Simulator, "_receive", one_snr)),
    (
        "BACKWARD",
        "derivative of an output",
        method(
            Network,
            "_sources",
            lambda original, self, maps, features, *given: original(self, maps, features.detach(), *given),
        ),
    ),
    (
        "FUNCTIONS",
        "result of heat_map_target",
        function(heat_map_target, wider),
    ),
    ("HELDOUT", "from epoch to epoch", KNOWN["validation of a stale copy"]),
]


@pytest.mark.parametrize(
    ("tag", "part", "plant"), PLANTED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_each_finding_can_fail(tag, part, plant, monkeypatch, functions_of):
    monkeypatch.setattr(hypotheses, "_RUNS", 100)  # what explains a value is tested elsewhere
    if tag in ("FUNCTIONS", "REPLAY"):
        functions_of("nn.losses", "covariance", "simulation.s")
    with plant(healthy()) as spec, open_case(spec) as case:
        found = Diagnosis(tuple(run_check(tag, dict(CHECKS)[tag], case)))
    assert any(part in one.name for one in found.wrong), [one.sentence for one in found.wrong]


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (method(Attention, "forward", without_later_cells), "attention is not that of its layers"),
        (method(Attention, "forward", without_later_cells), "a causal mask"),
        (method(LayerNorm, "forward", lambda _, self, x: x), "the output of stages.0.blocks"),
        (method(LayerNorm, "forward", lambda _, self, x: x), "without the norm"),
        (
            method(Network, "_sources", first_map),
            "with the heat map of stage 1 in place of that of the last stage",
        ),
    ],
)
def test_the_innermost_wrong_layer_is_named(plant, words):
    with plant(healthy()) as spec, open_case(spec) as case:
        wrong = Diagnosis(tuple(run_check("STAGES", dict(CHECKS)["STAGES"], case))).wrong
    assert words in wrong[0].meaning
