"""Small scenes, and the likelihoods written out with dense matrices, for the tests of the estimators."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.simulation.simulator import simulate
from rismusic.sources import Sources
from rismusic.spec import SceneSpec, SystemSpec

VOLUME = Volume.from_spec(SceneSpec())
SMALL = SystemSpec(
    panel={"rows": 6, "columns": 6},
    channel={"antennas": 8},
    codebook={"snapshots": 7},
    sources=2,
    snr_db=15.0,
)
DIRECT = SMALL.replace(channel={"kind": "direct"})
ONE_LINK = SMALL.replace(one_link=True)
SYSTEMS = {"own": SMALL, "one": ONE_LINK, "direct": DIRECT}


def small(spec=SMALL, scenes=5, *, known=False, dtype=torch.float64, **settings):
    """A recording whose noise variance is not known unless wanted."""
    recording = simulate(spec, scenes=scenes, dtype=dtype, **settings)
    return recording if known else replace(recording, noise_variance=None)


def clean(spec=SMALL, scenes=5, **settings):
    return small(spec, scenes, snr_db=240.0, **settings)


def grid_for(recording, oversampling=2.51):
    return SearchGrid.cover(recording.panel, VOLUME, oversampling)


def truth_of(recording):
    """Positions [S, K, 3] (azimuth, elevation, 1/range) and who is there."""
    azimuth, elevation, distance = (value.double() for value in recording.truth.filled())
    return torch.stack((azimuth, elevation, 1 / distance), dim=-1), recording.truth.active


def scattered(truth, generator, scale):
    """Places around given ones: uniform within ``scale`` of angle (rad) and of inverse range (1/m)."""
    shift = 2 * torch.rand(truth.shape, generator=generator, dtype=torch.float64) - 1
    low, high = (torch.tensor(limit, dtype=torch.float64) for limit in (VOLUME.lower, VOLUME.upper))
    return torch.minimum(torch.maximum(truth + scale * shift, low), high)


def planted(recording, places, amplitudes, noise=0.0, seed=7):
    """The recording with sources at places [S, K, 3] of its own: Gaussian symbols, and noise."""
    generator = torch.Generator().manual_seed(seed)
    S, L, M = recording.snapshots.shape
    symbols = torch.randn(S, L, places.shape[1], generator=generator, dtype=torch.complex128)
    symbols = symbols * torch.tensor(amplitudes)
    received = np.stack(
        [np.einsum("lmk,lk->lm", fields(recording, i, places[i]), symbols[i].numpy()) for i in range(S)]
    )
    received = torch.from_numpy(received)
    level = noise * received.abs().square().mean((1, 2), keepdim=True).sqrt()
    received = received + level * torch.randn(S, L, M, generator=generator, dtype=torch.complex128)
    azimuth, elevation, q = places.unbind(-1)
    truth = Sources(azimuth=azimuth, elevation=elevation, range=1 / q, symbols=symbols.mT)
    return replace(
        recording, snapshots=received.to(recording.snapshots.dtype), truth=truth, noise_variance=None
    )


def fields(recording, scene, positions):
    """G_l A of one scene by the definition of the wave, [L, M, K] complex128."""
    p = recording.elements.numpy()
    A = []
    for azimuth, elevation, q in positions.tolist():
        u = np.array(
            [np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)]
        )
        distance = np.linalg.norm(u / q - p, axis=1)
        gain = 1 / distance if recording.wave == "spherical" else np.ones(len(p))
        gain = gain / np.sqrt((gain**2).sum())
        A.append(gain * np.exp(2j * np.pi / recording.wavelength * (1 / q - distance)))
    A = np.array(A).T
    if recording.channel is None:
        return np.broadcast_to(A, (recording.snapshots.shape[1], *A.shape))
    H, c = (
        (part if part.ndim == 2 else part[scene]).to(torch.complex128).numpy()
        for part in (recording.channel, recording.codes)
    )
    return np.stack([H @ np.diag(code) @ A for code in c])


def conditional_cost(recording, scene, positions):
    C, y = fields(recording, scene, positions), recording.snapshots[scene].to(torch.complex128).numpy()
    rest = [data - G @ np.linalg.lstsq(G, data, rcond=None)[0] for G, data in zip(C, y, strict=True)]
    return float(np.linalg.norm(rest) ** 2)


def unconditional_value(recording, scene, positions, power, noise):
    C, y = fields(recording, scene, positions), recording.snapshots[scene].to(torch.complex128).numpy()
    value = 0.0
    for G, data in zip(C, y, strict=True):
        R = (G * power) @ G.conj().T + noise * np.eye(len(data))
        value += np.linalg.slogdet(R)[1] + (data.conj() @ np.linalg.solve(R, data)).real
    return value


def misses(truth, found, degrees=5.0):
    """Sources of the truth without a found one near, by the best assignment; in all scenes together."""
    from scipy.optimize import linear_sum_assignment

    missed = 0
    for i in range(len(truth.azimuth)):
        there, here = truth.active[i], found.active[i]
        gap = torch.stack(
            [
                (getattr(truth, name)[i][there][:, None] - getattr(found, name)[i][here][None]).abs()
                for name in ("azimuth", "elevation")
            ]
        ).amax(0)
        far = (gap.rad2deg() > degrees).numpy()
        rows, columns = linear_sum_assignment(far)
        missed += int(there.sum()) - len(rows) + int(far[rows, columns].sum())
    return missed
