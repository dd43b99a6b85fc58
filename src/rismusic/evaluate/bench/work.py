"""One part of a benchmark: a method's answers in a block of scenes."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor

from rismusic.covariance import true_covariance
from rismusic.crb import recording_crb
from rismusic.estimation.estimate import volume_of
from rismusic.estimation.grid import SearchGrid
from rismusic.estimation.maximum_likelihood import Fit, finish, nfmle, unpack
from rismusic.estimation.spectra import music, rap_music
from rismusic.evaluate.bench.methods import parse_method
from rismusic.evaluate.bench.plan import SCENES, Unit
from rismusic.evaluate.bench.spec import BenchSpec
from rismusic.evaluate.bench.store import Arrays, Store
from rismusic.hybrid import locate
from rismusic.io import Recording
from rismusic.registry import load_plugins
from rismusic.simulation.simulator import Simulator
from rismusic.sources import Sources


def do_unit(spec: BenchSpec, store: Store, unit: Unit, *, device: torch.device | None = None) -> None:
    """Do a part and keep its results. One thread: the others have parts of their own."""
    load_plugins(spec.locate.plugins)  # a worker process does not have them yet
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        store.write(unit, results(spec, unit, device))
    finally:
        torch.set_num_threads(threads)


def results(spec: BenchSpec, unit: Unit, device: torch.device | None = None) -> Arrays:
    """The arrays that are kept of a part.

    Of scenes: the truth, the bound and the noise variance. Of a method: azimuth (rad), elevation (rad) and
    range (m) [S, K] of what it found, NaN-padded, the conditional cost and minus the unconditional
    log-likelihood there [S], and the seconds of processor time it took.
    """
    recording = Simulator(unit.cell.system, seed=spec.seed, split=spec.split).scenes(unit.start, unit.stop)
    if unit.method == SCENES:
        return _truth(recording)
    noise = recording.noise_variance if spec.noise == "known" else None
    blind = replace(recording, truth=None, noise_variance=noise)
    # A process's own time leaves out what a GPU does for it.
    clock = time.process_time if device is None or device.type == "cpu" else time.perf_counter
    begin = clock()
    if parse_method(unit.method).peeked:
        assert recording.truth is not None
        found, fit = _peek(blind, recording.truth, spec, unit)
    else:
        count = "auto" if spec.count == "auto" else unit.cell.sources
        found, fit = locate(blind, sources=count, spec=spec.search(unit.method), device=device).sources, None
    seconds = clock() - begin
    fit = fit or _at(blind, found)
    values = {**_positions(found), "cost": fit.cost, "likelihood": fit.likelihood}
    return {
        **{name: value.numpy() for name, value in values.items()},
        "seconds": torch.tensor(seconds).numpy(),
    }


def _truth(recording: Recording) -> Arrays:
    assert recording.truth is not None
    assert recording.noise_variance is not None
    _, L, M = recording.snapshots.shape
    values = {
        **_positions(recording.truth),
        "covariance": recording_crb(recording).covariance,
        "noise_variance": recording.noise_variance.double(),
        "samples": torch.tensor(L * M),
    }
    return {name: value.numpy() for name, value in values.items()}


def _peek(blind: Recording, truth: Sources, spec: BenchSpec, unit: Unit) -> tuple[Sources, Fit]:
    """What has been told the truth: MUSIC on the true covariance, or maximum likelihood from the truth."""
    method = parse_method(unit.method)
    volume = volume_of(spec.locate)
    start = Sources(**_positions(truth))
    if method.base == "music":
        assert truth.power is not None
        A = start.steering(blind.panel)
        grid = SearchGrid.cover(blind.panel, volume, spec.locate.oversampling)
        spectrum = music(true_covariance(A, truth.power.double()), unit.cell.sources)
        # Exact covariances gain from visiting the sources again.
        found = rap_music(spectrum, grid, unit.cell.sources, visits=1)
        start = Sources(azimuth=found.azimuth, elevation=found.elevation, range=found.range)
    fit = nfmle(blind, start, volume, criterion=method.criterion) if method.polish else _at(blind, start)
    return fit.sources, fit


def _at(recording: Recording, found: Sources) -> Fit:
    """Cost and likelihood at given positions."""
    positions, active = unpack(found, recording)
    return finish(recording, positions, active, torch.ones_like(active[:, 0]))


def _positions(sources: Sources) -> dict[str, Tensor]:
    return {name: getattr(sources, name).double() for name in ("azimuth", "elevation", "range")}
