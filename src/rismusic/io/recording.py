"""A recording in memory: what the receiver saw, through which link, and the truth where it is known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from rismusic.array import Panel
from rismusic.operator import Link
from rismusic.sources import Sources


@dataclass(frozen=True, eq=False, kw_only=True)
class Recording:
    """S scenes of L snapshots at M receiver outputs, with the nominal system they were taken with.

    Args:
        wavelength: metres.
        elements: [N, 3] float64, positions in metres, panel frame.
        snapshots: y, [S, L, M] complex.
        channel: H, [M, N] or [S, M, N] complex; none for direct sampling (M = N).
        codes: c, [L, N] or [S, L, N] complex; none where ``channel`` is.
        noise_variance: sigma^2 = E|n|^2 of each scene, [S]; none where it is not known.
        truth: sources of each scene, [S, K_max]; none where they are not known.
    """

    wavelength: float
    elements: Float[Tensor, "N 3"]
    snapshots: Complex[Tensor, "S L M"]
    channel: Complex[Tensor, "... M N"] | None = None
    codes: Complex[Tensor, "... L N"] | None = None
    noise_variance: Float[Tensor, "S"] | None = None
    truth: Sources | None = None

    def __len__(self) -> int:
        return len(self.snapshots)

    @cached_property
    def panel(self) -> Panel:
        """The panel as recorded."""
        return Panel(self.elements, self.wavelength)

    @property
    def link(self) -> Link:
        """The link as recorded."""
        return Link(self.channel, self.codes)

    def __getitem__(self, scenes: slice | Tensor) -> Recording:
        """A recording of some of the scenes."""
        link = self.link[scenes]
        return replace(
            self,
            snapshots=self.snapshots[scenes],
            channel=link.channel,
            codes=link.codes,
            noise_variance=None if self.noise_variance is None else self.noise_variance[scenes],
            truth=None if self.truth is None else self.truth[scenes],
        )

    def to(self, device: torch.device | str) -> Recording:
        """The same recording on another device."""
        link = self.link.to(device)
        return replace(
            self,
            elements=self.elements.to(device),
            snapshots=self.snapshots.to(device),
            channel=link.channel,
            codes=link.codes,
            noise_variance=None if self.noise_variance is None else self.noise_variance.to(device),
            truth=None if self.truth is None else self.truth.to(device),
        )
