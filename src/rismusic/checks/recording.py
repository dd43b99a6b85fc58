"""Facts about a recording, and checks for common mistakes in it.

Files that cannot be used are rejected when they are read. This module checks files that can be read for
implausible values and wrong conventions, the usual mistakes when a measurement is exported.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from rismusic.array import SPEED_OF_LIGHT, Panel, to_db
from rismusic.checks.conventions import MODELS, MOST_LEFT, WrongConvention
from rismusic.checks.fits import BlindFit, TruthFit, identify_pilots
from rismusic.estimation.classical import ClassicalEstimator
from rismusic.estimation.diagnosis import diagnosed
from rismusic.estimation.estimate import Estimate, Note
from rismusic.estimation.model_error import can_err
from rismusic.estimation.receiver import clipped_share
from rismusic.io import Recording, check_recording, open_recording, validate
from rismusic.spec import LocateSpec
from rismusic.text import counted

# Settings with which scenes are located, and how many. Singular values of the channel, relative to the
# largest, that count as none.
_SETTINGS, _LOCATED, _NEGLIGIBLE = LocateSpec(method="omp"), 4, 1e-3
# Fewer numbers do not tell the noise variance well enough.
_NUMBERS_FOR_NOISE = 400
# Power of the mean snapshot times their number, relative to their power, that chance does not reach.
_CHANCE = 14.0
_REMEDY = "run locate, which gives the reasons scene by scene; see the page on departures from the model"
# Scenes read at a time, numbers per scene compared to find copies, most scenes used to check conventions.
_BLOCK, _MARK, _ENOUGH = 64, 64, 256

# Name: threshold, meaning of a measured value above it, remedy.
CHECKS: dict[str, tuple[float, str, str]] = {
    "snapshots_real": (
        0.999999,
        "the snapshots have no imaginary part (share of the modulus that is real)",
        "export I and Q, not the modulus or the real part",
    ),
    "channel_real": (
        0.999999,
        "the channel has no imaginary part (share of the modulus that is real)",
        "export the complex channel",
    ),
    "noise_too_loud": (
        0.0,
        "scenes whose noise_variance exceeds their total power",
        "give E|n|^2 of the complex noise at one receiver output",
    ),
    "noise_variance_off": (
        1.7,
        "noise_variance is far from the noise beside the sources (factor, either way)",
        "give E|n|^2 of the complex noise at one receiver output in the bandwidth of the snapshots, or none",
    ),
    "snapshots_repeated": (
        0.0,
        "scenes whose snapshots are all the same",
        "check that the snapshots were neither averaged nor copied",
    ),
    "snapshots_clipped": (
        0.0,
        "samples at the limit of the receiver (largest share in a scene)",
        "lower its gain and record again; clipped samples are no linear function of the sources",
    ),
    "codes_repeated": (
        0.0,
        "codebooks whose codes are all the same",
        "change the RIS configuration between snapshots; a single one can hardly separate sources",
    ),
    "codes_modulus": (
        0.5,
        "codes far from modulus 1 (largest | |c| - 1 |)",
        "store exp(j phase), not the phase or its index",
    ),
    "antenna_dead": (
        10.0,
        "a receiver output is much weaker than the others (median power over its power)",
        "check its cable and gain; leave it out of snapshots and channel, or give noise_covariance",
    ),
    "antenna_loud": (
        10.0,
        "a receiver output is much stronger than the others (its power over the median power)",
        "check its gain; leave it out of snapshots and channel, or give noise_covariance",
    ),
    "snapshots_offset": (
        0.01,
        "the snapshots of all scenes have the same offset (share of their power)",
        "subtract the mean, which is an offset of the receiver",
    ),
    "channel_rank": (
        1.0,
        "the rank of the channel is too small for the number of sources (needed / present)",
        "use a channel with more paths, or constant or known symbols, which need no rank",
    ),
    "scenes_repeated": (0.0, "scenes that occur more than once", "check the loop that exported them"),
    "truth_unexplained": (
        MOST_LEFT,
        "the true sources do not explain the signal (share of its power that they leave)",
        "check truth, channel, codes and element order; no single wrong convention explains it",
    ),
    "truth_far": (
        100.0,
        "true ranges far beyond the near field (median range / Fraunhofer distance)",
        "give ranges in metres; in the far field the range cannot be estimated",
    ),
    "elements_coarse": (
        0.6,
        "nearest elements lie far apart (wavelengths), so that directions are ambiguous",
        "check the wavelength and the unit of the elements; or search a smaller volume",
    ),
    "elements_dense": (
        10.0,
        "nearest elements lie close together (elements per wavelength)",
        "check the wavelength and the unit of the elements",
    ),
    "elements_off_centre": (
        0.05,
        "the middle of the elements is not the origin (distance / aperture)",
        "shift the elements; angles and ranges are measured from the origin",
    ),
    "elements_out_of_plane": (
        0.5,
        "elements leave the plane z = 0 (extent in wavelengths)",
        "turn the panel so that z is its normal, x horizontal and y vertical",
    ),
    "carrier_outside_band": (
        0.01,
        "the frequency of the wavelength lies outside the subcarriers (distance / frequency)",
        "check wavelength and frequencies: the steering vectors are those of the frequencies",
    ),
}


@dataclass(frozen=True)
class CheckFinding:
    """A failed check: a measured value above its threshold, its meaning, and a remedy.

    ``alike`` names other mistakes that have the same effect in this recording.
    """

    name: str
    value: float
    threshold: float
    meaning: str
    remedy: str
    alike: tuple[str, ...] = ()

    def __str__(self) -> str:
        alike = f"\n  Fits as well: {', '.join(self.alike)}." if self.alike else ""
        return (
            f"suspicious: {self.name}: {self.meaning}: {self.value:.3g} (at most {self.threshold:.3g}).\n"
            f"  To try: {self.remedy}.{alike}"
        )

    @classmethod
    def of(cls, wrong: WrongConvention) -> CheckFinding:
        """The finding of a wrong convention."""
        change = wrong.change
        meaning = f"{change.meaning}; log-likelihood ratio"
        return cls(change.name, wrong.ratio, wrong.threshold, meaning, change.remedy, wrong.alike)


@dataclass(frozen=True)
class CheckReport:
    """Result of :func:`check`: facts by name, and the failed checks (none in a correct recording)."""

    facts: dict[str, str]
    findings: list[CheckFinding]

    def __str__(self) -> str:
        facts = [f"{name}: {value}" for name, value in self.facts.items()]
        return "\n".join([*facts, *(map(str, self.findings) if self.findings else ["Nothing suspicious."])])


def check(recording: str | Path | Recording, *, fit: bool = True) -> CheckReport:
    """Look for common mistakes in a recording, as ``rismusic check`` does.

    Every scene of a file is read once, block by block, so that the file may be larger than memory. Wrong
    conventions are detected with the truth of the first 256 scenes or, without truth, by fits to a few
    scenes.

    Args:
        recording: a recording, or the name of an ``.h5``, ``.npz`` or ``.mat`` file.
        fit: whether to check the conventions of a recording without truth, which takes some seconds.

    Returns:
        Facts and findings. ``print`` shows them as sentences.

    Raises:
        InputError: the recording is invalid, or the file cannot be read as one.

    Example:
        >>> print(check(load_sample("ideal_10dB")))
    """
    if not isinstance(recording, (str, Path)):
        check_recording(recording)
        held = recording.to("cpu")
        validate(held)  # it may have been changed since it was made
        blocks = (held[start : start + _BLOCK] for start in range(0, len(held), _BLOCK))
        return _check(blocks, held[:1], {"scenes S": str(len(held))}, {}, fit=fit)
    with open_recording(recording) as file:
        head = {"file": f"{file.path} ({file.format})", "scenes S": str(file.scenes)}
        ignored = {"fields not used": ", ".join(file.ignored)} if file.ignored else {}
        return _check(file.batches(_BLOCK), file[:1], head, ignored, fit=fit)


def _check(
    blocks: Iterable[Recording],
    scene: Recording,
    head: dict[str, str],
    tail: dict[str, str],
    *,
    fit: bool,
) -> CheckReport:
    """The report on the scenes of all blocks. ``scene`` is one of them; ``head`` and ``tail`` are facts."""
    panel = scene.panel
    statistics, conventions = _Statistics(), "not tried (no truth)"
    first: Recording | None = None
    for recording in blocks:
        statistics.add(recording)
        first = recording if first is None else first
    wrong: list[WrongConvention] = []
    if statistics.truth.scenes:
        assert first is not None
        wrong = _wrong_conventions(_name_with_truth, statistics.truth.wrong_convention(), first)
        conventions = f"tried on the truth of {counted(statistics.truth.scenes, 'scene')}"
    elif fit and first is not None:
        search = BlindFit(first)
        obstacle = search.obstacle
        if obstacle is None:
            wrong = _wrong_conventions(_name_without_truth, search.search(), first)
            conventions = f"tried by fits to {counted(search.scenes, 'scene')}"
        else:
            conventions = f"not tried (no truth, and {obstacle})"
    of_panel = _panel_values(panel)
    values = {**statistics.values(), **of_panel}
    departures = []
    form = None if first is None else _corrected(first, wrong)
    # Known symbols are tested against free ones.
    if (
        fit
        and form is not None
        and (can_err(form.stacked()) if form.pilots is None else identify_pilots(form, _SETTINGS))
    ):
        located = _located(form)
        departures = _departures(located)
        if not departures and not values.get("noise_too_loud"):
            values["noise_variance_off"] = _noise_factor(form, located)
    if statistics.range and panel.fraunhofer_distance > 0:  # one element has no near field
        values["truth_far"] = float(torch.cat(statistics.range).median()) / panel.fraunhofer_distance
    if wrong:
        values.pop("channel_rank", None)  # it depends on the model
    else:
        values["truth_unexplained"] = statistics.truth.residual_energy
    others = [
        CheckFinding(name, values[name], *row) for name, row in CHECKS.items() if values.get(name, 0) > row[0]
    ]
    # Wrong elements make waves and conventions look wrong too.
    findings = [one for one in others if one.name in of_panel]
    findings += [CheckFinding.of(one) for one in wrong]
    findings += [one for one in others if one.name not in of_panel] + departures
    facts = {**head, **_facts(scene, statistics), **tail, "conventions": conventions}
    return CheckReport(facts, findings)


def _located(recording: Recording) -> Estimate:
    """The sources of the first scenes and the noise beside them, whatever noise is recorded."""
    part = replace(recording[:_LOCATED], truth=None, noise_variance=None)
    estimate = ClassicalEstimator(_SETTINGS)(part, "auto")
    return diagnosed(part, estimate, "auto", ClassicalEstimator, _SETTINGS)


def _noise_factor(recording: Recording, estimate: Estimate) -> float:
    """Factor between the noise that is recorded and the estimated one; 1 where too few numbers tell."""
    given = recording.noise_variance
    numbers = recording.snapshots[: len(estimate)].numel()
    if given is None or numbers < _NUMBERS_FOR_NOISE:
        return 1.0
    ratio = float((given[: len(estimate)] / estimate.noise_variance).log().median().exp())
    return max(ratio, 1 / ratio)


def _departures(estimate: Estimate) -> list[CheckFinding]:
    """Departures from the signal model that are recognised in most of the first scenes."""
    said: dict[str, dict[int, str]] = {}
    for scene, sentences in enumerate(estimate.warnings):
        for sentence in sentences:
            if isinstance(sentence, Note) and sentence.departure:
                said.setdefault(sentence.departure, {}).setdefault(scene, sentence)
    findings = []
    for name, scenes in said.items():
        if 2 * len(scenes) > len(estimate):
            first = min(scenes)
            meaning = f"scene {first}: {scenes[first]} (share of {len(estimate)} scenes)"
            findings.append(CheckFinding(name, len(scenes) / len(estimate), 0.5, meaning, _REMEDY))
    return findings


def _wrong_conventions(
    name: Callable[[Recording], WrongConvention | None], named: WrongConvention | None, first: Recording
) -> list[WrongConvention]:
    """The wrong convention that was named, and further ones of the first block where it is a signal model."""
    wrong = []
    while named is not None:
        wrong.append(named)
        form = _corrected(first, wrong)
        named = None if form is None else name(form)
    return wrong


def _name_with_truth(recording: Recording) -> WrongConvention | None:
    fit = TruthFit()
    fit.add(recording)
    return fit.wrong_convention()


def _name_without_truth(recording: Recording) -> WrongConvention | None:
    search = BlindFit(recording)
    return search.search() if search.obstacle is None else None


def _corrected(recording: Recording, wrong: list[WrongConvention]) -> Recording | None:
    """The recording under the signal models found so far; none to end the search for more."""
    if len({one.change.family for one in wrong} & MODELS) < len(wrong):
        return None
    form: Recording | None = recording
    for one in wrong:
        form = None if form is None else one.change.apply(form)
    return form


class _Statistics:
    """Statistics of the scenes, accumulated block by block."""

    def __init__(self) -> None:
        self.snr_db: list[Tensor] = []
        self.sources: Counter[int] = Counter()
        self.range: list[Tensor] = []
        self.truth = TruthFit()
        self._largest: dict[str, float] = {}
        self._count: Counter[str] = Counter()
        self._marks: set[bytes] = set()
        self._power = self._sum = torch.zeros(1)  # of each receiver output, once there are scenes
        self._snapshots = self._scenes = 0
        self._rank: int | None = None

    def add(self, recording: Recording) -> None:
        y, channel, codes = recording.snapshots, recording.channel, recording.codes
        for mark in (bytes(row) for row in torch.view_as_real(y).flatten(1)[:, :_MARK].numpy()):
            self._count["scenes_repeated"] += mark in self._marks
            self._marks.add(mark)
        outputs = y.to(torch.complex128).flatten(0, -2)  # [snapshots, M]
        self._power = self._power + outputs.abs().square().sum(0)
        self._sum = self._sum + outputs.sum(0)
        self._snapshots += len(outputs)
        self._scenes += len(y)
        if channel is not None and recording.symbols == "independent" and recording.frequencies is None:
            values = torch.linalg.svdvals(channel.to(torch.complex128))
            rank = int((values > _NEGLIGIBLE * values[..., :1]).sum(-1).min())
            self._rank = rank if self._rank is None else min(rank, self._rank)
        self._raise("snapshots_real", 1 - y.imag.abs().max() / y.abs().max())
        self._raise("snapshots_clipped", clipped_share(y).max())
        if y.shape[-2] > 1:
            self._count["snapshots_repeated"] += int((y == y[..., :1, :]).flatten(1).all(dim=1).sum())
        if channel is not None:
            self._raise("channel_real", 1 - channel.imag.abs().max() / channel.abs().max())
        if codes is not None:
            self._raise("codes_modulus", (codes.abs() - 1).abs().max())
            if codes.shape[-2] > 1:
                self._count["codes_repeated"] += int(
                    (codes == codes[..., :1, :]).flatten(-2).all(dim=-1).sum()
                )
        if recording.noise_variance is not None:
            power, noise = y.abs().square().double().flatten(1).mean(1), recording.noise_variance
            self.snr_db.append(to_db(((power - noise) / noise).clamp_min(1e-3)))
            # Allow four standard deviations for the scatter of a mean of few samples.
            self._count["noise_too_loud"] += int((power < noise * (1 - 4 / math.sqrt(y[0].numel()))).sum())
        if recording.truth is not None:
            self.sources.update(recording.truth.active.sum(-1).tolist())
            self.range.append(recording.truth.range[recording.truth.active])
            if self.truth.scenes < _ENOUGH:
                self.truth.add(recording)

    def _raise(self, name: str, value: Tensor) -> None:
        self._largest[name] = max(self._largest.get(name, 0.0), float(value))

    def values(self) -> dict[str, float]:
        """The measured value of each check."""
        values = self._largest | {name: float(count) for name, count in self._count.items()}
        if self._scenes:
            power = self._power / self._snapshots
            middle = power.median().clamp_min(torch.finfo(power.dtype).tiny)
            if len(power) > 2:
                values["antenna_dead"] = float(middle / power.min().clamp_min(1e-30 * middle))
                values["antenna_loud"] = float(power.max() / middle)
            offset = float((self._sum / self._snapshots).abs().square().sum() / power.sum())
            # By chance this is about 1 / snapshots. In a single scene it may be the signal.
            if self._scenes > 1 and offset * self._snapshots > _CHANCE:
                values["snapshots_offset"] = offset
        if self._rank is not None:
            values["channel_rank"] = (1 + max(self.sources, default=1)) / self._rank
        return values


def _panel_values(panel: Panel) -> dict[str, float]:
    spacing = panel.spacing / panel.wavelength
    extent = panel.elements.amax(0) - panel.elements.amin(0)
    values = {"elements_out_of_plane": float(extent[2]) / panel.wavelength}
    if panel.size > 1:
        values["elements_coarse"] = spacing
        values["elements_dense"] = 1 / spacing
        values["elements_off_centre"] = float(panel.elements.mean(0).norm()) / panel.aperture
    if panel.frequencies:
        carrier, low, high = SPEED_OF_LIGHT / panel.wavelength, min(panel.frequencies), max(panel.frequencies)
        values["carrier_outside_band"] = max(low - carrier, carrier - high, 0.0) / carrier
    return values


def _facts(scene: Recording, statistics: _Statistics) -> dict[str, str]:
    panel, link = scene.panel, "none (the panel is sampled directly)"
    if scene.channel is not None:
        words = {True: "per scene", False: "for all scenes"}
        link = f"one channel {words[scene.channel_per_scene]}, one codebook {words[scene.codes_per_scene]}"
    L, M = scene.snapshots.shape[-2:]
    facts = {
        "snapshots L": str(L),
        "receiver outputs M": str(M),
        "elements N": str(panel.size),
        **({} if scene.frequencies is None else {"subcarriers F": _subcarriers(scene.frequencies)}),
        "wavelength": f"{scene.wavelength:.6g} m ({1e-6 * SPEED_OF_LIGHT / scene.wavelength:.6g} MHz)",
        "nearest elements": (
            f"{panel.spacing / panel.wavelength:.3g} wavelengths apart"
            if panel.size > 1
            else "none: a single element has no direction"
        ),
        "aperture": f"{panel.aperture:.4g} m",
        "Fresnel distance": f"{panel.fresnel_distance:.3g} m",
        "Fraunhofer distance": f"{panel.fraunhofer_distance:.3g} m (range can be estimated well inside it)",
        "link": link,
        "wave": scene.wave + (f", cos^{scene.pattern_exponent:g} elements" if scene.pattern_exponent else ""),
        "symbols": scene.symbols,
        "noise variance": "given" if statistics.snr_db else "not given",
    }
    if statistics.snr_db:
        snr = torch.cat(statistics.snr_db)
        facts["SNR"] = f"{float(snr.min()):.1f} to {float(snr.max()):.1f} dB (power over noise variance)"
    facts["truth"] = "not given"
    if statistics.range:
        ranges = torch.cat(statistics.range)
        counts = ", ".join(f"{n} x {K}" for K, n in sorted(statistics.sources.items()))
        facts["truth"] = f"scenes x sources: {counts}"
        if len(ranges):
            facts["true ranges"] = f"{float(ranges.min()):.3g} to {float(ranges.max()):.3g} m"
    return facts


def _subcarriers(frequencies: Tensor) -> str:
    low, high = (float(value) / 1e6 for value in (frequencies.min(), frequencies.max()))
    return f"{len(frequencies)} from {low:.6g} to {high:.6g} MHz"
