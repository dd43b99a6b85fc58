"""What a prediction is compared with: the truth of each scene, and what its snapshots say."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor

from rismusic.covariance import Conditioning, Covariance, finish, sample_covariance, true_covariance
from rismusic.errors import InputError
from rismusic.estimate.grid import SearchGrid, from_cosines, to_cosines
from rismusic.estimate.noise import noise_of
from rismusic.recording import Recording
from rismusic.scene import Sources
from rismusic.wave import steering

# Cells on either side of a true source, along u_x and u_y.
_REACH = 2


@dataclass(frozen=True, eq=False, kw_only=True)
class Targets:
    """Truth and sample covariance of S scenes; nothing in it has a gradient.

    Args:
        truth: true sources, [S, K].
        steering: A, [S, N, K], zero where there is no source.
        true: R_true of trace 1, not conditioned.
        sample: R_samp of trace 1, not conditioned, from the snapshots as in inference.
        conditioning: loading and shrinkage of R_samp, for the blend and for what it is compared with.
        grid: the search grid.
    """

    truth: Sources
    steering: Complex[Tensor, "S N K"]
    true: Covariance
    sample: Covariance
    conditioning: Conditioning
    grid: SearchGrid

    @classmethod
    @torch.no_grad()
    def of(
        cls, recording: Recording, grid: SearchGrid, noise_variance: Float[Tensor, "S"] | None = None
    ) -> Targets:
        """Targets of the scenes of a recording that knows its sources.

        Args:
            recording: S scenes with truth, positions and powers.
            grid: the search grid, on the recording's device.
            noise_variance: sigma^2 of each scene; that of the recording where none is given, estimated where
                it has none, as in inference.

        Raises:
            InputError: no truth, or no powers in it.
        """
        if recording.truth is None:
            raise InputError("truth", "the true sources of each scene", "none")
        if recording.truth.power is None:
            raise InputError("truth/power", "the sources' powers, without which there is no R_true", "none")
        noise = noise_of(recording) if noise_variance is None else noise_variance
        sample, conditioning = sample_covariance(recording.link, recording.snapshots, noise)
        dtype = recording.snapshots.real.dtype
        truth = replace(recording.truth, symbols=None).each(lambda value: value.to(dtype))
        assert truth.power is not None
        A = truth.steering(recording.panel)
        return cls(
            truth=truth,
            steering=A,
            true=true_covariance(A, truth.power).normalised(),
            sample=sample,
            conditioning=conditioning,
            grid=grid,
        )

    def __len__(self) -> int:
        return len(self.steering)

    @property
    def count(self) -> Int64[Tensor, "S"]:
        """K of each scene."""
        return self.truth.active.sum(-1)

    @property
    def conditioned(self) -> Covariance:
        """R_true, finished as the blend is that it is compared with."""
        return finish(self.true, self.conditioning)

    def around(self) -> Complex[Tensor, "S N K C"]:
        """Steering vectors of the 5 x 5 cells around each true source, at its range, itself in the middle.

        The cells are a step of the grid apart in u_x and u_y, and centred on the source, which lies between
        the points of the grid. Empty places hold the cells around some harmless point.
        """
        azimuth, elevation, distance = self.truth.filled()
        u_x, u_y, q = to_cosines(azimuth, elevation, distance)
        offset = torch.arange(-_REACH, _REACH + 1, dtype=u_x.dtype, device=u_x.device)
        right, up = (axis.ravel() for axis in torch.meshgrid(offset, offset, indexing="ij"))
        x, y = u_x[..., None] + self.grid.step[0] * right, u_y[..., None] + self.grid.step[1] * up
        azimuth, elevation, distance = (
            place.flatten(-2) for place in from_cosines(x, y, q[..., None].expand_as(x))
        )
        return steering(self.grid.panel, azimuth, elevation, distance).unflatten(-1, x.shape[-2:])

    def __getitem__(self, scenes: slice | Tensor) -> Targets:
        """The targets of some scenes."""
        return replace(
            self,
            truth=self.truth[scenes],
            steering=self.steering[scenes],
            true=self.true[scenes],
            sample=self.sample[scenes],
            conditioning=self.conditioning[scenes],
        )
