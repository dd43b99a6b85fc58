"""The signal model in plain NumPy, scene by scene and from the definitions, as a reference."""

from __future__ import annotations

import numpy as np

ROWS = COLUMNS = 12
M = L = 16
WAVELENGTH = 0.3
K0 = 2 * np.pi / WAVELENGTH


def elements() -> np.ndarray:
    x = (np.arange(COLUMNS) - (COLUMNS - 1) / 2) * WAVELENGTH / 2
    y = (np.arange(ROWS) - (ROWS - 1) / 2) * WAVELENGTH / 2
    grid_x, grid_y = np.meshgrid(x, y, indexing="xy")
    return np.stack((grid_x.ravel(), grid_y.ravel(), 0 * grid_x.ravel()), axis=1)


def direction(azimuth: float, elevation: float) -> np.ndarray:
    return np.array(
        [np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)]
    )


def steering(p: np.ndarray, azimuth: float, elevation: float, r: float) -> np.ndarray:
    d = np.linalg.norm(r * direction(azimuth, elevation) - p, axis=1)
    return np.exp(1j * K0 * (r - d)) / np.sqrt(len(p))


def normal(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return (generator.standard_normal(shape) + 1j * generator.standard_normal(shape)) / np.sqrt(2)


def link(generator: np.random.Generator, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    azimuth, elevation = np.radians(generator.uniform([-60, -30], [60, 30]))
    place = (np.arange(M) - (M - 1) / 2) * WAVELENGTH / 2
    antennas = 100 * direction(azimuth, elevation) - place[:, None] * np.array([1.0, 0, 0])
    d = np.linalg.norm(antennas[:, None] - p, axis=-1)
    kappa = 10 ** (generator.uniform(-3, 10) / 10)
    H = np.sqrt(kappa / (kappa + 1)) * np.exp(-1j * K0 * (d - 100))
    H = H + np.sqrt(1 / (kappa + 1)) * normal(generator, M, len(p))
    return H, np.exp(2j * np.pi * generator.integers(8, size=(L, len(p))) / 8)


def scene(
    generator: np.random.Generator, p: np.ndarray, H: np.ndarray, codes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Snapshots [L, M], positions [K, 3], symbols [K, L], noise variance."""
    K = int(generator.integers(1, 6))
    while True:
        positions = generator.uniform([-60, -30, 0.5], [60, 30, 10], size=(K, 3))
        gap = np.abs(positions[:, None, :2] - positions[None, :, :2]).max(-1)
        if (gap[np.triu_indices(K, 1)] >= 8).all():
            break
    positions[:, :2] = np.radians(positions[:, :2])
    A = np.stack([steering(p, *position) for position in positions], axis=1)
    s = normal(generator, K, L)
    signal = np.stack([H @ (codes[i] * (A @ s[:, i])) for i in range(L)])
    variance = np.mean(np.abs(signal) ** 2) / 10 ** (generator.uniform(-5, 20) / 10)
    return signal + np.sqrt(variance) * normal(generator, L, M), positions, s, float(variance)


def conditional_crb(
    p: np.ndarray, H: np.ndarray, codes: np.ndarray, positions: np.ndarray, s: np.ndarray, variance: float
) -> np.ndarray:
    """Standard deviations [K, 3], with derivatives by central differences."""
    K, step = len(positions), 1e-6
    A = np.stack([steering(p, *position) for position in positions], axis=1)
    D = np.empty((len(p), K, 3), complex)
    for k in range(K):
        for i in range(3):
            forth, back = positions[k].copy(), positions[k].copy()
            forth[i] += step
            back[i] -= step
            D[:, k, i] = (steering(p, *forth) - steering(p, *back)) / (2 * step)
    J = np.zeros((3 * K, 3 * K))
    for i in range(L):
        G = H * codes[i]
        C = G @ A
        B = np.einsum("mn,nkp,k->mkp", G, D, s[:, i]).reshape(M, 3 * K)
        J += 2 / variance * np.real(B.conj().T @ (B - C @ np.linalg.lstsq(C, B, rcond=None)[0]))
    return np.sqrt(np.diag(np.linalg.inv(J))).reshape(K, 3)
