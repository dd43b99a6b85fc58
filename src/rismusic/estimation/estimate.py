"""The result of an estimator: positions with error bars, and how well they explain the data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import pad

from rismusic.array import to_db
from rismusic.batch import Batch, concatenate, takes_all
from rismusic.crb import POSITION, Bound, bound_from_information, unconditional_crb
from rismusic.errors import InputError, check_choice, not_installed, refuse_old_names
from rismusic.estimation.goodness_of_fit import goodness_of_fit
from rismusic.estimation.grid import Volume
from rismusic.estimation.maximum_likelihood import (
    Fit,
    complete_fit,
    kernel_for,
    source_covariance_at,
    unpack,
)
from rismusic.estimation.table import Position, columns_of, position_rows, scene_records
from rismusic.files import write_text
from rismusic.io import Recording
from rismusic.sources import Sources, cartesian_covariance
from rismusic.spec import LocateSpec
from rismusic.text import counted, csv_text, decimals_of, json_text
from rismusic.version import __version__

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]

_SHOWN = 12  # sources that the repr of an estimate lists
_NOISELESS_DB = 110.0  # above this SNR rounding hides whether a fit has converged

NSources = int | Tensor | Literal["auto"]


def whole_numbers(n_sources: object) -> int | str | Tensor | None:
    """Numbers of sources from a caller: NumPy numbers become an int, lists and arrays a tensor [S]."""
    if n_sources is None or isinstance(n_sources, (int, str, Tensor)):
        return n_sources
    array = np.asarray(n_sources)
    if array.dtype.kind not in "iu" or array.ndim > 1:
        raise InputError(
            "n_sources", f"must be a whole number, one for each scene, or 'auto'; got {n_sources!r}"
        )
    return torch.from_numpy(array.astype(np.int64)) if array.ndim else int(array)


N = TypeVar("N", bound="Note")


class Note(str):
    """A sentence about a scene.

    Args:
        text: the sentence.
        departure: name of the departure from the signal model that was recognised; empty for other reasons.
    """

    departure: str

    def __new__(cls: type[N], text: str, departure: str = "") -> N:
        """Make a sentence with the name of a departure."""
        self = super().__new__(cls, text)
        self.departure = departure
        return self


class Reason(Note):
    """A warning that questions the result of a scene, so that its status is not ``ok``."""


@runtime_checkable
class Estimator(Protocol):
    """What ``locate`` runs: a callable from a recording and a number of sources to an :class:`Estimate`.

    ``n_sources`` is one number, a tensor [S] of one number per scene, or ``"auto"``. See
    :func:`rismusic.register_estimator`.
    """

    def __call__(self, recording: Recording, n_sources: NSources) -> Estimate:
        """Estimate the sources of every scene."""
        ...


@refuse_old_names
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Estimate(Batch):
    """Estimated sources of S scenes, the strongest first, with error bars.

    Built-in estimators return it; :meth:`from_sources` builds one from positions of any other estimator.

    Args:
        sources: azimuth (rad), elevation (rad), range (m) and power of up to K_max sources, [S, K_max]; NaN
            where there is none.
        covariance: [S, K_max, 3, 3] of the errors of azimuth (rad), elevation (rad) and range (m) of each
            source: the unconditional Cramer-Rao bound at the estimate, or that with the panel's errors
            unknown (:mod:`rismusic.estimation.calibration`). The size of a source that is not one point is
            added to its angles. Infinite where the data do not determine them.
        snr_db: [S, K_max] received power of each source over the noise variance, dB.
        noise_variance: [S] as recorded, or estimated where it is not.
        neg_log_likelihood: [S] minus the unconditional log-likelihood of the scene in nats, without the
            constant L M log(pi).
        n_sources_probability: [S, sources_max + 1] posterior of 0, 1, ... sources, under a uniform prior for
            classical methods and the network's for the hybrid; none where their number was given.
        p_value: [S] probability, if the model holds, of a residual at least as large as this one (noise
            variance known), or as far from white noise (not known); see
            :mod:`rismusic.estimation.goodness_of_fit`. NaN where it is not available.
        warnings: sentences about each scene. Those that question the result are :class:`Reason`.
        spec: the settings.
        method: the method that was used in each scene. It differs from ``spec.method`` where the hybrid
            estimator fell back on a classical one.
        pose: [4, 4] from the panel frame to the room frame, of the recording; none where it has none.
        panel_error: [S] root mean square of the relative error of an element's response that the data show; 0
            where they show none; none where it was not estimated (:mod:`rismusic.estimation.diagnosis`).
        inverse_range_std: [S, K_max] standard deviation of 1 / range (1/m); none where only the covariance is
            known.
        position_probability: [S, K_max] probability that each source is at this position rather than
            elsewhere (:mod:`rismusic.estimation.diagnosis`); none where it was not computed.
        impulses: [S] number of samples that were down-weighted as impulses; none unless ``spec.noise`` is
            ``impulsive``.
    """

    sources: Sources
    covariance: Float[Tensor, "S K 3 3"]
    snr_db: Float[Tensor, "S K"]
    noise_variance: Float[Tensor, "S"]
    neg_log_likelihood: Float[Tensor, "S"]
    n_sources_probability: Float[Tensor, "S counts"] | None
    p_value: Float[Tensor, "S"]
    warnings: list[list[str]]
    spec: LocateSpec
    method: list[str]
    pose: Float[Tensor, "4 4"] | None = None
    panel_error: Float[Tensor, "S"] | None = None
    inverse_range_std: Float[Tensor, "S K"] | None = None
    position_probability: Float[Tensor, "S K"] | None = None
    impulses: Int64[Tensor, "S"] | None = None
    shared: ClassVar[tuple[str, ...]] = ("pose",)

    @classmethod
    def from_sources(
        cls,
        recording: Recording,
        sources: Sources,
        *,
        spec: LocateSpec | None = None,
        n_sources_probability: Float[Tensor, "S counts"] | None = None,
        converged: Bool[Tensor, "S"] | None = None,
    ) -> Estimate:
        """An estimate from positions: adds powers, noise variance, error bars, likelihood and p-value.

        Sources are ordered by power. Positions are taken as they are; pass them through
        :func:`rismusic.estimation.maximum_likelihood.nfmle` first if they come from a coarse search.

        Args:
            recording: S scenes.
            sources: positions [S, K], NaN where there is no source.
            spec: the settings, as the factory of the estimator received them; the default if none.
            n_sources_probability: [S, ...] of 0, 1, ... sources, where the estimator has it.
            converged: where the estimator converged; everywhere if none.

        Raises:
            InputError: another number of scenes, positions that are not finite, or an unknown criterion.
        """
        recording = recording.stacked()
        spec = spec or LocateSpec()
        volume = Volume.from_spec(spec)
        fit = fit_at(recording, sources, volume)
        if converged is not None:
            fit = replace(fit, converged=converged)
        return from_fit(recording, fit, n_sources_probability, volume, spec)

    @property
    def azimuth_deg(self) -> Float[Tensor, "S K"]:
        """Azimuth in degrees."""
        return self.sources.azimuth.rad2deg()

    @property
    def elevation_deg(self) -> Float[Tensor, "S K"]:
        """Elevation in degrees."""
        return self.sources.elevation.rad2deg()

    @property
    def range_m(self) -> Float[Tensor, "S K"]:
        """Range in metres."""
        return self.sources.range

    @property
    def position(self) -> Float[Tensor, "S K 3"]:
        """Cartesian position in the panel frame, metres."""
        return self.sources.position

    @property
    def position_room(self) -> Float[Tensor, "S K 3"]:
        """Cartesian position in the room frame, metres.

        Raises:
            InputError: the recording has no pose.
        """
        pose = self._pose()
        return self.position @ pose[:3, :3].mT + pose[:3, 3]

    def _pose(self) -> Float[Tensor, "4 4"]:
        if self.pose is None:
            raise InputError(
                "pose", "the recording has no pose; add one to obtain positions in the room frame"
            )
        return self.pose.to(self.sources.range)

    @property
    def std(self) -> Float[Tensor, "S K 3"]:
        """Standard deviations of azimuth (rad), elevation (rad) and range (m)."""
        return self.covariance.diagonal(dim1=-2, dim2=-1).sqrt()

    @property
    def azimuth_std_deg(self) -> Float[Tensor, "S K"]:
        """Standard deviation of the azimuth in degrees."""
        return self.std[..., 0].rad2deg()

    @property
    def elevation_std_deg(self) -> Float[Tensor, "S K"]:
        """Standard deviation of the elevation in degrees."""
        return self.std[..., 1].rad2deg()

    @property
    def range_std_m(self) -> Float[Tensor, "S K"]:
        """Standard deviation of the range in metres."""
        return self.std[..., 2]

    @property
    def range_lower_m(self) -> Float[Tensor, "S K"]:
        """Lower limit of the range, metres: 1/range plus two standard deviations.

        It is what is known of the range of a source in the far field, whose range is infinite. It is 0 where
        the data do not determine the range, and NaN where the range was not estimated but held at infinity.
        """
        std = self.inverse_range_std
        if std is None:
            std = self.std[..., 2] / self.sources.range.square()
        return 1 / (1 / self.sources.range + 2 * std)

    @property
    def position_covariance(self) -> Float[Tensor, "S K 3 3"]:
        """Covariance of the Cartesian position in the panel frame, m^2, to first order.

        Infinite where the data do not determine one of the coordinates.
        """
        at = torch.stack((self.sources.azimuth, self.sources.elevation, self.sources.range), dim=-1)
        determined = self.covariance.isfinite().all(-1).all(-1)[..., None, None]
        known = cartesian_covariance(at, torch.where(determined, self.covariance, 0)).to(self.covariance)
        return torch.where(determined | self.covariance.isnan(), known, torch.inf)

    @property
    def position_covariance_room(self) -> Float[Tensor, "S K 3 3"]:
        """Covariance of the Cartesian position in the room frame, m^2: that in the panel frame, rotated.

        Raises:
            InputError: the recording has no pose.
        """
        R = self._pose()[:3, :3]
        C = self.position_covariance
        determined = C.isfinite()
        return torch.where(determined, R @ torch.where(determined, C, 0) @ R.mT, C)

    @property
    def reasons(self) -> list[list[Reason]]:
        """The warnings of each scene that question its result."""
        return [[one for one in sentences if isinstance(one, Reason)] for sentences in self.warnings]

    @property
    def status(self) -> list[str]:
        """Status of each scene.

        ``ok``: no test gives a reason to doubt the result. ``doubtful``: :attr:`reasons` says why.
        ``failed``: there is a signal, but no sources that explain it.
        """
        counts = self.n_sources.tolist()
        return [
            "ok" if not reasons else "doubtful" if count else "failed"
            for reasons, count in zip(self.reasons, counts, strict=True)
        ]

    @property
    def existence_probability(self) -> Float[Tensor, "S K"]:
        """Probability that each source exists where it is.

        The lesser of two: that there are at least as many sources, which count in the order of their powers
        (1 where their number was given), and :attr:`position_probability`. NaN where there is no source.
        """
        active, probability = self.sources.active, self.n_sources_probability
        exists = torch.ones_like(self.snr_db, dtype=torch.float64)
        if probability is not None:
            # P(K >= 1), P(K >= 2), ...
            at_least = probability.double().flip(1).cumsum(1).flip(1)[:, 1:].clamp_max(1)
            width = active.shape[1]
            exists = pad(at_least, (0, max(0, width - at_least.shape[1])))[:, :width]
        if self.position_probability is not None:
            exists = torch.minimum(exists, self.position_probability)
        return torch.where(active, exists, math.nan)

    @property
    def n_sources(self) -> Int64[Tensor, "S"]:
        """Number of sources of each scene."""
        return self.sources.active.sum(-1)

    def to_dataframe(self) -> pandas.DataFrame:
        """A pandas DataFrame with one row per source and the columns of the CSV file.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise not_installed("to_dataframe", "pandas", "pandas ") from None
        return pandas.DataFrame(position_rows(self), columns=list(columns_of(self.pose)))

    def to_csv(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write one row per source, in degrees, metres and dB.

        Raises:
            InputError: the file exists and ``overwrite`` is off, or it cannot be written.
        """
        text = csv_text(columns_of(self.pose), map(asdict, position_rows(self)))
        write_text(Path(path), text, overwrite=overwrite)

    def to_json(self, path: str | Path, *, overwrite: bool = False, **head: object) -> None:
        """Write positions and standard deviations and, per scene, settings, P(K), p-value and warnings.

        Args:
            path: the file.
            overwrite: whether to replace a file that exists.
            head: further entries beside ``version`` and ``scenes``.

        Raises:
            InputError: the file exists and ``overwrite`` is off, or it cannot be written.
        """
        content = {"version": __version__, **head, "scenes": scene_records(self)}
        write_text(Path(path), json_text(content), overwrite=overwrite)

    def __len__(self) -> int:
        return len(self.warnings)

    def __getitem__(self, scenes: int | slice | Tensor) -> Estimate:
        """The estimate of some scenes. An int gives one scene, which keeps its leading axis: S = 1."""
        if isinstance(scenes, int):
            scenes = range(len(self))[scenes]
            scenes = slice(scenes, scenes + 1)
        if takes_all(scenes, len(self)):
            return self
        numbers = torch.arange(len(self))[scenes.cpu() if isinstance(scenes, Tensor) else scenes].tolist()
        return replace(
            super().__getitem__(scenes),
            warnings=[self.warnings[scene] for scene in numbers],
            method=[self.method[scene] for scene in numbers],
        )

    def __iter__(self) -> Iterator[Estimate]:
        return (self[scene] for scene in range(len(self)))

    def __repr__(self) -> str:
        methods = "+".join(dict.fromkeys(self.method)) or self.spec.method
        scenes, count = len(self), int(self.n_sources.sum())
        lines = [f"Estimate({counted(scenes, 'scene')}, {counted(count, 'source')}, method={methods!r})"]
        if count > _SHOWN:
            return lines[0]
        if count:
            lines.append("scene  #    azimuth / deg     elevation / deg         range / m   power / dB")
        for row in position_rows(self):
            lines.append(
                f"{row.scene:5d} {row.source:2d}"
                f"  {_with_bar(row.azimuth_deg, row.azimuth_std_deg)}"
                f"  {_with_bar(row.elevation_deg, row.elevation_std_deg)}"
                f"  {_range_text(row)}  {row.power_db:8.1f}"
            )
        return "\n".join(line.rstrip() for line in lines)

    def detached(self) -> Estimate:
        """A copy without gradients, of tensors that may take part in a computation of gradients."""
        return self.each(lambda value: value.detach().clone())


def _range_text(row: Position) -> str:
    if math.isinf(row.range_m):
        limit = f", > {row.range_lower_m:.3g} m" if row.range_lower_m > 0 else " field"
        return f"far{limit}".ljust(17)
    return _with_bar(row.range_m, row.range_std_m)


def _with_bar(value: float, bar: float) -> str:
    return f"{value:7.{decimals_of(bar)}f} ± {bar:<7.2g}"


def log_likelihood(
    recording: Recording,
    sources: Sources,
    *,
    criterion: Literal["conditional", "unconditional"] = "unconditional",
) -> Float[Tensor, "S"]:
    """Log-likelihood of source positions [S], nats, maximised over everything else.

    Args:
        recording: S scenes.
        sources: positions [S, K], NaN where there is no source; powers are not used.
        criterion: ``unconditional`` (Gaussian symbols), the greatest value over powers and, where it is not
            recorded, the noise variance, without the constant -L M log(pi). ``conditional`` (deterministic
            symbols), -L M log(f), f the residual energy, without constants.

    Raises:
        InputError: another number of scenes, or positions that are not finite.
    """
    check_choice("criterion", criterion, ("conditional", "unconditional"))
    recording = recording.stacked()
    fit = fit_at(recording, sources, None)
    if criterion == "unconditional":
        return -fit.neg_log_likelihood
    return -recording.snapshots[0].numel() * fit.cost.log()


def fit_at(recording: Recording, sources: Sources, volume: Volume | None) -> Fit:
    """The fit at given positions, as if converged in the volume; known positions without one."""
    positions, active = unpack(sources, recording)
    if positions.shape[1] == 0:
        positions, active = positions.new_ones(len(recording), 1, 3), active.new_zeros(len(recording), 1)
    return complete_fit(recording, positions, active, torch.ones_like(active[:, 0]), volume)


def from_fit(
    recording: Recording,
    fit: Fit,
    n_sources_probability: Float[Tensor, "S counts"] | None,
    volume: Volume,
    spec: LocateSpec,
) -> Estimate:
    """Order a fit's sources by power; add error bars, received power, p-value and warnings."""
    found = fit.sources
    assert found.power is not None
    order = torch.where(found.active, found.power, -torch.inf).argsort(dim=-1, descending=True)
    if recording.link.pilots is not None:  # source k is the one of pilot k
        order = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    found = found.reordered(order)
    bound = _bound(recording, found, fit.noise_variance, spec)
    spread = _noise_spread(recording, found.active, volume)
    covariance = without_held(bound.per_source * spread[:, None, None, None], found.active, spec)
    std = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    snr_db = received_db(recording, found, fit.noise_variance)
    warnings = warnings_of(found, std, fit.converged, volume, snr_db)
    p_value = torch.full_like(fit.neg_log_likelihood, math.nan)
    if not spec.allowed_error:  # otherwise the residual contains the hardware errors
        fits = goodness_of_fit(recording, found, volume)
        p_value = fits.p_value
        for scene, sentences in enumerate(warnings):
            if (sentence := fits.sentence(scene)) is not None:
                sentences.append(Reason(sentence))
    return Estimate(
        sources=replace(found, symbols=None),
        covariance=covariance,
        snr_db=snr_db,
        noise_variance=fit.noise_variance,
        neg_log_likelihood=fit.neg_log_likelihood,
        n_sources_probability=n_sources_probability,
        p_value=p_value,
        warnings=warnings,
        spec=spec,
        method=[spec.method] * len(recording),
        pose=getattr(recording, "pose", None),
        inverse_range_std=bound.inverse_range_std * spread.sqrt()[:, None],
    )


def _bound(recording: Recording, found: Sources, noise_variance: Tensor, spec: LocateSpec) -> Bound:
    """The unconditional bound; the conditional one of fitted, and so noisy, symbols would be too small."""
    kernel, P = kernel_for(recording), None
    if recording.symbols == "correlated":
        P = source_covariance_at(recording, *unpack(found, recording))
    elif kernel is not None:
        assert found.power is not None
        exact = replace(recording, snapshots=recording.snapshots.to(torch.complex128))
        positions, active = unpack(found, recording)
        power = torch.where(active, found.power, 0)
        J, alone = kernel.information(exact, positions, active, power, noise_variance)
        return bound_from_information(J, alone, found, spec.unknowns)
    return unconditional_crb(
        recording.panel,
        recording.link,
        found,
        noise_variance,
        snapshots=recording.snapshots.shape[-2],
        unknowns=spec.unknowns,
        source_covariance=P,
    )


def _noise_spread(recording: Recording, active: Bool[Tensor, "S K"], volume: Volume) -> Float[Tensor, "S"]:
    """Noise variance that the residual suggests over its maximum-likelihood estimate, if it is unknown.

    The fit of the positions takes up a part of the noise, too, which matters with few snapshots.
    """
    count = active.sum(-1)
    if recording.noise_variance is not None:
        return torch.ones_like(count, dtype=torch.float64)
    L, M = recording.snapshots.shape[-2:]
    dimensions = (L * (M - count)).double()
    left = dimensions - volume.coordinates(recording.panel) * count / 2
    return (dimensions / left.clamp_min(0.5)).clamp_min(1)


def without_held(
    covariance: Float[Tensor, "S K 3 3"], active: Bool[Tensor, "S K"], spec: LocateSpec
) -> Float[Tensor, "S K 3 3"]:
    """The covariance with infinite variances of the coordinates that are held: nothing is known of them."""
    held = torch.tensor([name not in spec.unknowns for name in POSITION], device=covariance.device)
    unknown = torch.diag_embed(torch.where(held, torch.inf, 0).to(covariance.dtype))
    return torch.where((held[:, None] | held) & active[..., None, None], unknown, covariance)


def received_db(
    recording: Recording, found: Sources, noise_variance: Float[Tensor, "S"]
) -> Float[Tensor, "S K"]:
    """Received power of each source over the noise variance, dB."""
    assert found.power is not None
    fields = recording.link.to(torch.complex128).matmul(found.steering(recording.panel).to(torch.complex128))
    gain = torch.view_as_real(fields).square().sum(-1).mean(dim=-2).mean(dim=-2)  # over m, then over l
    return torch.where(found.active, to_db(found.power * gain / noise_variance[:, None]), math.nan)


def warnings_of(
    found: Sources,
    std: Float[Tensor, "S K 3"],
    converged: Bool[Tensor, "S"],
    volume: Volume,
    snr_db: Float[Tensor, "S K"],
) -> list[list[str]]:
    """Warnings about sources at the boundary or without an error bar, and fits that did not converge."""
    warnings: list[list[str]] = [[] for _ in range(len(converged))]
    for scene, sentence in _warnings(found, std, converged, volume, snr_db):
        warnings[scene].append(sentence)
    return warnings


def _warnings(
    found: Sources, std: Tensor, converged: Tensor, volume: Volume, snr_db: Tensor
) -> Iterator[tuple[int, str]]:
    positions = torch.stack((found.azimuth, found.elevation, 1 / found.range), dim=-1)
    at_boundary = volume.at_boundary(positions)
    # The far field is a legal answer where it is searched.
    at_boundary[..., 2] &= ~found.range.isinf()
    held = [low == high for low, high in zip(volume.lower, volume.upper, strict=True)]
    free = [axis for axis in range(3) if not held[axis]]
    for axis, name in enumerate(POSITION):
        if held[axis]:
            for scene in found.active.any(-1).nonzero()[:, 0].tolist():
                r = float(found.range[scene, 0])
                value = "0 deg" if name != "range" else "infinity" if math.isinf(r) else f"{r:g} m"
                yield scene, f"the {name} was not estimated but held at {value}"
            continue
        for scene, source in at_boundary[..., axis].nonzero().tolist():
            yield scene, f"source {source} is at the boundary of the search volume in {name}"
    nothing = std[..., free].isinf().all(-1)
    for scene, source in nothing.nonzero().tolist():
        text = f"source {source} has no error bar: the data do not distinguish it from another source"
        yield scene, Reason(text)
    for axis in free:
        name, unknown = POSITION[axis], std[..., axis].isinf()
        for scene, source in (unknown & ~nothing & ~found.range.isinf()).nonzero().tolist():
            text = f"source {source} has no error bar in {name}, which this array does not determine; the "
            yield scene, f"{text}other error bars hold for the {name} given here"
        # A guess within the search volume has this error.
        guess = (volume.upper[axis] - volume.lower[axis]) / math.sqrt(12)
        vague = (std[..., axis] > (math.inf if name == "range" else guess)) & ~unknown
        for scene, source in vague.nonzero().tolist():
            text = f"source {source}: the {name} is not determined (its error bar exceeds that of a guess "
            yield scene, Reason(f"{text}within the search volume)")
    for scene, source in ((std[..., 2] > found.range) & ~std[..., 2].isinf()).nonzero().tolist():
        yield scene, f"source {source}: the range is poorly determined (its error bar exceeds the range)"
    for scene in (~converged).nonzero()[:, 0].tolist():
        exact = bool((snr_db[scene] > _NOISELESS_DB).any())
        text = "the data hold no noise but rounding, on which the error bars rest"
        yield scene, text if exact else Reason("the maximum-likelihood fit did not converge")


E = TypeVar("E", bound=Estimate)
Finding = tuple[int, str]
"""A scene, and a sentence about it."""


def noted(estimate: E, found: Iterable[Finding], **changed: Any) -> E:
    """The estimate with sentences about some scenes, and with other values of its fields."""
    sentences = [list(one) for one in estimate.warnings]
    for scene, sentence in found:
        sentences[scene].append(sentence)
    return replace(estimate, warnings=sentences, **changed)


def join_estimates(parts: list[Estimate]) -> Estimate:
    """Blocks of scenes put together, padded to the same K_max."""
    erring = any(part.panel_error is not None for part in parts)
    most = max((one.shape[1] for part in parts if (one := part.n_sources_probability) is not None), default=0)

    def alike(part: Estimate) -> Estimate:
        probability, error = part.n_sources_probability, part.panel_error
        if probability is not None:
            # Methods and volumes differ in the largest number of sources.
            probability = pad(probability, (0, most - probability.shape[1]))
        if error is None and erring:  # only scenes that were located again under a model error have one
            error = torch.zeros_like(part.p_value)
        return replace(part, n_sources_probability=probability, panel_error=error)

    return replace(
        concatenate([alike(part) for part in parts]),
        warnings=[sentences for part in parts for sentences in part.warnings],
        method=[name for part in parts for name in part.method],
    )


def join_scenes(parts: Sequence[Estimate], scenes: Sequence[Int64[Tensor, "_"]]) -> Estimate:
    """Estimates of these scenes put together, in the order of the recording."""
    return join_estimates([part for part in parts if len(part)])[torch.cat(list(scenes)).argsort()]
