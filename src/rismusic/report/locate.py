"""Report of the sources located in a recording, collected block by block, as one HTML file."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from rismusic.batch import concatenate
from rismusic.crb import Bound, recording_crb
from rismusic.errors import InputError
from rismusic.estimation.estimate import Estimate
from rismusic.estimation.grid import Volume
from rismusic.estimation.maximum_likelihood import complete_fit, unpack
from rismusic.estimation.noise import most_sources
from rismusic.io import Recording
from rismusic.metrics import Match, match, score
from rismusic.report.page import (
    Slices,
    colour_bar,
    decimals,
    environment,
    fixed,
    fragment,
    general,
    picture_from_above,
    picture_in_space,
    setting_rows,
    slices,
    within,
    write_page,
)
from rismusic.scene_view import CONFIDENCE, Scene, inside_ellipsoid
from rismusic.sources import Sources
from rismusic.spec import LocateSpec

# Size limits in bytes: scenes in detail, table of all scenes.
_DETAILS, _OVERVIEW = 600_000, 220_000
# Most scenes in the overview, and most different warnings.
_ROWS, _WARNINGS = 300, 12
# The table of true and estimated numbers of sources is left out from this number of sources on.
_MOST = 25


@dataclass(frozen=True)
class Row:
    """One scene of the overview. Fields that need the truth are none without it."""

    scene: int
    estimated: int
    true: int | None
    hits: int | None
    missed: int | None
    false_alarms: int | None
    probability: float | None
    p_value: float
    status: str
    warnings: list[str]


class LocateReport:
    """Collects estimates block by block and writes the report. Only a few numbers a scene stay in memory.

    The first ``details`` scenes are shown in full (fewer if the file would exceed 1 MB).
    """

    def __init__(self, *, details: int = 8) -> None:
        environment()
        self._wanted = details
        self._details: list[str] = []
        self._rows: list[Row] = []
        self._comparisons: list[Comparison] = []
        self._counts: Counter[tuple[int, int]] = Counter()
        self._warnings: Counter[str] = Counter()
        self._methods: Counter[str] = Counter()
        self._recording: Recording | None = None
        self._spec: LocateSpec | None = None

    def add(self, recording: Recording, located: Estimate) -> None:
        """Add the next scenes."""
        if len(recording) != len(located.snr_db):
            raise InputError(
                "located", f"has {len(located.snr_db)} scenes, but the recording has {len(recording)}"
            )
        if self._spec not in (None, located.spec):
            raise InputError(
                "located", "the settings differ from those of the scenes added before; write one report each"
            )
        if (truth := recording.truth) is not None:
            recording = replace(recording, truth=truth.reordered(truth.active_first))
        self._spec = located.spec
        self._methods.update(located.method)
        self._recording = self._recording or recording[:1]
        comparison = compare(recording, located)
        if comparison is not None:
            self._comparisons.append(comparison)
        first = len(self._rows)
        rows = [
            _row(first + scene, scene, located, status, comparison)
            for scene, status in enumerate(located.status)
        ]
        self._rows += rows
        for row in rows:
            self._warnings.update({_kind(sentence) for sentence in row.warnings})
            if row.true is not None:
                self._counts[row.true, row.estimated] += 1
        shown = max(0, min(self._wanted - first, len(recording)))
        if shown:
            part = slice(0, shown)
            volume, methods = Volume.from_spec(located.spec), located.method[part]
            pictures = slices(recording[part], located.sources[part], volume, methods)
            for scene, picture in enumerate(pictures):
                self._details.append(_detail(rows[scene], recording, located, comparison, scene, picture))

    def write(
        self,
        path: str | Path,
        *,
        name: str = "recording",
        facts: Mapping[str, str] | None = None,
        remarks: Sequence[str] = (),
        command: str = "",
        overwrite: bool = False,
    ) -> None:
        """Write the report of all scenes so far.

        ``facts`` about the recording are by default those that its first scene shows; ``remarks`` are
        sentences on possible errors in it.
        """
        if self._recording is None or self._spec is None:
            raise InputError("report", "there is no scene to report; call add() first")
        rows = [
            fragment("row.html.j2", row=row, linked=row.scene < self._wanted) for row in self._rows[:_ROWS]
        ]
        total = score(*joined(self._comparisons)) if self._comparisons else None
        kind = self._comparisons[0].kind if total and not math.isnan(total.azimuth_over_bound) else ""
        few = max(map(max, self._counts), default=0) < _MOST
        write_page(
            Path(path),
            "locate.html.j2",
            overwrite=overwrite,
            command=command,
            name=name,
            facts=dict(facts) if facts is not None else recording_facts(self._recording, len(self._rows)),
            remarks=list(remarks),
            settings=setting_rows(self._spec),
            methods=self._methods.most_common(),
            method=self._spec.method,
            rows=within(rows, _OVERVIEW),
            details=within(self._details, _DETAILS),
            wanted=min(self._wanted, len(self._rows)),
            scenes=len(self._rows),
            estimated=sum(row.estimated for row in self._rows),
            probability=any(row.probability is not None for row in self._rows),
            score=total,
            hits=sum(row.hits or 0 for row in self._rows),
            known=sum(row.true or 0 for row in self._rows),
            false_alarms=sum(row.false_alarms or 0 for row in self._rows),
            inside=sum(int(part.inside.sum()) for part in self._comparisons),
            confidence=CONFIDENCE,
            bound=kind,
            error_bars=_error_bars(self._spec),
            counts=self._counts if few and len(self._rows) > 1 else {},
            warnings=self._warnings.most_common(_WARNINGS),
            more_warnings=max(0, len(self._warnings) - _WARNINGS),
            bar=colour_bar(),
        )


def write_report(
    path: str | Path,
    recording: Recording,
    located: Estimate,
    *,
    details: int = 8,
    name: str = "recording",
    command: str = "",
    overwrite: bool = False,
) -> None:
    """Write the estimates of a recording as one HTML file, as ``rismusic locate --report`` does.

    The file can be read offline and stays below 1 MB.

    Args:
        path: an ``.html`` file.
        recording: S scenes.
        located: estimates from :func:`rismusic.locate`.
        details: number of scenes shown in full, from the first on.
        name: name of the recording.
        command: the command line that made the report.
        overwrite: whether an existing file may be replaced.

    Raises:
        InputError: the packages that reports need are not installed, or the file cannot be written.
    """
    report = LocateReport(details=details)
    report.add(recording, located)
    report.write(path, name=name, command=command, overwrite=overwrite)


def recording_facts(recording: Recording, scenes: int) -> dict[str, str]:
    """Facts about a recording that did not come from a file."""
    panel, link = recording.panel, recording.link
    return {
        "scenes S": str(scenes),
        "snapshots L": str(recording.snapshots.shape[-2]),
        "receiver outputs M": str(recording.snapshots.shape[-1]),
        "elements N": str(panel.size),
        "wavelength": f"{panel.wavelength:.6g} m",
        "aperture": f"{panel.aperture:.4g} m",
        "Fresnel distance": f"{panel.fresnel_distance:.3g} m",
        "Fraunhofer distance": f"{panel.fraunhofer_distance:.3g} m",
        "link": "none (the panel is sampled directly)" if link.channel is None else "channel and codes",
        "noise variance": "not given" if recording.noise_variance is None else "given",
        "truth": "not given" if recording.truth is None else "given",
    }


def _error_bars(spec: LocateSpec) -> str:
    if spec.allowed_error > 0:
        return (
            "± is one standard deviation of the estimate with the hardware errors of the panel taken as "
            "unknown. It does not cover a wrong number of sources."
        )
    sentence = (
        "± is one standard deviation, from the unconditional Cramér-Rao bound at the estimate. It covers "
        "noise only, not a wrong number of sources or hardware that differs from the recording."
    )
    if not spec.polish:
        sentence += " These estimates are unpolished peaks of a spectrum, whose errors are larger."
    return sentence


def _row(number: int, scene: int, located: Estimate, status: str, comparison: Comparison | None) -> Row:
    estimated = int(located.sources.active[scene].sum())
    probability = _probabilities(located, scene)
    chosen = probability[estimated] if estimated < len(probability) else None
    rest = (chosen, float(located.p_value[scene]), status, located.warnings[scene])
    if comparison is None:
        return Row(number, estimated, None, None, None, None, *rest)
    true, hits = int(comparison.match.true_count[scene]), int(comparison.match.hit[scene].sum())
    return Row(number, estimated, true, hits, true - hits, estimated - hits, *rest)


def _detail(
    row: Row,
    recording: Recording,
    located: Estimate,
    comparison: Comparison | None,
    scene: int,
    picture: Slices,
) -> str:
    truth = None if recording.truth is None else recording.truth[scene]
    drawing = Scene(
        recording.panel,
        located.sources[scene],
        located.covariance[scene],
        truth,
        Volume.from_spec(located.spec),
    )
    space, above = picture_in_space(drawing), picture_from_above(drawing)
    return fragment(
        "scene.html.j2",
        row=row,
        space=space,
        above=above,
        clipped=drawing.clipped,
        thinned=drawing.thinned,
        fresnel=recording.panel.fresnel_distance,
        fraunhofer=recording.panel.fraunhofer_distance,
        confidence=CONFIDENCE,
        slices=picture,
        entries=entries(located, recording.truth, comparison, scene),
        probabilities=_probabilities(located, scene),
        noise_variance=general(float(located.noise_variance[scene]), 4),
        noise_known=recording.noise_variance is not None,
    )


def _probabilities(located: Estimate, scene: int) -> list[float]:
    """Probabilities of 0, 1, ... sources; empty where the number of sources was given."""
    probability = located.n_sources_probability
    return [] if probability is None else probability[scene].tolist()


def _kind(sentence: str) -> str:
    """The warning with its numbers replaced, so that the same warning in many scenes counts as one kind."""
    return re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "…", sentence)


SYMBOLS_KNOWN = "the conditional Cramér-Rao bound at the true positions, with the transmitted symbols"
POWERS_KNOWN = "the unconditional Cramér-Rao bound at the true positions, with the true powers"
POWERS_FITTED = (
    "the unconditional Cramér-Rao bound at the true positions, with powers (and the noise variance, where it "
    "is not recorded) fitted to the data"
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Estimates of S scenes compared with the truth.

    The bound, described by ``kind``, is that at the truth; none where so many sources cannot be identified.
    ``inside``: [S, K] whether the true position of a hit lies inside the error ellipsoid of its estimate.
    """

    match: Match
    bound: Bound | None
    kind: str
    inside: Bool[Tensor, "S K"]


def compare(recording: Recording, located: Estimate) -> Comparison | None:
    """Compare estimates with the truth; none where the recording has no truth."""
    truth = recording.truth
    if truth is None:
        return None
    matched = match(truth, located.sources)
    bound, kind = _bound(recording)
    partner = matched.partner.clamp_min(0)[..., None, None].expand(-1, -1, 3, 3)
    covariance = located.covariance.gather(1, partner) if located.covariance.shape[1] else None
    inside = torch.zeros_like(matched.hit)
    if covariance is not None:
        usable = matched.hit & covariance.isfinite().all(-1).all(-1)
        inside[usable] = inside_ellipsoid(matched.error[usable], covariance[usable])
    return Comparison(matched, bound, kind, inside)


def joined(parts: list[Comparison]) -> tuple[Match, Bound | None]:
    """The matches and bounds of all blocks together; no bound if a block has none."""
    bounds = [part.bound for part in parts if part.bound is not None]
    whole = concatenate([part.match for part in parts])
    return whole, concatenate(bounds) if len(bounds) == len(parts) else None


def _bound(recording: Recording) -> tuple[Bound | None, str]:
    recording = recording.stacked()
    truth = recording.truth
    assert truth is not None
    if recording.noise_variance is not None and truth.symbols is not None:
        return recording_crb(recording), SYMBOLS_KNOWN
    if recording.noise_variance is not None and truth.power is not None:
        return recording_crb(recording, "unconditional"), POWERS_KNOWN
    if truth.active.sum(-1).max() > most_sources(recording, None):
        return None, ""
    positions, active = unpack(truth, recording)
    fit = complete_fit(recording, positions, active, active.any(-1), None)
    at_fit = replace(recording, truth=fit.sources, noise_variance=fit.noise_variance)
    return recording_crb(at_fit, "unconditional"), POWERS_FITTED


# Factors from radians, radians and metres to the units of the columns.
_SCALE = (180 / math.pi, 180 / math.pi, 1.0)


@dataclass(frozen=True)
class Line:
    """One line of the table of a source: ``estimate``, ``true``, ``error`` or ``bound``.

    The cells are azimuth and elevation in degrees and range in metres, ``bars`` their standard deviations, if
    any. The SNR is in dB, or empty.
    """

    name: str
    cells: list[str]
    bars: list[str] | None = None
    snr: str = ""


@dataclass(frozen=True)
class Entry:
    """One source of a scene; its verdict is ``hit``, ``missed``, ``false alarm``, or empty without truth.

    The title is the number of the estimate, or empty; ``room`` is the position in the room frame, if there is
    one.
    """

    title: str
    verdict: str
    lines: list[Line]
    room: str = ""


def entries(
    located: Estimate, truth: Sources | None, comparison: Comparison | None, scene: int
) -> list[Entry]:
    """The sources of one scene, the strongest first."""
    partner: dict[int, int] = {}
    if comparison is not None:
        for true, estimate in enumerate(comparison.match.partner[scene].tolist()):
            if estimate >= 0:
                partner[estimate] = true
    listed = []
    for source in located.sources.active[scene].nonzero()[:, 0].tolist():
        lines, digits = _estimate(located, scene, source)
        verdict = ""
        if truth is not None and comparison is not None:
            verdict = "hit" if source in partner else "false alarm"
            if source in partner:
                lines += _true(truth, comparison, scene, partner[source], digits)
        listed.append(Entry(str(source), verdict, lines, _room(located, scene, source)))
    if truth is not None and comparison is not None:
        for true in truth.active[scene].nonzero()[:, 0].tolist():
            if true not in partner.values():
                listed.append(Entry("", "missed", _true(truth, comparison, scene, true, [2, 2, 2])))
    return listed


def _estimate(located: Estimate, scene: int, source: int) -> tuple[list[Line], list[int]]:
    """The line of an estimate, and the number of decimals that its error bars justify."""
    bars = [scale * value for scale, value in zip(_SCALE, located.std[scene, source].tolist(), strict=True)]
    digits = [decimals(bar) for bar in bars]
    shown = _position(located.sources, scene, source)
    cells = [fixed(value, n) for value, n in zip(shown, digits, strict=True)]
    shown_bars = [fixed(bar, n) for bar, n in zip(bars, digits, strict=True)]
    return [Line("estimate", cells, shown_bars, fixed(float(located.snr_db[scene, source]), 1))], digits


def _room(located: Estimate, scene: int, source: int) -> str:
    """The position in the room frame with its error bars, in metres; empty without a pose."""
    if located.pose is None or located.sources.range[scene, source].isinf():
        return ""
    position = located.position_room[scene, source].tolist()
    bars = located.position_covariance_room[scene, source].diagonal().sqrt().tolist()
    shown = [
        f"{axis} = {fixed(value, decimals(bar))} ± {fixed(bar, decimals(bar))}"
        for axis, value, bar in zip("xyz", position, bars, strict=True)
    ]
    return ", ".join(shown)


def _true(truth: Sources, comparison: Comparison, scene: int, source: int, digits: list[int]) -> list[Line]:
    cells = [fixed(value, n) for value, n in zip(_position(truth, scene, source), digits, strict=True)]
    lines = [Line("true", cells)]
    errors = [
        scale * value
        for scale, value in zip(_SCALE, comparison.match.error[scene, source].tolist(), strict=True)
    ]
    if comparison.match.hit[scene, source]:
        cells = [fixed(value, n) for value, n in zip(errors, digits, strict=True)]
        lines.append(Line("error", cells))
    if comparison.bound is not None:
        bars = comparison.bound.std[scene, source].tolist()
        cells = [general(scale * value, 2) for scale, value in zip(_SCALE, bars, strict=True)]
        lines.append(Line("bound", cells))
    return lines


def _position(sources: Sources, scene: int, source: int) -> list[float]:
    values = (sources.azimuth, sources.elevation, sources.range)
    return [scale * float(value[scene, source].double()) for scale, value in zip(_SCALE, values, strict=True)]
