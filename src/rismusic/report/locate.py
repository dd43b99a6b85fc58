"""Report of the sources located in a recording, collected block by block, as one HTML file."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import torch

from rismusic.errors import InputError
from rismusic.estimation.estimate import Estimate
from rismusic.estimation.grid import Volume
from rismusic.io import Recording
from rismusic.metrics import Score, score
from rismusic.report.page import environment, fragment, general, setting_rows, within, write_page
from rismusic.report.pictures import Slices, colour_bar, picture_from_above, picture_in_space, slices
from rismusic.report.sources import Comparison, compare, entries, joined
from rismusic.scene_view import CONFIDENCE, Scene
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
    warnings: list[str]


class LocateReport:
    """Collects estimates block by block and writes the report. Only a few numbers a scene stay in memory.

    Args:
        details: number of scenes shown in full, from the first on (fewer if the file would exceed 1 MB).

    Raises:
        InputError: the packages that reports need are not installed.
    """

    def __init__(self, *, details: int = 8) -> None:
        environment()
        self._wanted = details
        self._details: list[str] = []
        self._rows: list[Row] = []
        self._comparisons: list[Comparison] = []
        self._counts: Counter[tuple[int, int]] = Counter()
        self._warnings: Counter[str] = Counter()
        self._recording: Recording | None = None
        self._spec: LocateSpec | None = None

    def add(self, recording: Recording, located: Estimate) -> None:
        """Add the next scenes.

        Raises:
            InputError: the estimates do not belong to this recording, or their settings differ from those of
                the scenes before.
        """
        if len(recording) != len(located.snr_db):
            raise InputError(
                "located", f"has {len(located.snr_db)} scenes, but the recording has {len(recording)}"
            )
        if self._spec not in (None, located.spec):
            raise InputError(
                "located", "the settings differ from those of the scenes added before; write one report each"
            )
        recording = _truth_in_order(recording)
        self._spec = located.spec
        self._recording = self._recording or recording[:1]
        comparison = compare(recording, located)
        if comparison is not None:
            self._comparisons.append(comparison)
        first = len(self._rows)
        rows = [_row(first + scene, scene, located, comparison) for scene in range(len(recording))]
        self._rows += rows
        for row in rows:
            self._warnings.update({_kind(sentence) for sentence in row.warnings})
            if row.true is not None:
                self._counts[row.true, row.estimated] += 1
        shown = max(0, min(self._wanted - first, len(recording)))
        if shown:
            part = slice(0, shown)
            pictures = slices(recording[part], located.sources[part], Volume.from_spec(located.spec))
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
        made: datetime | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write the report of all scenes so far.

        Args:
            path: an ``.html`` file.
            name: name of the recording.
            facts: facts about the recording by name; if none, those that its first scene shows.
            remarks: sentences on possible errors in the recording.
            command: the command line that made the report.
            made: time stamp of the report; the current time if none.
            overwrite: whether an existing file may be replaced.

        Raises:
            InputError: no scene was added, or the file cannot be written.
        """
        if self._recording is None or self._spec is None:
            raise InputError("report", "there is no scene to report; call add() first")
        rows = [
            fragment("row.html.j2", row=row, linked=row.scene < self._wanted) for row in self._rows[:_ROWS]
        ]
        rows, details = within(rows, _OVERVIEW), within(self._details, _DETAILS)
        total = self._score()
        kind = self._comparisons[0].kind if total and not math.isnan(total.azimuth_over_bound) else ""
        few = max(map(max, self._counts), default=0) < _MOST
        write_page(
            Path(path),
            "locate.html.j2",
            overwrite=overwrite,
            command=command,
            made=made,
            name=name,
            facts=dict(facts) if facts is not None else recording_facts(self._recording, len(self._rows)),
            remarks=list(remarks),
            settings=setting_rows(self._spec),
            method=self._spec.method,
            rows=within(rows, _OVERVIEW),
            details=details,
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

    def _score(self) -> Score | None:
        if not self._comparisons:
            return None
        return score(*joined(self._comparisons))


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
    """What the error bars are."""
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


def _row(number: int, scene: int, located: Estimate, comparison: Comparison | None) -> Row:
    estimated = int(located.sources.active[scene].sum())
    probability = _probabilities(located, scene)
    chosen = probability[estimated] if estimated < len(probability) else None
    rest = (chosen, float(located.p_value[scene]), located.warnings[scene])
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


def _truth_in_order(recording: Recording) -> Recording:
    """The recording with the active true sources first, as the bounds require."""
    truth = recording.truth
    if truth is None:
        return recording
    order = (~truth.active).to(torch.int8).argsort(dim=-1, stable=True)

    def sort(value: torch.Tensor) -> torch.Tensor:
        return value.take_along_dim(order.reshape(order.shape + (1,) * (value.ndim - order.ndim)), dim=1)

    return replace(recording, truth=truth.each(sort))


def _kind(sentence: str) -> str:
    """The warning with its numbers replaced, so that the same warning in many scenes counts as one kind."""
    return re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "…", sentence)
