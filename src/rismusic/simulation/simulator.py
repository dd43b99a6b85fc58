"""The simulator: scenes without end, each a function of (seed, split, number) alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rismusic.array import Panel
from rismusic.devices import device_of
from rismusic.errors import InputError
from rismusic.io import Recording
from rismusic.operator import Link
from rismusic.simulation.channel import draw_channel
from rismusic.simulation.codebook import draw_codes
from rismusic.simulation.impairments import impair
from rismusic.simulation.random_numbers import Draws, Split, Stream
from rismusic.sources import Sources, draw_sources
from rismusic.spec import PanelSpec, SystemSpec, limits
from rismusic.units import from_db


class Simulator:
    r"""Simulates the scenes of a system: :math:`y_l = G_l A s_l + n_l`.

    The same scene number gives the same scene, whatever the batch it is asked for in, the process or the
    device (floating-point functions may differ by rounding between devices). Nothing is stored.

    Args:
        spec: the system.
        seed: from 0 to 2**64 - 1.
        split: ``train``, ``validation`` or ``test``; they never share a scene.
        panel: in place of the one that ``spec`` describes, for example with arbitrary element positions.
        link: in place of the one that ``spec`` describes: a measured channel, a codebook of one's own; one
            link for all scenes. Its snapshots L take the place of those in ``spec``.
        device: where the scenes are drawn.
        dtype: ``torch.float32`` (complex64 snapshots) or ``torch.float64``.

    Raises:
        InputError: a link that does not fit the panel, a ``dft`` codebook without a uniform panel, a
            separation at which the sources do not fit.
    """

    def __init__(
        self,
        spec: SystemSpec | None = None,
        *,
        seed: int = 0,
        split: Split = "train",
        panel: Panel | None = None,
        link: Link | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.spec = spec or SystemSpec()
        self.seed, self.split = seed, split
        self.device, self.dtype = device_of(device), dtype
        self.panel = (panel or Panel.from_spec(self.spec.panel)).to(self.device)
        if (
            panel is not None
            and link is None
            and panel.size != self.spec.panel.rows * self.spec.panel.columns
        ):
            raise InputError(
                "panel", "rows times columns elements as in spec.panel, or a link of its own", f"{panel.size}"
            )
        self._given = None if link is None else link.to(self.device).to(dtype.to_complex())
        if self._given is not None:
            _check_link(self._given, self.panel)
        self._fixed: tuple[Link, Panel, Link] | None = None
        if self.spec.one_link or self._given is not None:
            whole = Draws(seed, "link", torch.zeros(1, dtype=torch.int64, device=self.device))
            nominal, acting, actual = self._link(whole)
            if acting.elements.ndim > 2:
                acting = Panel(acting.elements[0], acting.wavelength)
            self._fixed = (_first(nominal), acting, _first(actual))

    def __call__(self, scenes: Int64[Tensor, "S"]) -> Recording:
        """The scenes of these numbers, in this order."""
        draws = Draws(self.seed, self.split, scenes.to(self.device))
        nominal, acting, actual = self._fixed or self._link(draws)
        L = self.spec.codebook.snapshots if nominal.codes is None else nominal.codes.shape[-2]
        truth = draw_sources(self.spec.scene, self.spec.sources, L, draws, self.dtype)
        snapshots, noise_variance = self._receive(truth, acting, actual, draws)
        return Recording(
            wavelength=self.panel.wavelength,
            elements=self.panel.elements,
            snapshots=snapshots,
            channel=nominal.channel,
            codes=nominal.codes,
            noise_variance=noise_variance,
            truth=truth,
        )

    def scenes(self, start: int, stop: int) -> Recording:
        """Scenes ``start`` to ``stop - 1``."""
        return self(torch.arange(start, stop, device=self.device))

    def stream(self, batch: int, *, start: int = 0, stop: int | None = None) -> Iterator[Recording]:
        """Scenes from ``start`` on in batches, without end unless ``stop`` is given."""
        while stop is None or start < stop:
            end = start + batch if stop is None else min(start + batch, stop)
            yield self.scenes(start, end)
            start = end

    def _link(self, draws: Draws) -> tuple[Link, Panel, Link]:
        """The recorded link, and the panel and link that act."""
        dtype = self.dtype.to_complex()
        if self._given is not None:
            nominal = self._given
        elif self.spec.channel.kind == "direct":
            nominal = Link()
        else:
            channel = draw_channel(self.panel, self.spec.channel, draws, dtype)
            nominal = Link(channel, draw_codes(self.spec.panel, self.spec.codebook, draws, dtype))
        return nominal, *impair(self.panel, nominal, self.spec.hardware, draws)

    def _receive(
        self, sources: Sources, acting: Panel, actual: Link, draws: Draws
    ) -> tuple[Tensor, Float[Tensor, "S"]]:
        """Snapshots and noise variance; the noise is scaled to the asked SNR of the realised signal."""
        assert sources.symbols is not None
        symbols = torch.where(sources.active[..., None], sources.symbols, 0)
        field = symbols.mT @ sources.steering(acting).mT
        signal = actual.apply(field)
        power = 2 * torch.view_as_real(signal).square().mean(dim=(-3, -2, -1))
        if not (power > 0).all():
            raise InputError("signal", "some power at the receiver", "zero power (every element dead?)")
        low, high = limits(self.spec.snr_db)
        fraction = draws.uniform(Stream.SNR, dtype=self.dtype)
        noise_variance = power / from_db(low + (high - low) * fraction)
        noise = draws.complex_normal(Stream.NOISE, *signal.shape[1:], dtype=signal.dtype)
        return signal + noise_variance.sqrt()[:, None, None] * noise, noise_variance


def simulate(
    spec: SystemSpec | None = None,
    *,
    scenes: int,
    seed: int = 0,
    split: Split = "test",
    panel: Panel | PanelSpec | dict[str, object] | None = None,
    link: Link | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    **settings: object,
) -> Recording:
    """Simulate the first ``scenes`` scenes of a split; the twin of ``rismusic simulate``.

    Args:
        spec: the system; the default system if none.
        scenes: how many.
        seed: see :class:`Simulator`.
        split: see :class:`Simulator`.
        panel: a :class:`~rismusic.array.Panel` of one's own (see :class:`Simulator`), or settings of a
            uniform one, such as ``{"rows": 64, "columns": 64}``.
        link: see :class:`Simulator`.
        device: see :class:`Simulator`.
        dtype: see :class:`Simulator`.
        settings: fields of :class:`~rismusic.spec.SystemSpec` to change, such as ``sources=3, snr_db=10``.

    Raises:
        InputError: a setting is unknown or impossible.
    """
    if scenes < 1:
        raise InputError("scenes", "a positive number", str(scenes))
    own = panel if isinstance(panel, Panel) else None
    if panel is not None and own is None:
        settings["panel"] = panel
    changed = (spec or SystemSpec()).replace(**settings)
    simulator = Simulator(changed, seed=seed, split=split, panel=own, link=link, device=device, dtype=dtype)
    return simulator.scenes(0, scenes)


def _check_link(link: Link, panel: Panel) -> None:
    for name, part in (("channel", link.channel), ("codes", link.codes)):
        if part is not None and part.shape[-1] != panel.size:
            raise InputError(f"link.{name}", f"N = {panel.size} elements as in panel", str(part.shape[-1]))
    if link.per_scene:
        raise InputError("link", "one link for all scenes, [M, N] and [L, N]", "leading scene axes")
    if (link.channel is None) != (link.codes is None):
        raise InputError("link", "channel and codes, or neither", "only one of them")


def _first(link: Link) -> Link:
    """A link drawn as a batch of one, without its scene axis."""
    return Link(*(part if part is None or part.ndim == 2 else part[0] for part in (link.channel, link.codes)))
