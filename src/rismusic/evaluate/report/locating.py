"""The report of a recording: gathered block by block, written as one HTML file."""

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
from rismusic.estimation.estimate import Estimate, volume_of
from rismusic.evaluate.ellipsoid import CONFIDENCE
from rismusic.evaluate.metrics import Score, score
from rismusic.evaluate.report.page import environment, fragment, setting_rows, within, write_page
from rismusic.evaluate.report.scores import Judged, joined, judge
from rismusic.evaluate.report.sources import entries
from rismusic.evaluate.report.space import Scene
from rismusic.evaluate.report.spectra import Slices, colour_bar, slices
from rismusic.evaluate.report.wording import general
from rismusic.io import Recording
from rismusic.spec import LocateSpec

# Bytes for the scenes in detail, and for the table of all scenes.
_DETAILS, _OVERVIEW = 600_000, 220_000
# Scenes in the overview, and different warnings.
_ROWS, _WARNINGS = 300, 12
# From so many sources on there is no table of their true and found numbers.
_MOST = 25


@dataclass(frozen=True)
class Row:
    """One scene of the overview; what needs the truth is none without it."""

    scene: int
    found: int
    true: int | None
    hits: int | None
    missed: int | None
    false_alarms: int | None
    probability: float | None
    p_value: float
    warnings: list[str]


class LocateReport:
    """Gathers located scenes block by block, then writes the report; memory grows by a few numbers a scene.

    Args:
        details: scenes that are shown in full, from the first on (fewer where the file would pass 1 MB).

    Raises:
        InputError: the packages that reports need are not installed.
    """

    def __init__(self, *, details: int = 8) -> None:
        environment()
        self._wanted = details
        self._details: list[str] = []
        self._rows: list[Row] = []
        self._judged: list[Judged] = []
        self._counts: Counter[tuple[int, int]] = Counter()
        self._warnings: Counter[str] = Counter()
        self._recording: Recording | None = None
        self._spec: LocateSpec | None = None

    def add(self, recording: Recording, located: Estimate) -> None:
        """Take in the next scenes.

        Raises:
            InputError: what was located is not of this recording, or with other settings than before.
        """
        if len(recording) != len(located.snr_db):
            raise InputError("located", f"{len(recording)} scenes as recorded", str(len(located.snr_db)))
        if self._spec not in (None, located.spec):
            raise InputError("located", "the settings of the scenes before", "others")
        recording = _truth_in_order(recording)
        self._spec = located.spec
        self._recording = self._recording or recording[:1]
        judged = judge(recording, located)
        if judged is not None:
            self._judged.append(judged)
        first = len(self._rows)
        rows = [_row(first + scene, scene, located, judged) for scene in range(len(recording))]
        self._rows += rows
        for row in rows:
            self._warnings.update({_kind(sentence) for sentence in row.warnings})
            if row.true is not None:
                self._counts[row.true, row.found] += 1
        shown = max(0, min(self._wanted - first, len(recording)))
        if shown:
            part = slice(0, shown)
            pictures = slices(recording[part], located.sources[part], volume_of(located.spec))
            for scene, picture in enumerate(pictures):
                self._details.append(_detail(rows[scene], recording, located, judged, scene, picture))

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
            name: of the recording.
            facts: about the recording; the ones that can be read off its first scene if none are given.
            remarks: what looks wrong with the recording as a whole, sentences.
            command: what made the report.
            made: when; now, if not given.
            overwrite: whether an existing file may be replaced.

        Raises:
            InputError: no scene was taken in, or the file cannot be written.
        """
        if self._recording is None or self._spec is None:
            raise InputError("report", "at least one scene", "none")
        rows = [
            fragment("row.html.j2", row=row, linked=row.scene < self._wanted) for row in self._rows[:_ROWS]
        ]
        rows, details = within(rows, _OVERVIEW), within(self._details, _DETAILS)
        total = self._score()
        kind = self._judged[0].kind if total and not math.isnan(total.azimuth_over_bound) else ""
        few = max(map(max, self._counts), default=0) < _MOST
        write_page(
            Path(path),
            "locating.html.j2",
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
            found=sum(row.found for row in self._rows),
            probability=any(row.probability is not None for row in self._rows),
            score=total,
            hits=sum(row.hits or 0 for row in self._rows),
            known=sum(row.true or 0 for row in self._rows),
            false_alarms=sum(row.false_alarms or 0 for row in self._rows),
            inside=sum(int(part.inside.sum()) for part in self._judged),
            confidence=CONFIDENCE,
            bound=kind,
            counts=self._counts if few and len(self._rows) > 1 else {},
            warnings=self._warnings.most_common(_WARNINGS),
            more_warnings=max(0, len(self._warnings) - _WARNINGS),
            bar=colour_bar(),
        )

    def _score(self) -> Score | None:
        if not self._judged:
            return None
        return score(*joined(self._judged))


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
    """Write what was located in a recording as one HTML file; the twin of ``rismusic locate --report``.

    The file needs nothing else, no network either, and stays below 1 MB.

    Args:
        path: an ``.html`` file.
        recording: S scenes.
        located: what :func:`rismusic.locate` found in them.
        details: scenes that are shown in full, from the first on.
        name: of the recording.
        command: what made the report, if it should say so.
        overwrite: whether an existing file may be replaced.

    Raises:
        InputError: the packages that reports need are not installed, or the file cannot be written.
    """
    report = LocateReport(details=details)
    report.add(recording, located)
    report.write(path, name=name, command=command, overwrite=overwrite)


def recording_facts(recording: Recording, scenes: int) -> dict[str, str]:
    """What can be said of a recording that did not come from a file."""
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


def _row(number: int, scene: int, located: Estimate, judged: Judged | None) -> Row:
    found = int(located.sources.active[scene].sum())
    probability = _probabilities(located, scene)
    chosen = probability[found] if found < len(probability) else None
    told = (chosen, float(located.p_value[scene]), located.warnings[scene])
    if judged is None:
        return Row(number, found, None, None, None, None, *told)
    true, hits = int(judged.match.true_count[scene]), int(judged.match.hit[scene].sum())
    return Row(number, found, true, hits, true - hits, found - hits, *told)


def _detail(
    row: Row, recording: Recording, located: Estimate, judged: Judged | None, scene: int, picture: Slices
) -> str:
    truth = None if recording.truth is None else recording.truth[scene]
    found = located.sources[scene]
    drawing = Scene(recording.panel, volume_of(located.spec), found, located.covariance[scene], truth)
    space, above = drawing.in_space(), drawing.from_above()
    return fragment(
        "scene.html.j2",
        row=row,
        space=space,
        above=above,
        cut=drawing.cut,
        thinned=drawing.thinned,
        fresnel=recording.panel.fresnel_distance,
        fraunhofer=recording.panel.fraunhofer_distance,
        confidence=CONFIDENCE,
        slices=picture,
        entries=entries(located, recording.truth, judged, scene),
        probabilities=_probabilities(located, scene),
        noise_variance=general(float(located.noise_variance[scene]), 4),
        noise_known=recording.noise_variance is not None,
    )


def _probabilities(located: Estimate, scene: int) -> list[float]:
    """Of 0, 1, ... sources; empty where their number was given."""
    probability = located.n_sources_probability
    return [] if probability is None else probability[scene].tolist()


def _truth_in_order(recording: Recording) -> Recording:
    """Empty places of the truth behind all sources, as the bounds want it."""
    truth = recording.truth
    if truth is None:
        return recording
    order = (~truth.active).to(torch.int8).argsort(dim=-1, stable=True)

    def sort(value: torch.Tensor) -> torch.Tensor:
        return value.take_along_dim(order.reshape(order.shape + (1,) * (value.ndim - order.ndim)), dim=1)

    return replace(recording, truth=truth.each(sort))


def _kind(sentence: str) -> str:
    """A warning without its numbers, so that equal ones of many scenes are counted together."""
    return re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "…", sentence)
