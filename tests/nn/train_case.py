"""A training that takes seconds, for the tests of everything around it."""

from __future__ import annotations

import json

import torch

from rismusic.nn.checkpoint import load_checkpoint, read_tensors
from rismusic.nn.distributed import ProcessGroup
from rismusic.nn.run_folder import LOG, RunFolder
from rismusic.nn.spec import NetworkSpec, ScheduleSpec, TrainSpec
from rismusic.nn.train import Trainer
from rismusic.spec import SystemSpec

SYSTEM = SystemSpec(
    panel={"rows": 6, "columns": 6},
    channel={"antennas": 8},
    codebook={"snapshots": 7},
    sources=(1, 2),
    snr_db=(5.0, 20.0),
)
NETWORK = NetworkSpec(sources_max=2, oversampling=1.3, stages=2, depth=1, width=8, kernel=3, heads=2)
SPEC = TrainSpec(
    system=SYSTEM,
    network=NETWORK,
    schedule=ScheduleSpec(epochs=2),
    scenes_per_epoch=16,
    batch=4,
    validation_scenes=4,
    scored_scenes=4,
    average_decay=0.9,
    log_steps=3,
)


def trainer(folder, spec=SPEC, **settings) -> Trainer:
    run = RunFolder(folder)
    run.create(spec.replace(**settings))
    return Trainer(spec.replace(**settings), run, ProcessGroup())


def finished(folder, spec=SPEC, **settings) -> Trainer:
    one = trainer(folder, spec, **settings)
    one.train()
    return one


def resumed(folder) -> Trainer:
    run = RunFolder(folder)
    one = Trainer(run.settings(), run, ProcessGroup())
    one.resume()
    return one


def log_of(folder, kind=None):
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return [line for line in lines if kind in (None, line["kind"])]


def checkpoint_of(folder):
    state, tensors = load_checkpoint(RunFolder(folder))
    return state, tensors


def assert_same_run(folder, other):
    """Log, state, weights, averages, optimizer and kept networks: equal bit by bit."""
    assert (folder / LOG).read_text() == (other / LOG).read_text()
    (state, tensors), (state_2, tensors_2) = checkpoint_of(folder), checkpoint_of(other)
    assert state == state_2
    assert tensors.keys() == tensors_2.keys()
    assert all(torch.equal(tensors[name], tensors_2[name]) for name in tensors)
    for kept in ("best.safetensors", "last.safetensors"):
        (tensors, metadata), (tensors_2, metadata_2) = (read_tensors(one / kept) for one in (folder, other))
        assert metadata == metadata_2
        assert all(torch.equal(tensors[name], tensors_2[name]) for name in tensors)
