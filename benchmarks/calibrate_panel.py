"""Errors relative to the bound before and after a calibration of the panel.

Run ``python benchmarks/calibrate_panel.py [--scenes 50] [--known] [--method best] [--csv FILE]``.

One panel with the impairments of recipes/robust.toml, new links in every scene (or one link for all scenes
with --one-link), 20 dB. The panel is calibrated from the test split, blind or with known positions, and
located are those scenes and as many others of the validation split, with K known and K unknown. Errors are
medians over the bound of the true panel.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

from measure import write_csv
from rismusic.crb import Bound, unconditional_crb
from rismusic.hybrid import locate
from rismusic.io import Recording
from rismusic.io.calibration import PanelCalibration
from rismusic.metrics import match, score
from rismusic.operator import Link
from rismusic.panel_calibration import calibrate_panel
from rismusic.simulation.random_numbers import Draws
from rismusic.simulation.scene import impair
from rismusic.simulation.simulator import Simulator
from rismusic.spec import HardwareSpec, LocateSpec, SystemSpec

HARDWARE = HardwareSpec(
    static_phase_rad=0.1, code_phase_rad=0.04, gain=0.05, dead_fraction=0.03, position_wavelengths=0.025
)


def true_panel(recording: Recording, seed: int) -> PanelCalibration:
    """The panel that the simulator used, without the phase errors of each configuration."""
    N = len(recording.elements)
    draws = Draws(seed, "link", torch.zeros(1, dtype=torch.int64))
    ones = Link(None, torch.ones(1, N, dtype=torch.complex64))
    panel, link = impair(recording.panel, ones, HARDWARE.replace(code_phase_rad=0), draws)
    assert link.codes is not None
    return PanelCalibration(
        wavelength=recording.wavelength,
        elements=recording.elements,
        response=link.codes[0, 0].to(torch.complex128),
        response_std=torch.zeros(N, dtype=torch.float64),
        offsets=panel.elements[0] - recording.elements,
        remaining_error=HARDWARE.code_phase_rad,
    )


def bound(recording: Recording, panel: PanelCalibration) -> Bound:
    """Unconditional bound of every scene for the true panel."""
    made = panel.apply(recording)
    assert made.truth is not None
    assert made.noise_variance is not None
    return unconditional_crb(made.panel, made.link, made.truth, made.noise_variance)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=50)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--snr-db", type=float, default=20.0)
    parser.add_argument("--method", default="best")
    parser.add_argument("--known", action="store_true")
    parser.add_argument(
        "--unknown-number", action="store_true", help="calibrate without the numbers of sources"
    )
    parser.add_argument("--one-link", action="store_true")
    parser.add_argument("--baseline", action="store_true", help="also locate without a calibration")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    spec = SystemSpec(snr_db=options.snr_db, hardware=HARDWARE, one_panel=True, one_link=options.one_link)
    parts = {
        split: Simulator(spec, seed=options.seed, split=split).scenes(0, options.scenes)
        for split in ("test", "validation")
    }
    truth = {split: part.truth for split, part in parts.items()}
    true = true_panel(parts["test"], options.seed)
    began = time.perf_counter()
    source = parts["test"]
    assert source.truth is not None
    calibration = calibrate_panel(
        replace(source, truth=None),
        source.truth if options.known else None,
        n_sources="auto" if options.unknown_number else source.truth.active.sum(-1),
        method=options.method,
    )
    seconds = time.perf_counter() - began
    if options.save is not None:
        calibration.save(options.save, overwrite=True)
    assert calibration.used is not None
    factor = (calibration.response.conj() * true.response).sum() / calibration.response.abs().square().sum()
    wrong = (calibration.response * factor - true.response).abs().square().mean().sqrt()
    missed = int((true.response.abs() < 0.3).logical_xor(calibration.dead).sum())
    print(
        f"calibrated in {seconds:.0f} s from {int(calibration.used.sum())} of {options.scenes} scenes; "
        f"response error {float(wrong):.3f}, remaining error {calibration.remaining_error:.3f}, "
        f"dead elements wrong: {missed} of {int(true.dead.sum())}",
        flush=True,
    )
    rows: list[dict[str, object]] = []
    panels = {"calibrated": calibration, "true panel": true, **({"none": None} if options.baseline else {})}
    for split, part in parts.items():
        real = truth[split]
        assert real is not None
        limit = bound(part, true)
        for name, panel in panels.items():
            for known in (True, False):
                count = real.active.sum(-1) if known else "auto"
                settings = LocateSpec(method=options.method)
                if panel is None:
                    settings = settings.replace(panel_error=HARDWARE.response_error)
                located = locate(replace(part, truth=None), n_sources=count, calibration=panel, spec=settings)
                result = score(match(real, located.sources), limit)
                row: dict[str, object] = {
                    "split": split,
                    "panel": name,
                    "K": "known" if known else "unknown",
                    "misses": result.misses,
                    "count_right": result.count_right,
                    "azimuth_over_bound": result.azimuth_over_bound,
                    "elevation_over_bound": result.elevation_over_bound,
                    "inverse_range_over_bound": result.inverse_range_over_bound,
                }
                rows.append(row)
                print(
                    ", ".join(f"{key} {v:.3f}" if isinstance(v, float) else f"{v}" for key, v in row.items()),
                    flush=True,
                )
    if options.csv is not None:
        write_csv(options.csv, rows)


if __name__ == "__main__":
    main()
