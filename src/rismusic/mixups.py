"""The usual mix-ups of conventions, tried one by one: does the truth fit better if one is undone?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from rismusic.recording import Recording
from rismusic.scene import Sources


def mix_ups(recording: Recording) -> dict[str, Float[Tensor, "S"]]:
    r"""How much better the true sources fit each scene when one convention is changed, in nats.

    The log-likelihood ratio of the changed against the recorded form, symbols and noise variance being
    unknown: :math:`L (M - K) \log(U_0 / U_1)`, U the :func:`unexplained_share`. Large and negative for a
    sound recording; above some tens, summed over scenes, the changed form is the right one.

    Args:
        recording: with its truth.
    """
    truth = recording.truth
    assert truth is not None
    L, M = recording.snapshots.shape[1:]
    freedom = L * (M - truth.active.sum(-1)).clamp_min(0)
    recorded = unexplained_share(recording, truth)
    ratios = {}
    for name, changed in _changes(recording, truth):
        assert changed.truth is not None
        other = unexplained_share(changed, changed.truth)
        # Where K >= M nothing is left unexplained, and nothing is told.
        told = (recorded > 0) & (other > 0)
        ratios[name] = torch.where(told, freedom * torch.log(recorded / torch.where(told, other, 1)), 0)
    return ratios


def unexplained_share(recording: Recording, sources: Sources) -> Float[Tensor, "S"]:
    r"""Share of each scene's energy outside the span of the sources, [S]; 1 / (1 + SNR) for the true ones.

    :math:`\frac{M}{M - K} \sum_l |P^\perp_{G_l A} y_l|^2 / \sum_l |y_l|^2`; 0 where K >= M leaves nothing.

    Args:
        recording: snapshots and link.
        sources: sources of each scene, [S, K_max].
    """
    y = recording.snapshots.to(torch.complex128)
    A = sources.steering(recording.panel).to(torch.complex128)
    K = sources.active.sum(-1)
    M = y.shape[-1]
    fields = recording.link.to(torch.complex128).matmul(A)
    # Singular vectors, not QR: the empty columns of absent sources may stand anywhere.
    U, sigma, _ = torch.linalg.svd(fields, full_matrices=False)
    U = U * (sigma > 1e-9 * sigma[..., :1])[..., None, :]
    inside = (U.mH @ y[..., None]).abs().square().sum(dim=(-3, -2, -1))
    total = y.abs().square().sum(dim=(-2, -1))
    return torch.where(K < M, ((1 - inside / total) * M / (M - K).clamp_min(1)).clamp_min(0), 0)


def _changes(recording: Recording, truth: Sources) -> Iterator[tuple[str, Recording]]:
    yield "snapshots_conjugated", replace(recording, snapshots=recording.snapshots.conj().resolve_conj())
    if recording.channel is not None and recording.codes is not None:
        yield "channel_conjugated", replace(recording, channel=recording.channel.conj().resolve_conj())
        yield "codes_conjugated", replace(recording, codes=recording.codes.conj().resolve_conj())
    yield "azimuth_mirrored", replace(recording, truth=replace(truth, azimuth=-truth.azimuth))
    yield "elevation_mirrored", replace(recording, truth=replace(truth, elevation=-truth.elevation))
    swapped = replace(truth, azimuth=truth.elevation, elevation=truth.azimuth)
    yield "angles_swapped", replace(recording, truth=swapped)
    yield "elements_renumbered", replace(recording, elements=_renumbered(recording.elements))


def _renumbered(elements: Tensor) -> Tensor:
    """The elements numbered by columns (x slowest), or by rows where that is what they are."""
    x, y = elements[:, 0], elements[:, 1]
    by_x, by_y = torch.argsort(x, stable=True), torch.argsort(y, stable=True)
    by_rows = by_x[torch.argsort(y[by_x], stable=True)]
    by_columns = by_y[torch.argsort(x[by_y], stable=True)]
    in_rows = torch.equal(by_rows, torch.arange(len(elements), device=elements.device))
    return elements[by_columns if in_rows else by_rows]
