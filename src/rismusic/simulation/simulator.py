"""Simulator of recordings; each scene is a function of (seed, split, scene number) alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rismusic.array import SPEED_OF_LIGHT, Panel, check_azimuth_limit, from_db
from rismusic.devices import device_of
from rismusic.errors import InputError
from rismusic.io import Recording
from rismusic.operator import Link
from rismusic.simulation.random_numbers import Draws, Split, Stream
from rismusic.simulation.scene import (
    complete_sources,
    draw_channel,
    draw_codes,
    draw_pilots,
    draw_sources,
    impair,
)
from rismusic.sources import Sources, check_sources
from rismusic.spec import PanelSpec, SymbolModel, SystemSpec, WidebandSpec, limits


class Simulator:
    r"""Simulates the scenes of a system: :math:`y_l = G_l A s_l + n_l`.

    A scene number always gives the same scene, independent of batch size, process and device (up to rounding
    of floating-point functions). Nothing is stored.

    Args:
        spec: the system.
        seed: from 0 to 2**64 - 1.
        split: ``train``, ``validation`` or ``test``; they never share a scene.
        panel: replaces the panel of ``spec``; any element positions.
        link: replaces channel and codes of ``spec``: a measured channel [M, N] and a codebook [L, N], shared
            by all scenes. Its L replaces the number of snapshots in ``spec``.
        sources: replaces the drawn sources. Shape [K]: the same sources in every scene; [S, K]: scene i has
            row i. Powers and symbols that are missing are drawn as ``spec`` says; given powers are relative
            to each other, since the noise is scaled to the SNR of ``spec``.
        device: device of the scenes.
        dtype: ``torch.float32`` (complex64 snapshots) or ``torch.float64``.

    Raises:
        InputError: a link that does not fit the panel, a ``dft`` codebook for a panel that is not uniform,
            sources that are not in front of the panel or do not fit into the volume at the separation.

    Example:
        >>> Simulator(SystemSpec(snr_db=20), sources=Sources.from_degrees([-20, 35], 0, [2, 4])).scenes(0, 3)
        Recording(3 scenes, L=16, M=16, N=144, wavelength 0.3 m; channel per scene, codes per scene, ...)
    """

    def __init__(
        self,
        spec: SystemSpec | None = None,
        *,
        seed: int = 0,
        split: Split = "train",
        panel: Panel | None = None,
        link: Link | None = None,
        sources: Sources | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.spec = spec or SystemSpec()
        self.seed, self.split = seed, split
        self.device, self.dtype = device_of(device), dtype
        self.panel = (panel or Panel.from_spec(self.spec.panel)).to(self.device)
        frequencies = _frequencies(self.spec.wideband, self.panel.wavelength)
        if not self.panel.frequencies:
            self.panel = self.panel.replace(frequencies=frequencies)
        elif frequencies and tuple(frequencies) != tuple(self.panel.frequencies):
            raise InputError(
                "wideband.subcarriers",
                f"must be 1 for a panel with subcarriers of its own; it has {self.panel.subcarriers}",
            )
        check_azimuth_limit(self.panel, "scene.azimuth_max_deg", self.spec.scene.azimuth_max_deg)
        self._shape = self.spec.panel
        if panel is not None and panel.size != self._shape.rows * self._shape.columns:
            if link is None and self.spec.channel.kind != "direct" and self.spec.codebook.kind == "dft":
                raise InputError(
                    "panel",
                    f"a dft codebook needs a uniform planar panel; got {panel.size} elements where "
                    f"spec.panel has {self._shape.rows} x {self._shape.columns}. Set panel.rows and "
                    "panel.columns, use another codebook, or pass a link",
                )
            self._shape = PanelSpec(rows=1, columns=panel.size)
        self._sources = None if sources is None else _given_sources(sources, self.panel, dtype)
        self._given = None if link is None else link.to(self.device).to(dtype.to_complex())
        if self._given is not None:
            _check_link(self._given, self.panel)
        self._fixed: tuple[Link, Panel, Link] | None = None
        whole = Draws(seed, "link", torch.zeros(1, dtype=torch.int64, device=self.device))
        self._of_panel = whole if self.spec.one_panel else None
        if self.spec.one_link or self._given is not None:
            nominal, acting, actual = self._link(whole)
            if acting.elements.ndim > 2:
                acting = acting.replace(elements=acting.elements[0])
            self._fixed = (nominal.shared(0), acting, actual.shared(0))

    def __call__(self, scenes: Int64[Tensor, "S"]) -> Recording:
        """Simulate the scenes with these numbers, in this order.

        Raises:
            InputError: a scene number beyond user-given sources [S, K].
        """
        draws = Draws(self.seed, self.split, scenes.to(self.device))
        nominal, acting, actual = self._fixed or self._link(draws)
        L = self.spec.codebook.snapshots if nominal.codes is None else nominal.codes.shape[-2]
        F = self.panel.subcarriers
        truth = self._truth(scenes.to(self.device), L * F, draws)
        symbols, pilots = self._symbol_model(truth, L, draws)
        snapshots, noise_variance = self._receive(truth, acting, actual, draws)
        if F > 1:
            snapshots = snapshots.unflatten(1, (F, L))
        frequencies = self.panel.frequencies
        return Recording(
            symbols=symbols,
            pilots=pilots,
            frequencies=snapshots.real.new_tensor(frequencies, dtype=torch.float64) if frequencies else None,
            wavelength=self.panel.wavelength,
            wave=self.panel.wave,
            pattern_exponent=self.panel.pattern_exponent,
            elements=self.panel.elements,
            snapshots=snapshots,
            channel=nominal.channel,
            codes=nominal.codes,
            noise_variance=noise_variance,
            truth=truth,
        )

    def _truth(self, scenes: Tensor, snapshots: int, draws: Draws) -> Sources:
        """Sources of these scenes: drawn, or the given ones with what they lack drawn."""
        if self._sources is None:
            return draw_sources(self.spec.scene, self.spec.sources, snapshots, draws, self.dtype)
        given = self._sources
        if given.symbols is not None and given.symbols.shape[-1] != snapshots:
            raise InputError(
                "sources/symbols",
                f"must have L = {snapshots} snapshots (last axis); got {given.symbols.shape[-1]}",
            )
        if given.azimuth.ndim == 1:
            given = given.each(lambda value: value.expand(len(scenes), *value.shape))
        elif len(scenes) and int(scenes.max()) >= len(given.azimuth):
            raise InputError(
                "sources",
                f"sources are given for {len(given.azimuth)} scenes; scene {int(scenes.max())} does not "
                "exist. Sources of shape [K] are used in every scene",
            )
        else:
            given = given[scenes]
        return complete_sources(self.spec.scene, given, snapshots, draws)

    def _symbol_model(
        self, truth: Sources, snapshots: int, draws: Draws
    ) -> tuple[SymbolModel, Tensor | None]:
        """What the recording states of the symbols, and the pilots."""
        kind = self.spec.scene.symbols
        if self._sources is not None and self._sources.symbols is not None:
            return "independent", None
        if kind == "constant":
            return "constant", None
        if kind != "pilots":
            return "correlated" if self.spec.scene.correlation else "independent", None
        return "known", draw_pilots(truth.azimuth.shape[-1], snapshots, draws, self.dtype.to_complex())

    def scenes(self, start: int, stop: int) -> Recording:
        """Scenes ``start`` to ``stop - 1``.

        Raises:
            InputError: ``start`` is negative, or ``stop`` is not above it.
        """
        if not 0 <= start < stop:
            raise InputError("stop", f"must be above start, and start at least 0; got {start} to {stop}")
        return self(torch.arange(start, stop, device=self.device))

    def stream(self, batch: int, *, start: int = 0, stop: int | None = None) -> Iterator[Recording]:
        """Yield scenes from ``start`` on in batches, up to ``stop`` if it is given."""
        while stop is None or start < stop:
            end = start + batch if stop is None else min(start + batch, stop)
            yield self.scenes(start, end)
            start = end

    def _link(self, draws: Draws) -> tuple[Link, Panel, Link]:
        """The nominal link, and the panel and link with hardware impairments."""
        dtype = self.dtype.to_complex()
        if self._given is not None:
            nominal = self._given
        elif self.spec.channel.kind == "direct":
            nominal = Link()
        else:
            codes = draw_codes(self._shape, self.spec.codebook, draws, dtype)
            channel = draw_channel(self.panel, self.spec.channel, draws, dtype)
            nominal = Link(channel, codes, subcarriers=self.panel.subcarriers)
        return nominal, *impair(self.panel, nominal, self.spec.hardware, draws, self._of_panel)

    def _receive(
        self, sources: Sources, acting: Panel, actual: Link, draws: Draws
    ) -> tuple[Tensor, Float[Tensor, "S"]]:
        """Snapshots and noise variance; the noise is scaled to the requested SNR of the realised signal.

        Impulses are not part of the noise variance.
        """
        assert sources.symbols is not None
        symbols = torch.where(sources.active[..., None], sources.symbols, 0)
        A, F = sources.steering(acting), acting.subcarriers
        if F == 1:
            field = symbols.mT @ A.mT
        else:
            each = symbols.unflatten(-1, (F, -1)).movedim(1, -1)  # [S, F, L, K]
            field = (each @ A.unflatten(-2, (F, -1)).mT).flatten(1, 2)
        signal = actual.apply(field)
        power = 2 * torch.view_as_real(signal).square().mean(dim=(-3, -2, -1))
        if not (power > 0).all():
            raise InputError(
                "signal",
                "the received signal has zero power. Check that channel, codes and symbols are not all 0 and "
                "that hardware.dead_fraction is below 1",
            )
        low, high = limits(self.spec.snr_db)
        fraction = draws.uniform(Stream.SNR, dtype=self.dtype)
        noise_variance = power / from_db(low + (high - low) * fraction)
        noise = draws.complex_normal(Stream.NOISE, *signal.shape[1:], dtype=signal.dtype)
        spec = self.spec.impulses
        if spec.fraction > 0:
            shape = signal.shape[1:]
            where = draws.uniform(Stream.IMPULSE_SAMPLES, *shape, dtype=self.dtype) < spec.fraction
            impulse = draws.complex_normal(Stream.IMPULSES, *shape, dtype=signal.dtype)
            noise = noise + where * 10 ** (spec.power_db / 20) * impulse
        return signal + noise_variance.sqrt()[:, None, None] * noise, noise_variance


def simulate(
    spec: SystemSpec | None = None,
    *,
    scenes: int | None = None,
    seed: int = 0,
    split: Split = "test",
    sources: int | tuple[int, int] | Sources | None = None,
    panel: Panel | PanelSpec | dict[str, object] | None = None,
    link: Link | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    **settings: object,
) -> Recording:
    r"""Simulate the first ``scenes`` scenes of a split; the counterpart of ``rismusic simulate``.

    Each snapshot is :math:`y_l = H\,\mathrm{diag}(c_l) A s_l + n_l` with noise at the requested SNR.

    Args:
        spec: the system; the default system if omitted.
        scenes: number of scenes S. May be omitted with ``sources`` of shape [S, K] (S scenes) or [K] (one).
        seed: see :class:`Simulator`.
        split: see :class:`Simulator`.
        sources: number of sources, limits of a uniform draw, or positions: see :class:`Simulator`.
        panel: a :class:`~rismusic.array.Panel`, or settings of a uniform planar one, such as
            ``{"rows": 64, "columns": 64}``.
        link: see :class:`Simulator`.
        device: see :class:`Simulator`.
        dtype: see :class:`Simulator`.
        settings: fields of :class:`~rismusic.spec.SystemSpec` to change, such as ``snr_db=10``.

    Returns:
        Recording of S scenes, with noise variance and truth.

    Raises:
        InputError: a setting is unknown or impossible.

    Example:
        >>> sources = Sources.from_degrees([-20, 35], [0, 10], [2.0, 4.5])
        >>> recording = simulate(sources=sources, panel=Panel.uniform_planar(8, 8), snr_db=20)
        >>> recording.snapshots.shape
        torch.Size([1, 16, 16])
    """
    given = sources if isinstance(sources, Sources) else None
    if given is not None:
        number = given.active.sum(-1)
        settings["sources"] = (max(1, int(number.amin())), max(1, int(number.amax())))
    elif sources is not None:
        settings["sources"] = sources
    if scenes is None and given is not None:
        scenes = 1 if given.azimuth.ndim == 1 else len(given.azimuth)
    if scenes is None or scenes < 1:
        raise InputError("scenes", f"the number of scenes must be at least 1; got {scenes}")
    own = panel if isinstance(panel, Panel) else None
    if panel is not None and own is None:
        settings["panel"] = panel
    changed = (spec or SystemSpec()).replace(**settings)
    simulator = Simulator(
        changed, seed=seed, split=split, panel=own, link=link, sources=given, device=device, dtype=dtype
    )
    return simulator.scenes(0, scenes)


def _given_sources(sources: Sources, panel: Panel, dtype: torch.dtype) -> Sources:
    """User-given sources, checked, in the simulator's precision."""
    if sources.azimuth.ndim not in (1, 2):
        raise InputError("sources", f"must have shape [K] or [S, K]; got {list(sources.azimuth.shape)}")
    if not sources.active.any(dim=-1).all():
        raise InputError("sources", "every scene needs at least one source")
    check_sources(sources, field="sources", behind=not panel.is_planar)
    device = panel.elements.device
    if sources.symbols is not None and sources.symbols.shape[:-1] != sources.azimuth.shape:
        raise InputError(
            "sources/symbols",
            f"must have shape {[*sources.azimuth.shape]} + [L]; got {list(sources.symbols.shape)}",
        )
    return sources.each(lambda value: value.to(device, dtype.to_complex() if value.is_complex() else dtype))


def _check_link(link: Link, panel: Panel) -> None:
    for name, part in (("channel", link.channel), ("codes", link.codes)):
        if part is not None and part.shape[-1] != panel.size:
            raise InputError(
                f"link.{name}",
                f"must have N = {panel.size} elements (last axis), as the panel; got {part.shape[-1]}",
            )
    if link.channel is not None and link.subcarriers != panel.subcarriers:
        raise InputError(
            "link",
            f"must have the subcarriers of the panel, F = {panel.subcarriers}; got {link.subcarriers} "
            "(a channel [F, M, N] needs wideband.subcarriers, or a panel with frequencies)",
        )
    if link.per_scene:
        raise InputError("link", "one link serves all scenes: pass channel [M, N] and codes [L, N]")
    if (link.channel is None) != (link.codes is None):
        given, other = ("channel", "codes") if link.codes is None else ("codes", "channel")
        raise InputError("link", f"needs both channel and codes, or neither; {given} came without {other}")


def _frequencies(spec: WidebandSpec, wavelength: float) -> list[float]:
    """The subcarriers around the carrier; none for a narrowband signal."""
    if spec.subcarriers == 1:
        return []
    spacing = spec.bandwidth_hz / spec.subcarriers
    carrier = SPEED_OF_LIGHT / wavelength
    lowest = carrier - spacing * (spec.subcarriers - 1) / 2
    if lowest <= 0:
        raise InputError(
            "wideband.bandwidth_hz",
            f"must be below twice the carrier, {carrier:.4g} Hz; got {spec.bandwidth_hz:g}",
        )
    return [lowest + spacing * f for f in range(spec.subcarriers)]
