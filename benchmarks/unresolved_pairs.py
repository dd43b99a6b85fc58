r"""How well any test can tell two sources within a beam from one, and how often ``locate`` does.

For each separation and SNR, the likelihood ratio of the true pair against the closest single source (least
Kullback-Leibler divergence) is drawn with all parameters of both known, in snapshots of either. By the lemma
of Neyman and Pearson, no test with the same rate of false alarms for that source recognises more pairs::

    python benchmarks/unresolved_pairs.py --scenes 100 --seed 101
"""

from __future__ import annotations

import argparse

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from departures import close
from rismusic.array import steering
from rismusic.hybrid import locate
from rismusic.io import Recording

DRAWS = 400
"""Draws of the snapshots of each scene."""


def covariance(
    recording: Recording,
    positions: Float[Tensor, "S K 3"],
    power: Float[Tensor, "S K"],
    noise: Float[Tensor, "S"],
) -> Complex[Tensor, "S L M M"]:
    """Covariance of each snapshot for sources at azimuth, elevation, 1/range."""
    azimuth, elevation, q = positions.unbind(-1)
    A = steering(recording.panel, azimuth, elevation, 1 / q)
    fields = recording.link.to(torch.complex128).matmul(A * power.sqrt()[:, None])
    return fields @ fields.mH + noise[:, None, None, None] * torch.eye(fields.shape[-2])


def closest_single(
    recording: Recording, R: Tensor, pair: Float[Tensor, "S 2 3"], noise: Float[Tensor, "S"]
) -> Complex[Tensor, "S L M M"]:
    """Covariance of the single source of the greatest expected log-likelihood in snapshots of a pair."""
    scale = torch.tensor([0.01, 0.01, 0.05, 0.1, 0.1], dtype=torch.float64)
    start = torch.cat((pair.mean(1), noise.new_full((len(noise), 1), 2.0).log(), noise.log()[:, None]), 1)
    change = torch.zeros_like(start, requires_grad=True)
    optimizer = torch.optim.LBFGS([change], max_iter=300, line_search_fn="strong_wolfe")

    def single() -> Tensor:
        x = start + change * scale
        return covariance(recording, x[:, None, :3], x[:, 3:4].exp(), x[:, 4].exp())

    def loss() -> Tensor:
        optimizer.zero_grad()
        S = single()
        ratio = torch.linalg.solve(S, R).diagonal(dim1=-2, dim2=-1).real.sum(-1)
        value = (ratio + torch.linalg.slogdet(S).logabsdet).sum()
        value.backward()
        return value

    optimizer.step(loss)
    return single().detach()


def likelihood_ratio(drawn: Tensor, pair: Tensor, single: Tensor, seed: int) -> Float[Tensor, "draws S"]:
    """Log-likelihood ratios of the pair, in snapshots drawn with the first covariance."""
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(DRAWS, *drawn.shape[:-1], dtype=drawn.dtype, generator=generator)
    y = torch.linalg.cholesky(drawn) @ white[..., None]
    values = []
    for R in (pair, single):
        factor = torch.linalg.cholesky(R)
        energy = torch.linalg.solve_triangular(factor, y, upper=False).abs().square().sum((-3, -2, -1))
        values.append(-energy - 2 * factor.diagonal(dim1=-2, dim2=-1).real.log().sum((-2, -1)))
    return values[0] - values[1]


def bounds(recording: Recording, snr_db: float, rates: tuple[float, ...], seed: int) -> list[float]:
    """Greatest share of recognised pairs at these rates of false alarms."""
    recording, truth = recording.stacked(), recording.truth
    assert truth is not None
    pair = torch.stack((truth.azimuth, truth.elevation, 1 / truth.range), dim=-1).double()
    power = torch.ones_like(pair[..., 0])
    received = covariance(recording, pair, power, 0 * power[:, 0])
    noise = received.diagonal(dim1=-2, dim2=-1).real.mean((1, 2)) / 10 ** (snr_db / 10)
    R = covariance(recording, pair, power, noise)
    single = closest_single(recording, R, pair, noise)
    of_single = likelihood_ratio(single, R, single, seed)
    of_pair = likelihood_ratio(R, R, single, seed + 1)
    return [float((of_pair > of_single.quantile(1 - rate, dim=0)).double().mean()) for rate in rates]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--separations", type=float, nargs="+", default=[0.5, 1, 2, 3])
    parser.add_argument("--snr-db", type=float, nargs="+", default=[5, 10, 20])
    options = parser.parse_args()
    torch.set_num_threads(1)
    rates = (0.001, 0.01, 0.05)
    print(
        "separation   SNR   recognised at most, with false alarms of .1, 1, 5 %   not ok in locate",
        flush=True,
    )
    for separation in options.separations:
        for snr_db in options.snr_db:
            recording = close(separation, snr_db)(options.scenes, options.seed, {})
            best = bounds(recording, snr_db, rates, options.seed)
            named = sum(status != "ok" for status in locate(recording).status) / options.scenes
            text = "  ".join(f"{share:4.2f}" for share in best)
            print(f"{separation:6g} deg {snr_db:3g} dB   {text}   {named:.2f}", flush=True)


if __name__ == "__main__":
    main()
