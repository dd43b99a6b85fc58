r"""A recording in memory, its checks, and the transform to a room frame.

A panel pose is a homogeneous matrix :math:`T = \begin{pmatrix} R & t \\ 0 & 1 \end{pmatrix}`. The columns
of the rotation R [3, 3] are the panel's x, y and z (normal) axes in the room; t [3] is the position of the
panel's centre in the room in metres.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from rismusic.array import SPEED_OF_LIGHT, ArrayLike, Panel, dtype_name, to_tensor
from rismusic.batch import concatenate, takes_all
from rismusic.errors import InputError
from rismusic.io.schema import (
    FIELDS,
    Description,
    check_frequencies,
    check_panel,
    check_pose,
    check_structure,
    check_symbols,
    check_values,
    fields_of,
)
from rismusic.operator import Link
from rismusic.sources import Sources
from rismusic.spec import SymbolModel, Wave

SceneIndex = Any
"""An integer, a slice, or a list, array or tensor of integers or booleans."""

_COMPLEX = tuple(field.name for field in FIELDS.values() if field.kind == "complex" and "/" not in field.name)

# Outputs behind a channel that hold little but the ratio of two fields, which turns fast with the direction.
_FEW_OUTPUTS = 2


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Recording:
    r"""S scenes of L snapshots at M receiver outputs, with the nominal panel and link.

    Snapshot l of a scene is :math:`y_l = H\,\mathrm{diag}(c_l) A s_l + n_l`, or :math:`y_l = A s_l + n_l` for
    a directly sampled array (no channel, no codes, M = N). :meth:`from_arrays` builds a recording from NumPy
    arrays or tensors and checks it; this constructor takes tensors and does not check them.

    ``recording[i]`` is a recording of one scene (shape [1, L, M]), ``recording[2:5]``,
    ``recording[[0, -1]]`` and ``recording[mask]`` are recordings of several; iteration yields recordings of
    one scene; ``len(recording)`` is S.

    Args:
        wavelength: in metres.
        elements: element positions [N, 3] float64, metres, panel frame.
        snapshots: y, [S, L, M] complex.
        channel: H, [M, N] or [S, M, N] complex; None for direct sampling (M = N).
        codes: RIS configurations c, [L, N] or [S, L, N] complex; None where ``channel`` is.
        noise_variance: sigma^2 = E|n|^2 of each scene, [S]; None where unknown.
        truth: sources of each scene, [S, K_max]; None where unknown.
        pose: homogeneous transform [4, 4] float64 from the panel frame to a room frame; None where unknown.
        wave: form of the wave on the panel, see :mod:`rismusic.array`.
        pattern_exponent: q of the element pattern cos^q; 0 for isotropic elements.
        symbols: what is known of the symbols. ``independent``: unknown, new in every snapshot;
            ``correlated``: the same, but correlated between sources; ``constant``: unknown, the same in all
            snapshots; ``known``: those of ``pilots`` times one unknown complex amplitude per source.
        pilots: known symbols of K sources, [L, K] or [S, L, K] complex; None unless they are known.
        noise_covariance: covariance of the noise at the receiver outputs, [M, M] or [S, M, M] complex; None
            for white noise. Where ``noise_variance`` is given too, the covariance is scaled to that mean
            variance.
        times: time of each scene in seconds, [S] float64; None where unknown.
        frequencies: F subcarriers in hertz (wideband), [F] float64; None for a narrowband signal. With them
            the snapshots are [S, F, L, M] and the channel is [F, M, N] or [S, F, M, N].
        sample_weights: noise variance of the scene over that of each sample, real, of the shape of
            ``snapshots``: 1, or below it for samples with impulses (:mod:`rismusic.estimation.impulses`).
            None where all are 1. Not part of a file. With ``noise_covariance`` they are those of the whitened
            samples.
        is_stacked: whether this is the result of :meth:`stacked`.
    """

    wavelength: float
    elements: Float[Tensor, "N 3"]
    snapshots: Complex[Tensor, "S ... L M"]
    channel: Complex[Tensor, "... _ N"] | None = None  # of stacked snapshots [S, 1, L M] it is still [M, N]
    codes: Complex[Tensor, "... _ N"] | None = None
    noise_variance: Float[Tensor, "S"] | None = None
    truth: Sources | None = None
    pose: Float[Tensor, "4 4"] | None = None
    wave: Wave = "spherical"
    pattern_exponent: float = 0.0
    symbols: SymbolModel = "independent"
    pilots: Complex[Tensor, "... _ K"] | None = None
    noise_covariance: Complex[Tensor, "... M M"] | None = None
    times: Float[Tensor, "S"] | None = None
    frequencies: Float[Tensor, "F"] | None = None
    sample_weights: Float[Tensor, "S ... _ _"] | None = None  # of coherent snapshots still [S, F L, M]
    is_stacked: bool = False

    def __post_init__(self) -> None:
        """Give all complex fields the widest precision among them; products of mixed ones are errors.

        Conjugates that torch has not computed yet are computed: NumPy and files cannot take them.
        """
        for name in _COMPLEX:
            value = getattr(self, name)
            if value is not None and value.is_conj():
                object.__setattr__(self, name, value.resolve_conj())
        present = {name: value for name in _COMPLEX if (value := getattr(self, name)) is not None}
        values = {name: value for name, value in present.items() if value.is_complex()}
        types = {value.dtype for value in values.values()}
        if len(types) > 1:
            for name, value in values.items():
                object.__setattr__(self, name, value.to(reduce(torch.promote_types, types)))

    @classmethod
    def from_arrays(
        cls,
        snapshots: ArrayLike,
        elements: ArrayLike,
        wavelength: float,
        channel: ArrayLike | None = None,
        codes: ArrayLike | None = None,
        *,
        noise_variance: ArrayLike | None = None,
        truth: Sources | None = None,
        pose: ArrayLike | None = None,
        wave: Wave = "spherical",
        pattern_exponent: float = 0.0,
        symbols: SymbolModel | None = None,
        pilots: ArrayLike | None = None,
        noise_covariance: ArrayLike | None = None,
        times: ArrayLike | None = None,
        frequencies: ArrayLike | None = None,
    ) -> Recording:
        r"""Build a recording from NumPy arrays or torch tensors, and check it.

        With ``channel`` and ``codes`` snapshots are :math:`y_l = H\,\mathrm{diag}(c_l) A s_l + n_l` (RIS);
        without them :math:`y_l = A s_l + n_l` (direct array, M = N).

        Args:
            snapshots: complex64 or complex128, [S, L, M]: scene, snapshot, receiver output. A matrix [L, M]
                is one scene. If L = M the two orders cannot be told apart: the first axis is the snapshots.
            elements: element positions [N, 3] in metres, panel frame (x horizontal, y vertical, z normal).
            wavelength: in metres.
            channel: H, complex [M, N] (shared by all scenes) or [S, M, N]; omit for a direct array.
            codes: RIS configurations, complex [L, N] or [S, L, N]; omit for a direct array.
            noise_variance: sigma^2, [S], or one number for all scenes.
            truth: sources, [S, K], or [K] for the same in all scenes.
            pose: [4, 4] transform from the panel frame to a room frame, see :func:`check_pose`.
            wave: form of the wave: ``spherical``, ``uniform``, ``fresnel`` or ``paraxial``.
            pattern_exponent: q of the element pattern cos^q.
            symbols: ``independent``, ``correlated``, ``constant`` or ``known``; by default ``known`` with
                pilots and ``independent`` without.
            pilots: known symbols, complex or real (such as +1 and -1), [L, K] or [S, L, K].
            noise_covariance: complex or real, [M, M] or [S, M, M]; omit for white noise.
            times: [S] seconds.
            frequencies: [F] hertz, for wideband snapshots [S, F, L, M] (or [F, L, M], one scene). A single
                subcarrier gives a narrowband recording at its wavelength.

        Returns:
            A checked recording; complex values have the widest precision among them, real ones are float64.

        Raises:
            InputError: an array has the wrong type or shape, the arrays disagree in size, or values are not
                finite. Where a transpose would fit, the message says which.

        Example:
            >>> y = np.random.randn(200, 64) + 1j * np.random.randn(200, 64)  # L = 200, M = N = 64
            >>> Recording.from_arrays(y, Panel.uniform_planar(8, 8).elements, wavelength=0.3)
            Recording(1 scene, L=200, M=64, N=64, wavelength 0.3 m; direct sampling)
        """
        y = to_tensor("snapshots", snapshots, "complex")
        single = y.ndim == (2 if frequencies is None else 3)
        y = y.unsqueeze(0) if single else y
        scenes = len(y) if y.ndim else 0
        noise = None if noise_variance is None else to_tensor("noise_variance", noise_variance, "real")
        if noise is not None and noise.numel() == 1:
            noise = noise.reshape(1).expand(scenes)
        if truth is not None and truth.azimuth.ndim == 1:
            truth = truth.each(lambda value: value.expand(scenes, *value.shape))
        panel = Panel(elements, wavelength, wave, pattern_exponent)
        bands = None if frequencies is None else to_tensor("frequencies", frequencies, "real")
        link = Link(channel, codes, subcarriers=1 if bands is None else bands.numel())
        values = {
            "elements": panel.elements,
            "snapshots": y,
            "channel": link.channel,
            "codes": link.codes,
            "noise_variance": noise,
            "pose": None if pose is None else to_tensor("pose", pose, "real"),
            "pilots": _complex("pilots", pilots),
            "noise_covariance": _complex("noise_covariance", noise_covariance),
            "frequencies": bands,
            "times": None if times is None else torch.atleast_1d(to_tensor("times", times, "real")),
        }
        recording = cls(
            wavelength=panel.wavelength,
            truth=truth,
            wave=panel.wave,
            pattern_exponent=panel.pattern_exponent,
            symbols=symbols or ("independent" if pilots is None else "known"),
            **values,  # type: ignore[arg-type]
        )
        validate(recording, single=single)
        return of_single_subcarrier(recording)

    @staticmethod
    def concatenate(recordings: Sequence[Recording]) -> Recording:
        """Join recordings of one panel along the scene axis.

        A channel, or codes, that all share stay shared; otherwise each scene gets its own. Truth is padded
        with NaN to the largest number of sources. Noise variance, truth, and the powers and symbols of the
        truth are kept only if all recordings have them.

        Args:
            recordings: at least one; with the same elements, wavelength, pose, L and M.

        Raises:
            InputError: no recordings, or recordings that differ in more than their scenes.

        Example:
            >>> Recording.concatenate([recording[:3], recording[3:]])
        """
        if not recordings:
            raise InputError("recordings", "needs at least one recording")
        first = recordings[0]
        for number, other in enumerate(recordings[1:], start=1):
            _check_same(first, other, f"recordings[{number}]")
        joined: dict[str, Tensor | None] = {
            name: _join_shared(
                [getattr(r, name) for r in recordings],
                [len(r) for r in recordings],
                3 if name == "channel" and first.frequencies is not None else 2,
            )
            for name in ("channel", "codes", "pilots", "noise_covariance")
        }
        for name in ("noise_variance", "times", "sample_weights"):
            parts = [value for r in recordings if (value := getattr(r, name)) is not None]
            joined[name] = torch.cat(parts) if len(parts) == len(recordings) else None
        truth = [r.truth for r in recordings if r.truth is not None]
        return replace(
            first,
            snapshots=torch.cat([r.snapshots for r in recordings]),
            truth=concatenate(truth) if len(truth) == len(recordings) else None,
            **joined,  # type: ignore[arg-type]
        )

    def __len__(self) -> int:
        return self.snapshots.shape[0]

    def __iter__(self) -> Iterator[Recording]:
        return (self[scene] for scene in range(len(self)))

    def __repr__(self) -> str:
        L, M = self.snapshots.shape[-2:]
        N, S = len(self.elements), len(self)
        subcarriers = "" if self.frequencies is None else f"F={len(self.frequencies)}, "
        link = [
            f"{name} {'per scene' if self._per_scene(name, value) else 'shared'}"
            for name, value in (("channel", self.channel), ("codes", self.codes))
            if value is not None
        ]
        names = ("noise_variance", "noise_covariance", "pilots", "truth", "pose", "times")
        optional = [name for name in names if getattr(self, name) is not None]
        if self.wave != "spherical":
            optional.insert(0, f"{self.wave} wave")
        if self.symbols != "independent":
            optional.insert(0, f"{self.symbols} symbols")
        return (
            f"Recording({S} scene{'' if S == 1 else 's'}, {subcarriers}L={L}, M={M}, N={N}, "
            f"wavelength {self.wavelength:g} m; {', '.join([*(link or ['direct sampling']), *optional])})"
        )

    @cached_property
    def panel(self) -> Panel:
        """Nominal panel."""
        frequencies = () if self.frequencies is None else self.frequencies.tolist()
        return Panel(self.elements, self.wavelength, self.wave, self.pattern_exponent, frequencies)

    @cached_property
    def link(self) -> Link:
        """Nominal link; coherent for the snapshots of a :meth:`stacked` recording of one long snapshot."""
        coherent = self.is_stacked and self.has_coherent_symbols
        weights = self.sample_weights if self.is_stacked else None
        return Link(
            self.channel,
            self.codes,
            coherent=coherent and (self.codes is None or self.codes.shape[-2] > 1 or self.pilots is not None),
            pilots=self.pilots if coherent else None,
            subcarriers=1 if self.frequencies is None else len(self.frequencies),
            weights=None if weights is None else weights.sqrt(),
        )

    def stacked(self) -> Recording:
        r"""The same data as independent snapshots [S, L', M'] in white noise, the form that is fitted.

        * Coloured noise is whitened: :math:`\Sigma^{-1/2}` is applied to snapshots and channel.
        * The L snapshots of constant or known symbols become one of L M outputs, with the operator
          :math:`[G_1; \ldots; G_L]` (see :class:`~rismusic.operator.Link`). For a directly sampled array with
          constant symbols, the sum of the snapshots over :math:`\sqrt L` takes their place. The others hold
          noise only; an unknown noise variance is estimated from them.
        * Subcarriers are counted as further snapshots: L' = F L, or F.
        * Samples with a weight w, and their rows of G_l, are multiplied by :math:`\sqrt w`.

        A recording of independent or correlated symbols in white noise is returned as it is.
        """
        plain = self.frequencies is None and self.noise_covariance is None and self.sample_weights is None
        if self.is_stacked or (plain and not self.has_coherent_symbols):
            return self
        made = self if self.noise_covariance is None else _whitened(self)
        y, codes, noise, truth = made.snapshots, made.codes, made.noise_variance, made.truth
        L, weights = y.shape[-2], self.sample_weights
        if weights is not None:
            y = y * weights.sqrt().to(y.real.dtype)
        if self.symbols == "constant" and codes is None and weights is not None:
            codes = y.new_ones(L, len(self.elements))
        if self.symbols == "constant" and codes is None:
            mean = y.sum(dim=-2, keepdim=True) / math.sqrt(L)
            if noise is None and L > 1:
                rest = _energy(y).flatten(1).sum(1) - _energy(mean).flatten(1).sum(1)
                noise = rest / (y[0].numel() - mean[0].numel())
                noise = noise.clamp_min(torch.finfo(noise.dtype).tiny)
            y, codes = mean, y.new_full((1, len(self.elements)), math.sqrt(L))
        elif self.frequencies is not None and codes is None:
            codes = y.new_ones(L, len(self.elements))
        if self.frequencies is not None:
            y = y.flatten(1, 2)
            weights = None if weights is None else weights.flatten(1, 2)
        if self.has_coherent_symbols and y.shape[1] > made._subcarriers:
            y = y.unflatten(1, (made._subcarriers, L)).flatten(2)
        if truth is not None and truth.symbols is not None:
            truth = replace(truth, symbols=self._amplitudes(truth.symbols))
        return replace(
            made,
            snapshots=y,
            codes=codes,
            noise_variance=noise,
            truth=truth,
            sample_weights=weights,
            is_stacked=True,
        )

    def subcarrier(self, number: int | None = None) -> Recording:
        """The snapshots of one subcarrier as independent narrowband ones, for covariances.

        A narrowband recording of independent symbols is returned as it is.

        Args:
            number: which one, from 0 on; the middle one if none.
        """
        made, F = self.stacked(), self._subcarriers
        link = made.link
        if F == 1 and not link.coherent:
            return made
        y = link.separate(made.snapshots)[0] if link.coherent else made.snapshots
        channel, truth = made.channel, None if made.truth is None else replace(made.truth, symbols=None)
        weights = made.sample_weights
        if made.frequencies is None:
            return replace(made, snapshots=y, symbols="independent", pilots=None, truth=truth)
        number = F // 2 if number is None else number
        return replace(
            made,
            snapshots=y.unflatten(1, (F, -1))[:, number],
            channel=None if channel is None else channel[..., number, :, :],
            wavelength=SPEED_OF_LIGHT / float(made.frequencies[number]),
            frequencies=None,
            symbols="independent",
            pilots=None,
            truth=truth,
            sample_weights=None if weights is None else weights.unflatten(1, (F, -1))[:, number],
        )

    @property
    def has_coherent_symbols(self) -> bool:
        """Whether all snapshots have the same unknown symbols: those of constant or known symbols."""
        return self.symbols in ("constant", "known")

    @property
    def has_few_outputs(self) -> bool:
        """Whether symbols that are new in every snapshot reach only one or two outputs through a channel."""
        coherent = self.has_coherent_symbols or self.link.coherent
        return self.channel is not None and self.snapshots.shape[-1] <= _FEW_OUTPUTS and not coherent

    @property
    def _subcarriers(self) -> int:
        return 1 if self.frequencies is None else len(self.frequencies)

    def _amplitudes(self, symbols: Complex[Tensor, "S K L"]) -> Complex[Tensor, "S K _"]:
        """The unknown symbols of the stacked snapshots: one per subcarrier if they are constant or known."""
        each = symbols.unflatten(-1, (self._subcarriers, -1))
        if not self.has_coherent_symbols:
            return symbols
        if self.pilots is None:
            return each[..., 0]
        pilots = self.pilots.mT.unsqueeze(-2)  # [..., K, 1, L]
        energy = pilots.abs().square().sum(-1).clamp_min(torch.finfo(pilots.real.dtype).tiny)
        return (each * pilots.conj()).sum(-1) / energy

    def __getitem__(self, scenes: SceneIndex) -> Recording:
        """Recording of a subset of scenes; fields shared by all scenes are kept whole.

        Args:
            scenes: an integer, a slice, or a list, array or tensor of integers or booleans. Negative integers
                count from the end. An integer keeps the scene axis: the result has one scene.

        Raises:
            IndexError: a scene number out of range, or a mask of another length.
            TypeError: an index of another type.
        """
        index = scene_index(scenes, len(self), self.snapshots.device)
        if takes_all(index, len(self)):
            return self
        part = self._each(lambda name, value: value[index] if self._per_scene(name, value) else value)
        if part.elements is self.elements and "panel" in vars(self):
            vars(part)["panel"] = self.panel  # what was made once
        return part

    def _per_scene(self, name: str, value: Tensor) -> bool:
        """Whether a field (``truth`` for all of its fields) has a scene axis."""
        if name in ("truth", "snapshots", "sample_weights"):
            return True
        return fields_of(() if self.frequencies is None else ("frequencies",))[name].per_scene(value.ndim)

    @property
    def channel_per_scene(self) -> bool:
        """Whether each scene has its own channel."""
        return self.channel is not None and self._per_scene("channel", self.channel)

    @property
    def codes_per_scene(self) -> bool:
        """Whether each scene has its own RIS configurations."""
        return self.codes is not None and self._per_scene("codes", self.codes)

    def to(self, device: torch.device | str) -> Recording:
        """Copy of the recording on another device."""
        return self._each(lambda _, value: value.to(device))

    def _each(self, change: Callable[[str, Tensor], Tensor]) -> Recording:
        """Apply a function of name and value to every field that is present."""
        changed = {
            field.name: change(field.name, value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        truth = self.truth and self.truth.each(lambda value: change("truth", value))
        return replace(self, truth=truth, **changed)  # type: ignore[arg-type]


def of_single_subcarrier(recording: Recording) -> Recording:
    """The narrowband recording that one subcarrier [S, 1, L, M] is; others are returned as they are."""
    if recording.frequencies is None or len(recording.frequencies) > 1:
        return recording
    channel = recording.channel
    return replace(
        recording,
        snapshots=recording.snapshots[:, 0],
        channel=None if channel is None else channel[..., 0, :, :],
        wavelength=SPEED_OF_LIGHT / float(recording.frequencies),
        frequencies=None,
    )


def validate(recording: Recording, *, first_scene: int = 0, single: bool = False) -> None:
    """Check shapes, sizes and values of a recording.

    Error messages count scenes from ``first_scene``, and have no scene axis if the snapshots were given as a
    ``single`` scene [L, M].
    """
    check_shapes(recording, single=single)
    check_panel(recording.panel)
    if recording.frequencies is not None:
        check_frequencies(recording.frequencies, recording.wavelength)
    check_symbols(recording.symbols, has_pilots=recording.pilots is not None)
    check_values(tensors(recording), recording.truth, first_scene=first_scene)


def to_room_frame(
    pose: ArrayLike, position: Float[Tensor, "*batch 3"] | ArrayLike
) -> Float[Tensor, "*batch 3"]:
    r"""Positions in the room frame: :math:`x_{room} = R\,x_{panel} + t`.

    Args:
        pose: [4, 4] transform from the panel frame to the room frame.
        position: [..., 3] metres in the panel frame; NaN stays NaN.

    Returns:
        [..., 3] float64, metres in the room frame.

    Raises:
        InputError: the pose is not a rigid transform, or the positions have no last axis of 3.

    Example:
        >>> pose = torch.eye(4, dtype=torch.float64)
        >>> pose[:3, 3] = torch.tensor([0.0, 1.5, 0.0])
        >>> to_room_frame(pose, [[0.0, 0.0, 2.0]]).tolist()
        [[0.0, 1.5, 2.0]]
    """
    transform, points = to_tensor("pose", pose, "real"), to_tensor("position", position, "real")
    check_pose(transform)
    if not points.ndim or points.shape[-1] != 3:
        raise InputError("position", f"must have shape [..., 3] (x, y, z); got {list(points.shape)}")
    transform = transform.to(points.device)
    return points @ transform[:3, :3].mT + transform[:3, 3]


def check_recording(recording: object) -> None:
    """Check that an argument is a recording."""
    if not isinstance(recording, Recording):
        is_file = isinstance(recording, (str, Path))
        how = (
            "read the file with rismusic.read" if is_file else "make one with rismusic.Recording.from_arrays"
        )
        kind = type(recording).__name__
        raise InputError("recording", f"must be a rismusic.Recording; got {kind}. First {how}")


def scene_index(index: SceneIndex, scenes: int, device: torch.device | str = "cpu") -> slice | Tensor:
    """A scene index as a slice with positive step or a tensor of scene numbers."""
    if isinstance(index, slice):
        steps = range(*index.indices(scenes))
        return index if steps.step > 0 else torch.tensor(list(steps), dtype=torch.int64, device=device)
    chosen = np.asarray(index.cpu() if isinstance(index, Tensor) else index)
    if not chosen.size and chosen.dtype != np.bool_:
        chosen = chosen.astype(np.int64)
    if chosen.ndim > 1:
        raise IndexError(f"scenes are indexed by one axis; got an index of shape {list(chosen.shape)}")
    if chosen.dtype.kind not in ("iub" if chosen.ndim else "iu"):
        found = f"{type(index).__name__} of {chosen.dtype}" if chosen.ndim else type(index).__name__
        raise TypeError(
            f"scenes are indexed by integers, slices, or sequences of integers or booleans; got {found}"
        )
    try:
        numbers = np.arange(scenes)[chosen]
    except IndexError as error:
        raise IndexError(f"the recording has {scenes} scenes: {error}") from None
    if not chosen.ndim:
        return slice(int(numbers), int(numbers) + 1)
    return torch.from_numpy(numbers).to(device)


def tensors(recording: Recording) -> dict[str, Tensor]:
    """The fields that a recording has, by their name in a file."""
    found = {}
    for name in FIELDS:
        of_truth, _, attribute = name.rpartition("/")
        value = getattr(recording.truth if of_truth else recording, attribute, None)
        if value is not None:
            found[name] = value
    return found


def check_shapes(recording: Recording, *, single: bool = False) -> None:
    """Check types and shapes of a recording; see :func:`validate`."""
    found = {
        name: Description(tuple(value.shape), dtype_name(value.dtype))
        for name, value in tensors(recording).items()
    }
    check_structure(found, single=single)


def _check_same(first: Recording, other: Recording, name: str) -> None:
    """Refuse to join recordings that differ in more than their scenes."""
    for field in ("elements", "pose", "frequencies"):
        one, two = getattr(first, field), getattr(other, field)
        if (one is None) != (two is None) or (one is not None and not torch.equal(one, two)):
            raise InputError(f"{name}.{field}", f"must equal {field} of recordings[0]")
    for field in ("wave", "pattern_exponent", "symbols", "wavelength"):
        one, two = getattr(first, field), getattr(other, field)
        if one != two:
            raise InputError(f"{name}.{field}", f"must be {one!r} as in recordings[0]; got {two!r}")

    one, two = list(first.snapshots.shape[1:]), list(other.snapshots.shape[1:])
    if one != two:
        raise InputError(f"{name}.snapshots", f"must have [L, M] = {one} as in recordings[0]; got {two}")
    for field in ("channel", "codes", "pilots", "noise_covariance"):
        if (getattr(first, field) is None) != (getattr(other, field) is None):
            raise InputError(f"{name}.{field}", f"all recordings need {field}, or none of them")


def _whitened(recording: Recording) -> Recording:
    """Recording with white noise, by the inverse root of the noise covariance on snapshots and channel."""
    assert recording.noise_covariance is not None
    covariance = recording.noise_covariance.to(torch.complex128)
    mean = covariance.diagonal(dim1=-2, dim2=-1).real.mean(-1)
    root = torch.linalg.cholesky(covariance / mean[..., None, None])
    y, H = recording.snapshots, recording.channel
    wide = y.to(torch.complex128).mT  # [S, (F,) M, L]
    shared = root.ndim == 2
    lifted = root if shared or recording.frequencies is None else root.unsqueeze(-3)
    white = torch.linalg.solve_triangular(lifted, wide, upper=False).mT
    if H is None:
        H = torch.eye(y.shape[-1], dtype=torch.complex128, device=y.device)
        if recording.frequencies is not None:
            H = H.expand(len(recording.frequencies), -1, -1)
    if not shared and not recording._per_scene("channel", H):
        H = H.expand(len(recording), *H.shape)
    channel = torch.linalg.solve_triangular(lifted, H.to(torch.complex128), upper=False)
    noise = recording.noise_variance
    if noise is None:
        noise = mean.expand(len(recording))
    return replace(
        recording,
        snapshots=white.to(y.dtype).contiguous(),
        channel=channel.to(y.dtype),
        noise_variance=noise,
        noise_covariance=None,
    )


def _energy(value: Tensor) -> Float[Tensor, "..."]:
    return torch.view_as_real(value).double().square().sum(-1)


def _complex(name: str, value: ArrayLike | None) -> Tensor | None:
    """Complex values that may be given as real numbers."""
    if value is None:
        return None
    array = value if isinstance(value, Tensor) else np.asarray(value)
    if not (array.is_complex() if isinstance(array, Tensor) else np.iscomplexobj(array)):
        array = to_tensor(name, array, "real").to(torch.complex128)
    return to_tensor(name, array, "complex")


def _join_shared(parts: Sequence[Tensor | None], scenes: Sequence[int], rank: int) -> Tensor | None:
    """Parts of links joined along the scene axis; one that all share stays shared."""
    present = [part for part in parts if part is not None]
    if not present:
        return None
    if all(part.ndim == rank and torch.equal(part, present[0]) for part in present):
        return present[0]
    return torch.cat(
        [
            part if part.ndim > rank else part.expand(n, *part.shape)
            for part, n in zip(present, scenes, strict=True)
        ]
    )
