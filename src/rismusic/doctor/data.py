"""Are the scenes what the settings ask for, and does no split see another's?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor

from rismusic.doctor.case import Case, told
from rismusic.doctor.physics import element_positions, operators, true_waves
from rismusic.estimation.grid import to_cosines
from rismusic.io import Recording
from rismusic.nn.data import TrainingScenes
from rismusic.nn.monitors import Finding, Report, at_least, at_most
from rismusic.spec import limits
from rismusic.units import to_db

# A source within this part of a step of a point of the grid, in all coordinates, stands on it.
_ON = 0.02
# Scenes of each split that are compared.
_COMPARED = 512
# Standard deviation of a uniform draw, over half its width.
_UNIFORM = 1 / math.sqrt(3)


def positions(case: Case) -> Report:
    """Do the labels fill the volume, in radians and metres, off the points of the grid?"""
    scene = case.spec.system.scene
    azimuth, elevation, distance = _labels(case.many)
    findings: list[Finding] = []
    sizes = (
        ("azimuth", azimuth, math.radians(scene.azimuth_max_deg)),
        ("elevation", elevation, math.radians(scene.elevation_max_deg)),
        (
            "range",
            distance - (scene.range_max_m + scene.range_min_m) / 2,
            (scene.range_max_m - scene.range_min_m) / 2,
        ),
    )
    for name, value, half in sizes:
        if half == 0:
            continue
        spread = float(value.std(unbiased=False)) / (half * _UNIFORM)
        findings += [
            at_most(
                f"largest {name} of a label, over its limit",
                float(value.abs().max()) / half,
                1 + 1e-5,
                f"the {name} of some labels is outside the volume: degrees taken for radians, or another "
                "unit?",
                "Angles are in radians and ranges in metres within the code.",
            ),
            at_least(
                f"spread of the {name} of the labels, over that of a uniform draw",
                spread,
                0.7,
                f"the {name} hardly varies: converted to radians twice, or drawn from a part of the volume?",
                "Convert degrees once, at the edge.",
            ),
        ]
    grid = case.learner.grid
    off = []
    for value, axis, step in zip(
        to_cosines(azimuth, elevation, distance), (grid.u_x, grid.u_y, grid.q), grid.step, strict=True
    ):
        off.append((value[:, None] - axis.double().cpu()).abs().amin(1) / step)
    on = (torch.stack(off) < _ON).all(0).double().mean()
    distinct = len(azimuth.unique()) / len(azimuth)
    findings += [
        at_most(
            "share of the true sources that stand on a point of the search grid",
            float(on),
            0.01,
            "the truth is drawn on the grid that is searched, which no user's sources do: errors look like "
            "0.",
            "Draw positions from the continuous volume.",
        ),
        at_least(
            "share of the labels that are unlike all others",
            distinct,
            0.9,
            "positions repeat: scenes or sources are drawn again, or from a grid.",
            "A scene is a function of seed, split and number; give each a number of its own.",
        ),
    ]
    return told("POSITIONS", f"{len(azimuth)} sources", findings)


def signal(case: Case) -> Report:
    """Symbols, SNR and noise as the settings say, from the snapshots themselves."""
    spec = case.spec.system
    ratios, noise, steadiness = [], [], []
    asked = limits(spec.snr_db)
    nominal = spec.hardware == type(spec.hardware)()
    elements, wavelength = element_positions(spec.panel), spec.panel.wavelength_m
    for recording in case.many[:2]:
        truth, variance = recording.truth, recording.noise_variance
        assert truth is not None
        if truth.symbols is None or variance is None:
            continue
        s = torch.where(truth.active[..., None], truth.symbols, 0).to(torch.complex128)
        steadiness.append(s.mean(-1).abs().square().sum() / s.abs().square().mean(-1).sum())
        A = true_waves(truth, elements, wavelength)
        clean = torch.einsum("slmn,snk,skl->slm", operators(recording), A, s)
        power = clean.abs().square().mean((1, 2))
        ratios.append(to_db(power / variance.double()))
        noise.append((recording.snapshots - clean).abs().square().mean((1, 2)) / variance.double())
    if not ratios:
        return told("SIGNAL", "not looked at: the scenes do not tell their symbols", [])
    decibel = torch.cat(ratios)
    findings = [
        at_most(
            "what stays of the symbols in their mean over the snapshots, share of the power",
            float(torch.stack(steadiness).mean()),
            max(0.5, 3 / spec.codebook.snapshots),
            "symbols are held constant over the snapshots (static): R_samp then says little of the sources.",
            "Draw new symbols for each snapshot (scene.symbols = 'gaussian').",
        ),
        at_most(
            "largest distance of a scene's SNR from the limits of the settings, dB",
            float(torch.maximum(asked[0] - decibel, decibel - asked[1]).max().clamp_min(0)),
            0.1,
            "the SNR is not the one that was asked for.",
            "SNR is the mean over snapshots and outputs of |G A s|^2 over sigma^2, in each scene.",
        ),
    ]
    if nominal:
        findings.append(
            at_most(
                "error of the recorded noise variance against the noise in the snapshots, relative",
                abs(float(torch.cat(noise).mean()) - 1),
                0.1,
                "what is left of the snapshots without the true signal is not the noise that is recorded: "
                "wrong "
                "noise, wrong labels, or another wave or link.",
                "The noise is complex: sigma^2 = E|n|^2, and y = G A s + n.",
            )
        )
    return told("SIGNAL", f"SNR {float(decibel.min()):.1f} to {float(decibel.max()):.1f} dB", findings)


def link(case: Case) -> Report:
    """Does the channel have the Rician factor, and do the codes look everywhere?"""
    spec = case.spec.system
    findings = []
    channel = [one.channel for one in case.many if one.channel is not None]
    if channel and spec.channel.kind == "rician":
        H = torch.cat([one if one.ndim == 3 else one[None] for one in channel]).to(torch.complex128)
        low, high = limits(spec.channel.rician_factor_db)
        factor = 10 ** (torch.linspace(low, high, 101).double() / 10)
        expected = float((factor / (1 + factor)).mean())
        values = torch.linalg.svdvals(H).square()
        sight = float((values[:, 0] / values.sum(-1)).mean())
        findings += [
            at_least(
                "energy of the channel's strongest path, over that of the line of sight by its Rician factor",
                sight / expected,
                0.8,
                "scatter is stronger than the nominal Rician factor says: undone by a normalisation?",
                "Bring line of sight and scatter to unit power per entry before they are mixed.",
            ),
            at_most(
                "energy of an entry of the channel, largest distance from 1",
                abs(float(H.abs().square().mean()) - 1),
                0.3,
                "the channel is not of unit power per entry.",
                "Line of sight and scatter each have unit mean power per entry.",
            ),
        ]
    codes = [one.codes for one in case.many if one.codes is not None]
    if codes:
        c = torch.cat([one if one.ndim == 3 else one[None] for one in codes]).to(torch.complex128)
        all_codes = c.flatten(0, 1)
        values = torch.linalg.eigvalsh(all_codes.mH @ all_codes)
        rank = float((values > 1e-3 * values[-1]).sum())
        findings.append(
            at_least(
                "dimensions that the codes of all scenes span, over those they could",
                rank / min(all_codes.shape),
                0.9,
                "the codebook visits a part of its beams only: a stride that shares a factor with their "
                "number?",
                "Step through the beams by a number that is coprime with theirs.",
            )
        )
    return told("LINK", f"{len(channel)} batches with a channel, {len(codes)} with codes", findings)


def leakage(case: Case) -> Report:
    """Do training, validation and epochs share scenes, and is a scene the same whenever it is asked for?"""
    training = _names(chain.from_iterable(_epoch(case.known, 0)))
    validation = _names(case.scenes.validation())
    findings = []
    # Where fresh is off, validation is meant to look at the scenes that are trained on.
    if case.spec.fresh:
        findings.append(
            at_most(
                "scenes that training and validation share",
                float(len(training & validation)),
                0.0,
                "the validation set holds scenes that are learned from: overlapping seeds or splits, a leak.",
                "Draw each split under its own name: a scene is a function of (seed, split, number).",
            )
        )
    first, again = (next(iter(case.known.step(0, 0))) for _ in range(2))
    findings.append(
        at_most(
            "change of a batch when it is asked for again",
            float((first.snapshots - again.snapshots).abs().max()),
            0.0,
            "the same step sees other scenes when it is repeated: a training cannot be resumed.",
            "Draw scenes as a function of seed, split and number, not from a stateful generator.",
        )
    )
    if case.spec.fresh and case.spec.schedule.epochs > 1:
        later = _names(case.known.step(1, 0))
        findings.append(
            at_most(
                "scenes of the second epoch that the first one had",
                float(len(later & _names(case.known.step(0, 0)))),
                0.0,
                "every epoch learns from the same scenes although fresh ones are asked for.",
                "Count the scenes through all epochs.",
            )
        )
    text = f"{len(training)} scenes of the training, {len(validation)} of the validation"
    return told("LEAK", text, findings)


def _labels(recordings: list[Recording]) -> tuple[Tensor, Tensor, Tensor]:
    """Azimuth, elevation and range of all true sources, in one row each."""
    rows = []
    for name in ("azimuth", "elevation", "range"):
        held = []
        for recording in recordings:
            assert recording.truth is not None
            held.append(getattr(recording.truth, name)[recording.truth.active].double().cpu())
        rows.append(torch.cat(held))
    return rows[0], rows[1], rows[2]


def _epoch(scenes: TrainingScenes, epoch: int) -> Iterator[Iterator[Recording]]:
    """The first batches of an epoch."""
    seen = 0
    for step in range(scenes.spec.steps_per_epoch):
        yield scenes.step(epoch, step)
        seen += scenes.spec.batch * scenes.spec.accumulation
        if seen >= _COMPARED:
            return


def _names(recordings: Iterable[Recording]) -> set[bytes]:
    """A name for each scene: its labels, bit by bit."""
    names: set[bytes] = set()
    for recording in recordings:
        truth = recording.truth
        assert truth is not None
        rows = torch.stack((truth.azimuth, truth.elevation, truth.range), -1).flatten(1).cpu()
        names |= {row.numpy().tobytes() for row in rows}
        if len(names) >= _COMPARED:
            break
    return names
