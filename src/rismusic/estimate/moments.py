r"""What both likelihoods need of the data: inner products of fields at the receiver.

Everything behind them is K x K, in float64 whatever the precision of the data. (Inner products of complex64
fields are exact in float64, so a cost loses nothing to cancellation: it is that of slightly rounded fields.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from rismusic.recording import Recording
from rismusic.wave import Wave, by_inverse_range, steering, steering_with_derivatives

# Bytes that the largest arrays of one block of scenes may take.
_BLOCK = 2**27


@dataclass(frozen=True, eq=False)
class Moments:
    r"""What the likelihoods need of S scenes at given positions: inner products, in float64.

    Args:
        gram: :math:`X_l^H X_l`, [S, L, C, C] complex (L = 1 where the link is the same in every snapshot), of
            C = K columns G_l a_k, or K + 3K with their derivatives behind them (source slow, coordinate
            fast). Columns of empty places are zero.
        cross: :math:`X_l^H y_l`, [S, L, C] complex.
        energy: :math:`|y_l|^2`, [S, L].
        active: which places hold a source, [S, K].
        outputs: M, length of y_l.
    """

    gram: Complex[Tensor, "S _ C C"]
    cross: Complex[Tensor, "S L C"]
    energy: Float[Tensor, "S L"]
    active: Bool[Tensor, "S K"]
    outputs: int

    @property
    def size(self) -> int:
        """Complex numbers in a scene's data, L M."""
        return self.energy.shape[1] * self.outputs

    def __getitem__(self, scenes: Tensor | slice) -> Moments:
        """The moments of some scenes."""
        return Moments(
            self.gram[scenes], self.cross[scenes], self.energy[scenes], self.active[scenes], self.outputs
        )

    def without_derivatives(self) -> Moments:
        """Those of the fields alone."""
        K = self.active.shape[1]
        return Moments(self.gram[..., :K, :K], self.cross[..., :K], self.energy, self.active, self.outputs)

    def without_each(self) -> Moments:
        """With one source after the other left out, S K problems, the source fast; no derivatives."""
        K = self.active.shape[1]
        stay = ~torch.eye(K, dtype=torch.bool, device=self.active.device)  # [left out, K]
        pair = stay[:, :, None] & stay[:, None, :]
        return Moments(
            (self.gram[:, None, :, :K, :K] * pair[:, None]).flatten(0, 1),
            (self.cross[:, None, :, :K] * stay[:, None]).flatten(0, 1),
            self.energy.repeat_interleave(K, dim=0),
            (self.active[:, None] & stay).flatten(0, 1),
            self.outputs,
        )


def moments(
    recording: Recording,
    positions: Float[Tensor, "S K 3"],
    active: Bool[Tensor, "S K"],
    *,
    derivatives: bool = False,
    wave: Wave = "spherical",
) -> Moments:
    """Inner products of the sources' fields at the receiver, and of the fields' derivatives, with the data.

    Args:
        recording: S scenes.
        positions: azimuth (rad), elevation (rad) and inverse range (1/m), float64; finite throughout.
        active: which places hold a source.
        derivatives: whether B_l is there, by azimuth, elevation and inverse range.
        wave: the form of the wave.
    """
    data = recording.snapshots
    azimuth, elevation, q = positions.to(data.real.dtype).unbind(-1)
    panel, present = recording.panel, active[:, None]
    if derivatives:
        A, D = steering_with_derivatives(panel, azimuth, elevation, 1 / q, wave)
        turn = by_inverse_range(q)
        columns = torch.cat((A * present, (D * (turn * active[..., None])[:, None]).flatten(-2)), dim=-1)
    else:
        columns = steering(panel, azimuth, elevation, 1 / q, wave) * present
    fields = recording.link.matmul(columns).to(torch.complex128).contiguous()
    received = data.to(torch.complex128)
    adjoint = fields.mH
    cross = (adjoint @ received[..., None])[..., 0]
    energy = torch.view_as_real(received).square().sum(dim=(-2, -1))
    return Moments(adjoint @ fields, cross, energy, active, data.shape[-1])


def scene_blocks(recording: Recording, columns: int) -> list[slice]:
    """Blocks of scenes whose fields, ``columns`` of them for each scene, stay within the memory meant."""
    _, L, M = recording.snapshots.shape
    N = recording.elements.shape[0]
    coded = 1 if recording.codes is None else recording.codes.shape[-2]
    # Coded columns on the panel, fields at the receiver and their float64 copies, the link's own rows.
    each = coded * columns * (8 * N + 40 * M) + 8 * N * (L + M) + 4 * 16 * coded * columns**2
    step = max(1, _BLOCK // each)
    return [slice(i, min(i + step, len(recording))) for i in range(0, len(recording), step)]
