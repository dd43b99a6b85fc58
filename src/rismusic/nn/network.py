r"""The default network, unrolled sparse Bayesian learning on the search grid, and its predictions.

Each stage is given statistics of the data at every grid point under the current source powers
(:mod:`rismusic.nn.statistics`) and outputs a heat map, whose softmax gives the powers for the next stage. The
highest peaks of the last heat map become the sources. No gradient passes through the statistics: each stage
has its own loss, and passes its features on to the next one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from rismusic.array import steering
from rismusic.batch import Batch
from rismusic.covariance import Conditioning, Covariance, blend, load_and_shrink, predicted_covariance
from rismusic.errors import InputError
from rismusic.estimation.grid import SearchGrid, from_cosines, highest_points
from rismusic.estimation.sbl import sbl_update
from rismusic.estimation.symmetry import onednn_linear, with_onednn
from rismusic.io import Recording
from rismusic.nn.spec import NetworkSpec
from rismusic.nn.statistics import GridStatistics, ScaledScenes
from rismusic.registry import NETWORKS
from rismusic.text import short_repr


@dataclass(frozen=True, eq=False, kw_only=True)
class Prediction(Batch):
    r"""Network output for S scenes.

    The heads are an unordered set; they are matched to the true sources before they are compared.

    Args:
        angle_factor: A_ang, [S, N, K_max] complex.
        range_factor: A_rng, [S, N, K_max] complex.
        count_logits: [S, K_max + 1], of 0 .. K_max sources.
        azimuth: [S, Q] radians.
        elevation: [S, Q] radians.
        inverse_range: [S, Q] 1/m, positive.
        existence_logits: [S, Q], positive if head q represents a source.
        grid_logits: [S, T, P], heat maps of T stages over the points of a
            :class:`~rismusic.estimation.grid.SearchGrid`; the softmax of the last one is the share of the
            sources at each point.

    Raises:
        InputError: shapes that do not match.
    """

    angle_factor: Complex[Tensor, "S N K"]
    range_factor: Complex[Tensor, "S N K"]
    count_logits: Float[Tensor, "S _"]
    azimuth: Float[Tensor, "S Q"]
    elevation: Float[Tensor, "S Q"]
    inverse_range: Float[Tensor, "S Q"]
    existence_logits: Float[Tensor, "S Q"]
    grid_logits: Float[Tensor, "S T P"] | None = None

    __repr__ = short_repr

    def __post_init__(self) -> None:
        scenes, _, most = self.angle_factor.shape
        _shaped("range_factor", self.range_factor, list(self.angle_factor.shape))
        _shaped("count_logits", self.count_logits, [scenes, most + 1])
        for name in ("elevation", "inverse_range", "existence_logits"):
            _shaped(name, getattr(self, name), [scenes, self.azimuth.shape[-1]])

    @classmethod
    def from_heat_map(
        cls, grid: SearchGrid, grid_logits: Float[Tensor, "S P"], count_logits: Float[Tensor, "S counts"]
    ) -> Prediction:
        """A prediction from a heat map alone: its highest peaks become the sources and the factors.

        The factors' amplitudes and the positions, interpolated between the points of the grid, follow the
        map, so the losses of covariance and positions reach it.

        Args:
            grid: X Y Z = P points.
            grid_logits: the map; softmax gives the share of sources at each point.
            count_logits: of 0 .. K_max sources.
        """
        most = count_logits.shape[1] - 1
        logits = grid_logits.masked_fill(~grid.inside, -30.0)
        index = highest_points(logits.detach(), grid, most)
        azimuth, elevation, distance = interpolated(grid, logits, index)
        height = logits.log_softmax(-1).gather(1, index)
        A = steering(grid.panel, azimuth, elevation, distance) * (height / 2).exp()[:, None]
        return cls(
            angle_factor=A,
            range_factor=A,
            count_logits=count_logits,
            azimuth=azimuth,
            elevation=elevation,
            inverse_range=1 / distance,
            existence_logits=height + 4,
            grid_logits=logits[:, None],
        )

    def __len__(self) -> int:
        return len(self.angle_factor)

    @property
    def covariance(self) -> Covariance:
        """R_pred = A_ang A_ang^H + 0.3 A_rng A_rng^H, of trace 1 and rank at most 2 K_max."""
        return predicted_covariance(self.angle_factor, self.range_factor).normalised()

    def blended(
        self, sample: Covariance, conditioning: Conditioning, beta: Float[Tensor, "S"] | float
    ) -> Covariance:
        """R_blend with its loading, as used by the losses and by inference.

        Args:
            sample: R_samp of :func:`~rismusic.covariance.sample_covariance`.
            conditioning: loading and shrinkage, from the same call.
            beta: share of R_samp, 0 to 1.
        """
        return load_and_shrink(blend(self.covariance, sample, beta), conditioning)


def _shaped(name: str, value: Tensor, shape: list[int]) -> None:
    if list(value.shape) != shape:
        raise InputError(f"prediction.{name}", f"must have shape {shape}; got {list(value.shape)}")


def interpolated(
    grid: SearchGrid,
    logits: Float[Tensor, "S P"],
    index: Int64[Tensor, "S K"],
    shift: Float[Tensor, "S K 3"] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Azimuth, elevation and range of peaks: the mean of the map around each, and a shift.

    ``index`` has the flat places of the peaks; the shift is in steps of the grid.
    """
    X, Y, Z = grid.shape
    around = torch.tensor(
        [(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)], device=index.device
    )
    cell = torch.stack((index // (Y * Z), index // Z % Y, index % Z), dim=-1)
    near = cell[:, :, None] + around
    size = torch.tensor((X, Y, Z), device=index.device)
    there = ((near >= 0) & (near < size)).all(-1)
    near = torch.minimum(near.clamp_min(0), size - 1)
    flat = (near[..., 0] * Y + near[..., 1]) * Z + near[..., 2]
    value = logits.gather(1, flat.flatten(1)).view(flat.shape).masked_fill(~there, -torch.inf)
    weight = value.softmax(-1)
    mean = (weight[..., None] * around.to(weight.dtype)).sum(-2)
    if shift is not None:
        mean = mean + shift
    axes = (grid.u_x, grid.u_y, grid.q)
    u_x, u_y, q = (
        axis.to(mean.dtype)[cell[..., i]] + grid.step[i] * mean[..., i] for i, axis in enumerate(axes)
    )
    # In front of the panel, and not behind the horizon.
    u_y = u_y.clamp(-0.95, 0.95)
    reach = 0.999 * (1 - u_y.square()).sqrt()
    u_x = torch.minimum(torch.maximum(u_x, -reach), reach)
    return from_cosines(u_x, u_y, q.clamp_min(grid.step[2] / 4))


class Linear(nn.Linear):
    """A layer that oneDNN computes where it is used for matrices of the grid, too."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last axis."""
        if x.dtype == torch.float32 and with_onednn(x.device):
            return onednn_linear(x, self.weight, self.bias)
        return super().forward(x)


class Block(nn.Module):
    """ConvNeXt block, with attention over all cells because distant sources compete to explain the data.

    Liu et al., "A ConvNet for the 2020s" (CVPR 2022). The kernel of the depthwise convolution is odd; without
    heads there is no attention.
    """

    def __init__(self, width: int, kernel: int, *, heads: int) -> None:
        super().__init__()
        self.near = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.widen = Linear(width, 2 * width)
        self.narrow = Linear(2 * width, width)
        self.attention = Attention(width, heads) if heads else None

    def forward(
        self, x: Float[Tensor, "S C X Y"], mask: Float[Tensor, "S 2 C"] | None = None
    ) -> Float[Tensor, "S C X Y"]:
        """Apply the residual branches, with a mask of :func:`rismusic.nn.data.channel_dropout` if given."""
        flat = self.near(x).flatten(2).mT  # [S, X Y, C]
        change = self.narrow(gelu(self.widen(self.norm(flat)))).mT
        x = x + _dropout(change, mask, 0).view_as(x)
        if self.attention is not None:
            x = x + _dropout(self.attention(x.flatten(2).mT).mT, mask, 1).view_as(x)
        return x


def _dropout(branch: Tensor, mask: Tensor | None, row: int) -> Tensor:
    """A residual branch [S, C, X Y] times a row of the dropout mask."""
    return branch if mask is None else branch * mask[:, row, :, None].to(branch.dtype)


class Attention(nn.Module):
    """Multi-head self-attention over the cells of a scene."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.ask = Linear(width, 3 * width)
        self.answer = Linear(width, width)

    def forward(self, x: Float[Tensor, "S T C"]) -> Float[Tensor, "S T C"]:
        """Apply to T tokens."""
        queries, keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.ask(self.norm(x)).chunk(3, dim=-1)
        )
        return self.answer(scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2))


class Stage(nn.Module):
    """A convolutional network from input maps to features and a heat map.

    ``maps`` and ``width`` are the numbers of input and feature channels, ``planes`` is that of heat map
    values per cell. The last block has attention.
    """

    precision: torch.dtype | None = None
    """Autocast type, none for the type of the input. Outputs have the type of the input."""

    def __init__(self, maps: int, width: int, depth: int, kernel: int, heads: int, planes: int) -> None:
        super().__init__()
        self.read = nn.Conv2d(maps, width, 1)
        last = depth - 1
        self.blocks = nn.Sequential(
            *(Block(width, kernel, heads=heads if i == last else 0) for i in range(depth))
        )
        self.write = nn.Conv2d(width, planes, 1)

    def forward(
        self, maps: Float[Tensor, "S C X Y"], mask: Float[Tensor, "S B 2 W"] | None = None
    ) -> tuple[Float[Tensor, "S W X Y"], Float[Tensor, "S P"]]:
        """The features and the heat map [S, X Y Z]; the mask has one row pair per block."""
        with torch.autocast(maps.device.type, self.precision, enabled=self.precision is not None):
            features = self.read(maps)
            for number, block in enumerate(self.blocks):
                features = block(features, None if mask is None else mask[:, number])
            values = self.write(features).movedim(1, -1).flatten(1)
        return features.to(maps.dtype), values.to(maps.dtype)


# Input maps per grid point: the log of matched / expected, expected * power and received power under the
# current powers, and of the first two under uniform powers.
_MAPS = 5
# Limits of the logarithms, nats.
_LOWEST, _HIGHEST = -8.0, 8.0


class GridNetwork(nn.Module):
    """Base class of networks that ``train`` and ``locate`` take; see :func:`rismusic.register_network`.

    A subclass is built as ``cls(spec, grid)`` and implements :meth:`forward`. Its prediction needs
    ``grid_logits``; :meth:`~rismusic.nn.network.Prediction.from_heat_map` makes the rest from them.

    Args:
        spec: settings; ``sources_max`` and ``oversampling`` hold for every network.
        grid: the search grid, P = X Y Z points, whose panel is the one the network is for.
    """

    def __init__(self, spec: NetworkSpec, grid: SearchGrid) -> None:
        super().__init__()
        self.spec, self.grid = spec, grid

    def forward(self, recording: Recording) -> Prediction:
        """Predict for S scenes of the grid's panel; the noise variance may be missing."""
        raise NotImplementedError

    def set_precision(self, precision: torch.dtype | None) -> None:
        """Set the autocast type for training, none for float32; ignored by default."""


def build_network(
    spec: NetworkSpec, grid: SearchGrid, generator: torch.Generator | None = None
) -> GridNetwork:
    """A network of the kind that the settings name, with initial weights.

    torch's default initialisation uses the seed of the generator.
    """
    points = int(grid.inside.sum())
    if points < spec.sources_max:
        raise InputError(
            "network.sources_max",
            f"must be at most {points}, the points of the search grid; got {spec.sources_max}. Reduce it, "
            "raise network.oversampling, or search a larger volume",
        )
    cls = NETWORKS.get(spec.kind)
    if not (isinstance(cls, type) and issubclass(cls, GridNetwork)):
        raise InputError(
            "network.kind", f"{spec.kind!r} must be a subclass of rismusic.GridNetwork; got {cls!r}"
        )
    if issubclass(cls, Network):
        return cls(spec, grid, generator)
    if spec.dropout:
        raise InputError("network.dropout", f"the network {spec.kind!r} has no channel dropout; set it to 0")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0 if generator is None else generator.initial_seed())
        return cls(spec, grid)


class Network(GridNetwork):
    """The default network, unrolled sparse Bayesian learning; see the module docstring.

    Its inputs are sums over snapshots of squared magnitudes, normalised to unit power, so the output does not
    depend on the order of the snapshots, a global phase, or the scale of y.
    """

    place: Tensor

    def __init__(self, spec: NetworkSpec, grid: SearchGrid, generator: torch.Generator | None = None) -> None:
        super().__init__(spec, grid)
        self._statistics = GridStatistics(grid)
        X, Y, Z = grid.shape
        width = spec.width
        # Coordinates of the cells, and whether they are inside the volume.
        place = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, n) for n in (X, Y)), indexing="ij"))
        inside = grid.inside.view(X, Y, Z).any(-1).float()[None].cpu()
        self.register_buffer("place", torch.cat((place, inside)), persistent=False)
        channels = _MAPS * Z + 3 + 1
        self.stages = nn.ModuleList(
            Stage(channels + (width if stage else 0), width, spec.depth, spec.kernel, spec.heads, Z)
            for stage in range(spec.stages)
        )
        # Per grid point: offsets along u_x, u_y, q; log amplitude in both factors; existence logit.
        self.details = nn.Conv2d(width, 6 * Z, 1)
        self.count = nn.Sequential(
            nn.Linear(2 * width + 1 + spec.sources_max + 1, width),
            nn.GELU(),
            nn.Linear(width, spec.sources_max + 1),
        )
        self._reset(generator)

    def set_precision(self, precision: torch.dtype | None) -> None:
        """Set the autocast type of the stages."""
        for stage in self._each_stage():
            stage.precision = precision

    def _reset(self, generator: torch.Generator | None) -> None:
        """Initialise all weights from one generator, output layers with small ones."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                fan = module.weight[0].numel()
                nn.init.normal_(module.weight, std=fan**-0.5, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        with torch.no_grad():
            for weight in (self.details.weight, cast(nn.Linear, self.count[-1]).weight):
                weight.mul_(0.1)
            for stage in self._each_stage():
                stage.write.weight.mul_(0.1)

    def _each_stage(self) -> list[Stage]:
        return [cast(Stage, stage) for stage in self.stages]

    def forward(self, recording: Recording, mask: Float[Tensor, "S T B 2 W"] | None = None) -> Prediction:
        """Predict for S scenes, with a mask of :func:`~rismusic.nn.data.channel_dropout` if given."""
        scenes, maps, power = self.initial_statistics(recording)
        return self.predict(scenes, maps, power, mask)

    @torch.no_grad()
    def initial_statistics(
        self, recording: Recording
    ) -> tuple[ScaledScenes, Float[Tensor, "S 2 P"], Float[Tensor, "S P"]]:
        """The part without weights: scaled scenes, maps at uniform powers, powers after the SBL steps."""
        statistics = self._statistics
        scenes = statistics.observe(recording)
        power = statistics.uniform_power(scenes)
        matched, expected = statistics(scenes, power)
        initial_maps = torch.stack((_log(matched / expected), _log(expected * power)), dim=1)
        power = statistics.sbl_steps(
            scenes, sbl_update(power, matched, expected), self.spec.sbl_iterations - 1
        )
        return scenes, initial_maps, power

    def predict(
        self,
        scenes: ScaledScenes,
        initial_maps: Float[Tensor, "S 2 P"],
        power: Float[Tensor, "S P"],
        mask: Float[Tensor, "S T B 2 W"] | None = None,
    ) -> Prediction:
        """Run the stages and extract the sources."""
        X, Y, Z = self.grid.shape
        S = len(power)
        features: Tensor | None = None
        all_logits = []
        for number, stage in enumerate(self._each_stage()):
            with torch.no_grad():
                matched, expected = self._statistics(scenes, power)
                current_maps = torch.stack(
                    (_log(matched / expected), _log(expected * power), _log(power * scenes.gain)), dim=1
                )
            maps = (
                torch.cat((initial_maps, current_maps), dim=1)
                .view(S, _MAPS, X, Y, Z)
                .movedim(-1, 2)
                .flatten(1, 2)
            )
            noise = scenes.noise_variance.log().view(S, 1, 1, 1).expand(S, 1, X, Y)
            inputs = [maps, self.place.expand(S, -1, -1, -1), noise / 4]
            if features is not None:
                inputs.append(features)
            stage_mask = None if mask is None else mask[:, number]
            features, logits = stage(torch.cat(inputs, dim=1), stage_mask)
            # A stage starts from one SBL iteration.
            logits = logits + current_maps[:, 2] + current_maps[:, 0]
            logits = logits.masked_fill(~self.grid.inside, -30.0)
            all_logits.append(logits)
            with torch.no_grad():
                share = logits.detach().softmax(-1) + 1e-7 * self.grid.inside
                power = self._statistics.scale_power(scenes, share)
        assert features is not None
        return self._sources(all_logits, features, current_maps, scenes)

    def _sources(
        self, all_logits: list[Tensor], features: Tensor, current_maps: Tensor, scenes: ScaledScenes
    ) -> Prediction:
        grid, most = self.grid, self.spec.sources_max
        logits = all_logits[-1]
        X, Y, Z = grid.shape
        S = len(logits)
        index = highest_points(logits.detach(), grid, most)
        details = self.details(features).view(S, 6, Z, X, Y).movedim(2, -1).flatten(2)
        at_peaks = details.gather(2, index[:, None, :].expand(-1, 6, -1))  # [S, 6, K]
        azimuth, elevation, distance = interpolated(grid, logits, index, at_peaks[:, :3].mT.tanh())
        height = logits.log_softmax(-1).gather(1, index)
        amplitude = (height[:, None] / 2 + at_peaks[:, 3:5]).exp()
        panel = grid.panel
        A = steering(panel, azimuth, elevation, distance)
        # The range factor gets gradients of the range only.
        B = steering(panel, azimuth.detach(), elevation.detach(), distance) if A.requires_grad else A
        pooled = torch.cat((features.mean((2, 3)), features.amax((2, 3))), dim=1)
        count_input = torch.cat(
            (pooled, scenes.noise_variance.log()[:, None] / 4, height, current_maps.amax((1, 2))[:, None]), 1
        )
        return Prediction(
            angle_factor=A * amplitude[:, :1],
            range_factor=B * amplitude[:, 1:],
            count_logits=self.count(count_input),
            azimuth=azimuth,
            elevation=elevation,
            inverse_range=1 / distance,
            existence_logits=at_peaks[:, 5] + 4 + height,
            grid_logits=torch.stack(all_logits, dim=1),
        )


def _log(value: Tensor) -> Tensor:
    return value.clamp_min(1e-30).log().clamp(_LOWEST, _HIGHEST)
