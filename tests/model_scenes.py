"""Recordings of every signal model, and the models written out with dense NumPy matrices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from rismusic.io import Recording
from rismusic.sources import Sources

S, L, M, N, K, F = 2, 4, 5, 6, 2, 3
WAVELENGTH = 0.3
NOISE = 0.01
LIGHT = 299792458.0

# Every model of symbols and link that the tests run through.
MODELS: dict[str, dict] = {
    "independent": {},
    "constant": {"symbols": "constant"},
    "constant, one antenna": {"symbols": "constant", "antennas": 1, "snapshots": 12},
    "constant, direct": {"symbols": "constant", "direct": True},
    "known": {"symbols": "known"},
    "known, one antenna": {"symbols": "known", "antennas": 1, "snapshots": 12},
    "known, per scene": {"symbols": "known", "per_scene": True},
    "known, direct": {"symbols": "known", "direct": True},
    "wideband": {"wideband": True},
    "wideband, per scene": {"wideband": True, "per_scene": True},
    "wideband, direct": {"wideband": True, "direct": True},
    "wideband, constant": {"wideband": True, "symbols": "constant"},
    "wideband, known": {"wideband": True, "symbols": "known", "per_scene": True},
    "coloured": {"coloured": "shared"},
    "coloured, per scene": {"coloured": "per scene"},
    "coloured, constant": {"coloured": "per scene", "symbols": "constant"},
    "coloured, wideband": {"coloured": "shared", "wideband": True},
    "coloured, direct": {"coloured": "shared", "direct": True},
    "weighted": {"weighted": True},
    "weighted, constant, direct": {"weighted": True, "symbols": "constant", "direct": True},
    "weighted, coloured": {"weighted": True, "coloured": "per scene"},
    "uniform": {"wave": "uniform"},
    "fresnel, constant": {"wave": "fresnel", "symbols": "constant"},
    "paraxial, wideband": {"wave": "paraxial", "wideband": True},
    "directional": {"pattern": 1.5},
    "directional, uniform, known": {"pattern": 0.7, "wave": "uniform", "symbols": "known"},
}


def make(
    *,
    symbols="independent",
    wideband=False,
    direct=False,
    per_scene=False,
    coloured="",
    weighted=False,
    wave="spherical",
    pattern=0.0,
    antennas=M,
    snapshots=L,
    seed=0,
) -> Recording:
    """A recording of S scenes of this model in double precision, made with NumPy alone."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)

    antennas = N if direct else antennas
    x, y = np.meshgrid((np.arange(3) - 1) * 0.15, (np.arange(2) - 0.5) * 0.15)
    elements = np.stack((x.ravel(), y.ravel(), 0 * x.ravel()), -1) + 0.02 * rng.standard_normal((N, 3))
    lead = (S,) if per_scene else ()
    bands = (F,) if wideband else ()
    channel = None if direct else draw(*lead, *bands, antennas, N)
    codes = None if direct else np.exp(2j * np.pi * rng.uniform(size=(*lead, snapshots, N)))
    frequencies = LIGHT / WAVELENGTH * np.linspace(0.8, 1.2, F) if wideband else None
    pilots = draw(*lead, snapshots, K) if symbols == "known" else None
    covariance = None
    if coloured:
        root = draw(*((S,) if coloured == "per scene" else ()), antennas, antennas) / 3 + np.eye(antennas)
        covariance = root @ root.conj().swapaxes(-1, -2)
    bands_count = F if wideband else 1
    if symbols == "independent":
        s = draw(S, K, bands_count * snapshots)
    elif symbols == "constant":
        s = np.repeat(draw(S, K, bands_count), snapshots, axis=-1)
    else:
        each = np.broadcast_to(pilots, (S, snapshots, K)).swapaxes(-1, -2)
        s = (draw(S, K, bands_count)[..., None] * each[:, :, None]).reshape(S, K, -1)
    truth = Sources(
        azimuth=torch.tensor([[-0.5, 0.4], [0.1, -0.8]]),
        elevation=torch.tensor([[0.2, -0.3], [0.4, 0.0]]),
        range=torch.tensor([[0.9, 1.4], [1.1, 0.8]]),
        power=torch.tensor([[1.0, 2.0], [0.7, 1.3]]),
    ).each(lambda value: value.double())
    truth = replace(truth, symbols=torch.from_numpy(s))
    recording = Recording.from_arrays(
        np.ones((S, *bands, snapshots, antennas), complex),
        elements,
        WAVELENGTH,
        channel,
        codes,
        noise_variance=np.full(S, NOISE),
        truth=truth,
        wave=wave,
        pattern_exponent=pattern,
        symbols=symbols,
        pilots=pilots,
        noise_covariance=covariance,
        frequencies=frequencies,
    )
    clean = []
    for i in range(S):
        blocks = zip(columns(recording, i, places(recording, i)), amplitudes(recording, i), strict=True)
        clean.append(np.stack([C @ a for C, a in blocks]))
    data = np.stack(clean)
    data = data.reshape(S, *bands, snapshots, antennas)
    data = data + 0.1 * draw(*data.shape)
    weights = torch.from_numpy(rng.uniform(0.01, 1.0, data.shape)) if weighted else None
    return replace(recording, snapshots=torch.from_numpy(data), sample_weights=weights)


def places(recording: Recording, scene: int) -> np.ndarray:
    """[K, 3] azimuth, elevation, range of a scene's sources."""
    truth = recording.truth
    return np.stack([getattr(truth, n)[scene].numpy() for n in ("azimuth", "elevation", "range")], -1)


def amplitudes(recording: Recording, scene: int) -> np.ndarray:
    """[blocks, K]: the unknown complex numbers of the sources in each block of :func:`columns`."""
    s = recording.truth.symbols[scene].numpy()
    if recording.symbols == "independent":
        return s.T
    each = s.reshape(s.shape[0], _bands(recording), -1)
    if recording.symbols == "constant":
        return each[..., 0].T
    pilots = _of(recording.pilots, 2, scene)
    return np.stack([each[:, f, 0] / pilots[0] for f in range(_bands(recording))])


def steering(recording: Recording, place: np.ndarray, frequency: float) -> np.ndarray:
    """The unit-norm steering vector by the definition of the wave."""
    azimuth, elevation, r = place
    u = np.array(
        [np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)]
    )
    p = recording.elements.numpy()
    true = np.linalg.norm(r * u - p, axis=1)
    along, squared = p @ u, (p**2).sum(1)
    distance = {
        "spherical": true,
        "uniform": true,
        "fresnel": r - along + (squared - along**2) / (2 * r),
        "paraxial": r - along + squared / (2 * r),
    }[recording.wave]
    gain = r / true if recording.wave == "spherical" else np.ones(len(p))
    gain = gain * ((r * u[2] - p[:, 2]) / true) ** recording.pattern_exponent
    a = gain * np.exp(2j * np.pi * frequency / LIGHT * (r - distance))
    return a / np.linalg.norm(a)


def columns(recording: Recording, scene: int, where: np.ndarray) -> list[np.ndarray]:
    """C of each block of data that has unknown amplitudes of its own: the block is C times amplitudes."""
    snapshots = recording.snapshots.shape[-2]
    bands = [LIGHT / recording.wavelength]
    if recording.frequencies is not None:
        bands = recording.frequencies.tolist()
    blocks = []
    for f, frequency in enumerate(bands):
        A = np.stack([steering(recording, place, frequency) for place in where], -1)
        if recording.channel is None:
            each = [A] * snapshots
        else:
            H = _of(recording.channel, 2 if recording.frequencies is None else 3, scene)
            H = H if recording.frequencies is None else H[f]
            each = [H @ np.diag(code) @ A for code in _of(recording.codes, 2, scene)]
        if recording.symbols == "known":
            each = [C * x for C, x in zip(each, _of(recording.pilots, 2, scene), strict=True)]
        blocks += each if recording.symbols == "independent" else [np.concatenate(each)]
    return blocks


def noise_of_block(recording: Recording, scene: int, rows: int, block: int) -> np.ndarray:
    """Covariance of the noise of one block, for a noise variance of 1."""
    root = np.eye(rows)
    if recording.noise_covariance is not None:
        Sigma = _of(recording.noise_covariance, 2, scene)
        Sigma = Sigma / np.trace(Sigma).real * len(Sigma)
        root = np.kron(np.eye(rows // len(Sigma)), np.linalg.cholesky(Sigma))
    if recording.sample_weights is not None:
        weights = recording.sample_weights[scene].numpy().reshape(-1, rows)[block]
        root = root @ np.diag(weights**-0.5)
    return root @ root.conj().T


def blocks_of(recording: Recording, scene: int, where: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    """Columns, data, and noise covariance of each block."""
    both = zip(columns(recording, scene, where), data_blocks(recording, scene), strict=True)
    return [(C, y, noise_of_block(recording, scene, len(y), i)) for i, (C, y) in enumerate(both)]


def data_blocks(recording: Recording, scene: int) -> list[np.ndarray]:
    """The data of each block of :func:`columns`."""
    y = recording.snapshots[scene].numpy().reshape(_bands(recording), -1, recording.snapshots.shape[-1])
    return [b for f in y for b in f] if recording.symbols == "independent" else [f.ravel() for f in y]


def conditional_cost(recording: Recording, scene: int, where: np.ndarray) -> float:
    """Energy of the whitened data that no amplitudes explain."""
    cost = 0.0
    for C, y, Q in blocks_of(recording, scene, where):
        W = np.linalg.inv(np.linalg.cholesky(Q))
        cost += np.linalg.norm(W @ y - W @ C @ np.linalg.lstsq(W @ C, W @ y, rcond=None)[0]) ** 2
    return cost


def unconditional_value(recording, scene, where, power, noise) -> float:
    """Negative log-likelihood of Gaussian amplitudes."""
    value = 0.0
    for C, y, Q in blocks_of(recording, scene, where):
        R = (C * power) @ C.conj().T + noise * Q
        value += np.linalg.slogdet(R)[1] + (y.conj() @ np.linalg.solve(R, y)).real
    return value


def conditional_bound(recording: Recording, scene: int) -> np.ndarray:
    """[K, 3] standard deviations: Slepian-Bangs with positions and all amplitudes in one Fisher matrix."""
    where, a = places(recording, scene), amplitudes(recording, scene)

    def mean(x):
        position, real, imaginary = np.split(x, [3 * K, 3 * K + a.size])
        s = (real + 1j * imaginary).reshape(a.shape)
        white = []
        for (C, _, Q), amplitude in zip(blocks_of(recording, scene, position.reshape(K, 3)), s, strict=True):
            W = np.linalg.inv(np.linalg.cholesky(Q))
            white.append(W @ C @ amplitude)
        return np.concatenate(white)

    D = _differences(mean, np.concatenate((where.ravel(), a.real.ravel(), a.imag.ravel())))
    J = 2 / NOISE * (D.conj() @ D.T).real
    return np.sqrt(np.diag(np.linalg.inv(J))[: 3 * K]).reshape(K, 3)


def unconditional_bound(recording: Recording, scene: int) -> np.ndarray:
    """[K, 3]: Slepian-Bangs of the covariances with positions, powers and noise variance unknown."""
    where, power = places(recording, scene), recording.truth.power[scene].numpy()

    def covariances(x):
        position, p, noise = np.split(x, [3 * K, 4 * K])
        return [
            (C * p) @ C.conj().T + noise * Q
            for C, _, Q in blocks_of(recording, scene, position.reshape(K, 3))
        ]

    x = np.concatenate((where.ravel(), power, [NOISE]))
    J = np.zeros((len(x), len(x)))
    for block, R in enumerate(covariances(x)):
        D = _differences(lambda x, block=block: covariances(x)[block], x)
        WD = np.linalg.solve(R, D)
        J += np.einsum("iab,jba->ij", WD, WD).real
    return np.sqrt(np.diag(np.linalg.inv(J))[: 3 * K]).reshape(K, 3)


def _differences(function, x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences by each entry of x, stacked along a new first axis."""
    rows = []
    for i in range(len(x)):
        e = np.zeros(len(x))
        e[i] = step * max(1e-2, abs(x[i]))
        rows.append((function(x + e) - function(x - e)) / (2 * e[i]))
    return np.stack(rows)


def _of(value: torch.Tensor, shared: int, scene: int) -> np.ndarray:
    return (value if value.ndim == shared else value[scene]).numpy()


def _bands(recording: Recording) -> int:
    return 1 if recording.frequencies is None else len(recording.frequencies)
