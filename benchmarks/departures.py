"""Recordings that depart from their signal model, and what ``locate`` makes of them.

Each row simulates scenes whose data differ from what the recording describes, and locates them with the
number of sources unknown and the noise variance not recorded::

    python benchmarks/departures.py --scenes 100 --method hybrid --csv departures.csv

A reported source is *wrong* when it is more than 5 deg off every true source and not within three of its
error bars, or a hit more than five error bars off. It is *silent* when its scene has the status ``ok`` and no
note says that it may not exist or may be several sources.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from goodness_of_fit import IMPAIRED
from measure import write_csv
from rismusic.array import Panel, steering
from rismusic.benchmark.summary import share_interval
from rismusic.estimation.diagnosis import UNCERTAIN
from rismusic.estimation.estimate import Estimate
from rismusic.hybrid import locate
from rismusic.io import Recording
from rismusic.metrics import match
from rismusic.simulation.scene import quantise
from rismusic.simulation.simulator import simulate
from rismusic.sources import Sources
from rismusic.spec import SystemSpec

System = dict[str, dict[str, Any]]
Make = Callable[[int, int, System], Recording]

SYSTEMS: dict[str, System] = {
    "default": {},
    "constant": {"scene": {"symbols": "constant"}},
    "constant, one antenna": {
        "scene": {"symbols": "constant"},
        "channel": {"antennas": 1},
        "codebook": {"snapshots": 64},
    },
    "wideband": {
        "wideband": {"subcarriers": 16, "bandwidth_hz": 20e6},
        "codebook": {"snapshots": 4},
    },
}
"""Settings of the simulator, by name."""


def receive(
    recording: Recording,
    snr_db: float,
    seed: int,
    *,
    channel: Tensor | None = None,
    codes: Tensor | None = None,
    field: Tensor | None = None,
    power: Tensor | None = None,
) -> Recording:
    """New snapshots of a recording's true sources with Gaussian or constant symbols, and noise.

    Args:
        recording: with its truth.
        snr_db: signal to noise ratio.
        seed: of symbols and noise.
        channel: the channel that acts, if it is not the recorded one.
        codes: the configurations that act.
        field: the field on the panel [S, L, N], if it is not that of the truth.
        power: powers of the sources [S, K], if they are not equal.
    """
    generator = torch.Generator().manual_seed(seed)
    assert recording.truth is not None
    truth = recording.truth
    S, L = recording.snapshots.shape[:2]
    constant = recording.symbols == "constant"
    if field is None:
        s = complex_normal((S, truth.azimuth.shape[1], 1 if constant else L), generator)
        s = (s / s.abs() if constant else s).expand(-1, -1, L)
        if power is not None:
            s = s * power[..., None].sqrt()
        A = steering_of(recording.panel, truth)
        field = (A @ s).mT
    H = recording.channel if channel is None else channel
    acting = recording.codes if codes is None else codes
    signal = field if acting is None else field * acting.to(torch.complex128)
    if H is not None:
        signal = signal @ H.to(torch.complex128).mT
    level = signal.abs().square().mean((1, 2)) / 10 ** (snr_db / 10)
    noise = complex_normal(signal.shape, generator) * level.sqrt()[:, None, None]
    return replace(
        recording,
        snapshots=(signal + noise).to(torch.complex64),
        noise_variance=None,
        truth=replace(truth, symbols=None),
    )


def complex_normal(shape: tuple[int, ...] | torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128, generator=generator)


def steering_of(panel: Panel, sources: Sources) -> Tensor:
    """A [S, N, K], zero without a source."""
    azimuth, elevation, distance = (value.double() for value in sources.filled())
    A = steering(panel, azimuth, elevation, distance)
    return A * sources.active[:, None]


def scenes_of(
    count: int, seed: int, system: System, sources: int | tuple[int, int] = (1, 3), **settings: Any
) -> Recording:
    spec = SystemSpec(sources=sources, snr_db=10, **merged(system, settings))
    return simulate(spec, scenes=count, seed=seed)


def merged(system: System, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of the system, changed by those of a row."""
    groups = {name: system.get(name, {}) | settings.get(name, {}) for name in system}
    return settings | groups


@dataclass(frozen=True)
class Row:
    """A departure: what it is, how it is simulated, and what of the scenes is judged."""

    name: str
    make: Make
    constant: bool = True  # whether the departure exists for constant symbols
    wideband: bool = False  # whether it is simulated on several subcarriers


def sound(sources: int | tuple[int, int], snr_db: float) -> Make:
    return lambda count, seed, system: receive(scenes_of(count, seed, system, sources), snr_db, seed)


def _noise_alone(count: int, seed: int, system: System) -> Recording:
    made = scenes_of(count, seed, system, 1)
    assert made.truth is not None
    generator = torch.Generator().manual_seed(seed)
    noise = complex_normal(made.snapshots.shape, generator).to(torch.complex64)
    nothing = made.truth.each(lambda value: torch.full_like(value, math.nan))
    return replace(made, snapshots=noise, noise_variance=None, truth=replace(nothing, symbols=None))


def _shifted(count: int, seed: int, system: System) -> Recording:
    made = scenes_of(count, seed, system)
    assert made.codes is not None
    return receive(made, 10, seed, codes=made.codes.roll(1, dims=-2))


def _coarse(bits: int) -> Make:
    def make(count: int, seed: int, system: System) -> Recording:
        made = scenes_of(count, seed, system, codebook={"bits": "continuous"})
        assert made.codes is not None
        return receive(made, 10, seed, codes=quantise(made.codes, bits))

    return make


def _hardware(snr_db: float, **hardware: float) -> Make:
    def make(count: int, seed: int, system: System) -> Recording:
        made = simulate(
            scenes=count, seed=seed, sources=(1, 3), snr_db=snr_db, **merged(system, {"hardware": hardware})
        )
        return replace(made, noise_variance=None)

    return make


def _channel_error(level_db: float) -> Make:
    def make(count: int, seed: int, system: System) -> Recording:
        made = scenes_of(count, seed, system)
        assert made.channel is not None
        generator = torch.Generator().manual_seed(seed + 1)
        H = made.channel
        error = complex_normal(H.shape, generator) * (H.abs().square().mean() * 10 ** (level_db / 10)).sqrt()
        return receive(made, 20, seed, channel=H + error)

    return make


def _placed(
    azimuth_deg: tuple[float, float], elevation_deg: tuple[float, float], range_m: tuple[float, float]
) -> Make:
    """One source with coordinates uniform between limits (the range in its logarithm)."""

    def make(count: int, seed: int, system: System) -> Recording:
        made = scenes_of(count, seed, system, 1)
        generator = torch.Generator().manual_seed(seed + 2)

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(count, 1, dtype=torch.float64, generator=generator)

        sign = torch.where(uniform(-1, 1) < 0, -1.0, 1.0)
        logs = uniform(math.log(range_m[0]), math.log(range_m[1]))
        truth = Sources.from_degrees(sign * uniform(*azimuth_deg), uniform(*elevation_deg), logs.exp())
        return receive(replace(made, truth=truth), 10, seed)

    return make


def _multipath(scatterers: int) -> Make:
    """Coherent copies of one source, 3 to 9 dB weaker, from elsewhere in the volume."""

    def make(count: int, seed: int, system: System) -> Recording:
        made = scenes_of(count, seed, system, 1 + scatterers)
        assert made.truth is not None
        generator = torch.Generator().manual_seed(seed + 3)
        loss = 3 + 6 * torch.rand(count, scatterers, dtype=torch.float64, generator=generator)
        phase = 2 * math.pi * torch.rand(count, scatterers, dtype=torch.float64, generator=generator)
        gain = torch.cat((torch.ones(count, 1), torch.polar(10 ** (-loss / 20), phase)), dim=1)
        s = complex_normal((count, 1, made.snapshots.shape[1]), generator)
        field = (steering_of(made.panel, made.truth) @ (gain[..., None] * s)).mT
        one = made.truth.each(lambda value: value[:, :1])
        return receive(replace(made, truth=one), 10, seed, field=field)

    return make


def close(separation_deg: float, snr_db: float) -> Make:
    """Two sources at the same range, in any direction from each other."""

    def make(count: int, seed: int, system: System) -> Recording:
        made = scenes_of(count, seed, system, 1)
        assert made.truth is not None
        generator = torch.Generator().manual_seed(seed + 4)
        angle = 2 * math.pi * torch.rand(count, 1, dtype=torch.float64, generator=generator)
        first = made.truth.each(lambda value: value[:, :1])
        azimuth, elevation = first.azimuth.rad2deg(), first.elevation.rad2deg()
        half = separation_deg / 2
        truth = Sources.from_degrees(
            torch.cat((azimuth - half * angle.cos(), azimuth + half * angle.cos()), dim=1),
            torch.cat((elevation - half * angle.sin(), elevation + half * angle.sin()), dim=1),
            first.range.expand(-1, 2),
        )
        return receive(replace(made, truth=truth), snr_db, seed)

    return make


def _wave(wave: str, snr_db: float) -> Make:
    def make(count: int, seed: int, system: System) -> Recording:
        made = scenes_of(count, seed, system, panel={"wave": wave})
        return replace(receive(made, snr_db, seed), wave="spherical")

    return make


def _moving(step_deg: float) -> Make:
    def make(count: int, seed: int, system: System) -> Recording:
        made = scenes_of(count, seed, system, 1)
        assert made.truth is not None
        truth, L = made.truth, made.snapshots.shape[1]
        steps = math.radians(step_deg) * (torch.arange(L, dtype=torch.float64) - (L - 1) / 2)
        generator = torch.Generator().manual_seed(seed + 5)
        s = complex_normal((count, L, 1), generator)
        azimuth = truth.azimuth.double() + steps  # [S, L]
        A = steering(
            made.panel, azimuth, truth.elevation.double().expand(-1, L), truth.range.double().expand(-1, L)
        )
        return receive(made, 15, seed, field=A.mT * s)

    return make


def _subcarriers(bandwidth: float) -> Make:
    """Frequencies spread over a relative bandwidth, one per snapshot, stored as snapshots."""

    def make(count: int, seed: int, system: System) -> Recording:
        made = scenes_of(count, seed, system, 1)
        assert made.truth is not None
        truth, L = made.truth, made.snapshots.shape[1]
        generator = torch.Generator().manual_seed(seed + 6)
        s = complex_normal((count, L, 1), generator)
        columns = []
        for offset in torch.linspace(-bandwidth / 2, bandwidth / 2, L).tolist():
            # The delay from the source to the panel's centre is part of the phase over frequency.
            panel = made.panel.replace(wavelength=made.wavelength / (1 + offset))
            columns.append(steering_of(panel, truth)[..., 0])
        return receive(made, 20, seed, field=torch.stack(columns, dim=1) * s)

    return make


def _offset(count: int, seed: int, system: System) -> Recording:
    """The same constant offset on every channel, 6 dB below the signal's amplitude; direct sampling."""
    made = receive(scenes_of(count, seed, system, 1, channel={"kind": "direct"}), 10, seed)
    level = made.snapshots.abs().square().mean((1, 2), keepdim=True).sqrt()
    return replace(made, snapshots=made.snapshots + 0.5 * level)


def _grating(count: int, seed: int, system: System) -> Recording:
    """4 x 4 elements one wavelength apart, sampled directly, sources in the far field."""
    made = scenes_of(
        count,
        seed,
        system,
        1,
        panel={"rows": 4, "columns": 4, "spacing_wavelengths": 1.0},
        channel={"kind": "direct"},
        scene={"range_min_m": 30.0, "range_max_m": 300.0},
    )
    return receive(made, 10, seed)


ROWS = [
    Row("sound, K = 1 to 5 (5 dB)", sound((1, 5), 5)),
    Row("sound, K = 1 to 5 (10 dB)", sound((1, 5), 10)),
    Row("noise alone", _noise_alone),
    Row("configurations shifted by one snapshot (10 dB)", _shifted),
    Row("1-bit phases (10 dB)", _coarse(1)),
    Row("2-bit phases (10 dB)", _coarse(2)),
    Row(
        "positions off by 10 % of the spacing (20 dB)",
        _hardware(20, position_wavelengths=0.05),
        wideband=True,
    ),
    Row("5 % dead elements (20 dB)", _hardware(20, dead_fraction=0.05), wideband=True),
    Row("15 % dead elements (10 dB)", _hardware(10, dead_fraction=0.15), wideband=True),
    Row("impaired (20 dB)", _hardware(20, **IMPAIRED), wideband=True),
    Row("channel known to -10 dB (20 dB)", _channel_error(-10)),
    Row("channel known to -20 dB (20 dB)", _channel_error(-20)),
    Row("source at 100 m (10 dB)", _placed((0, 60), (-30, 30), (99, 101))),
    Row("source in the far field (10 dB)", _placed((0, 60), (-30, 30), (1e5, 1e6))),
    Row("azimuth 75 deg (10 dB)", _placed((75, 75), (-30, 30), (0.5, 10))),
    Row("elevation 60 deg (10 dB)", _placed((0, 60), (60, 60), (0.5, 10))),
    Row("range 0.2 m (10 dB)", _placed((0, 60), (-30, 30), (0.2, 0.2))),
    Row("multipath, 1 scatterer (10 dB)", _multipath(1), constant=False),
    Row("multipath, 2 scatterers (10 dB)", _multipath(2), constant=False),
    Row("6 sources (10 dB)", sound(6, 10)),
    Row("7 sources (10 dB)", sound(7, 10)),
    Row("8 sources (10 dB)", sound(8, 10)),
    Row("two sources 2 deg apart (10 dB)", close(2, 10)),
    Row("Fresnel wave (10 dB)", _wave("fresnel", 10)),
    Row("paraxial wave (10 dB)", _wave("paraxial", 10)),
    Row("Fresnel wave (20 dB)", _wave("fresnel", 20)),
    Row("paraxial wave (20 dB)", _wave("paraxial", 20)),
    Row("moving 0.2 deg a snapshot (15 dB)", _moving(0.2), constant=False),
    Row("1 % bandwidth as snapshots (20 dB)", _subcarriers(0.01), constant=False),
    Row("constant offset on all channels (10 dB)", _offset, constant=False),
    Row("elements one wavelength apart (10 dB)", _grating, constant=False),
]


SHARES = ("f1", "f1_ok", "count_right", "wrong", "silent_wrong", "doubtful")
"""Columns that have a 95 % interval, NAME_low to NAME_high, beside them."""


def judge(recording: Recording, estimate: Estimate) -> dict[str, float | str]:
    """What one row of the table says."""
    truth = recording.truth
    assert truth is not None
    matched = match(truth, estimate.sources)
    S = len(recording)
    found = estimate.sources.active
    wrong = torch.zeros_like(found)
    std = estimate.std
    near = torch.zeros_like(found)
    for axis, field in enumerate(("azimuth", "elevation")):
        gap = (
            getattr(estimate.sources, field)[:, :, None].double() - getattr(truth, field)[:, None].double()
        ).abs()
        covered = (gap <= 3 * std[..., axis, None]) | (gap <= math.radians(5))
        near = covered if axis == 0 else near & covered
    wrong = found & ~near.any(-1)
    hits = matched.hit.nonzero()
    for scene, source in hits.tolist():
        partner = int(matched.partner[scene, source])
        error = matched.error[scene, source]
        if bool((error[:2].abs() > 5 * std[scene, partner, :2]).any()):
            wrong[scene, partner] = True
    flagged = torch.tensor([status != "ok" for status in estimate.status])
    named = flagged[:, None] | (estimate.existence_probability < UNCERTAIN)
    for scene, sentences in enumerate(estimate.warnings):
        for source in range(named.shape[1]):
            if any(one.startswith(f"source {source} may be several sources") for one in sentences):
                named[scene, source] = True
    silent = wrong & ~named
    right = matched.true_count == matched.found_count
    bad = (wrong.any(-1) | ~right | ~(matched.hit | ~truth.active).all(-1)).cpu()
    hit = matched.hit.sum(-1)
    both = matched.true_count + matched.found_count
    reported, every = found.sum(-1), torch.ones(S)
    # Parts and wholes of the shares, scene by scene.
    parts = (
        *((2 * hit, both), (2 * hit[~flagged], both[~flagged]), (right, every)),
        *((wrong.sum(-1), reported), (silent.sum(-1), reported), (flagged, every)),
    )
    row: dict[str, float | str] = {"scenes": S}
    for name, pair in zip(SHARES, parts, strict=True):
        part, whole = (value.double().numpy() for value in pair)
        # Without any source, none is missed and none is wrong.
        row[name] = float(part.sum() / whole.sum()) if whole.sum() else float(name.startswith("f1"))
        row[f"{name}_low"], row[f"{name}_high"] = map(float, share_interval(part, whole))
    return {**row, "bad_flagged": f"{int((bad & flagged).sum())}/{int(bad.sum())}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--method", default="hybrid")
    parser.add_argument("--rows", nargs="*", default=None, help="text that the names of the rows contain")
    parser.add_argument("--system", choices=SYSTEMS, default="default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, float | str]] = []
    print(f"{'departure':48}    F1 ok F1     K wrong silent doubt  bad flagged")
    for row in ROWS:
        if options.rows and not any(text in row.name for text in options.rows):
            continue
        if options.system.startswith("constant") and not row.constant:
            continue
        if options.system == "wideband" and not row.wideband:
            continue
        recording = row.make(options.scenes, options.seed, SYSTEMS[options.system])
        start = time.perf_counter()
        estimate = locate(recording, method=options.method)
        seconds = time.perf_counter() - start
        one = judge(recording, estimate)
        rows.append({"name": row.name, **one, "seconds": seconds})
        print(
            f"{row.name:48} {one['f1']:5.3f} {one['f1_ok']:5.3f} {one['count_right']:5.2f} "
            f"{one['wrong']:5.2f} {one['silent_wrong']:6.3f} {one['doubtful']:5.2f}  "
            f"{one['bad_flagged']}  {seconds:.0f} s",
            flush=True,
        )
    if options.csv and rows:
        write_csv(options.csv, rows)


if __name__ == "__main__":
    main()
