from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rismusic.array import Panel, steering
from rismusic.errors import InputError
from rismusic.link_budget import compute_link_budget, noise_dbm
from rismusic.operator import Link
from rismusic.simulation.simulator import Simulator
from rismusic.spec import LinkBudgetSpec, SystemSpec

ISOTROPIC = LinkBudgetSpec(element_gain_dbi=0)


def test_the_textbook_case_of_friis():
    """One isotropic antenna at 1 km, 2.4 GHz, 20 dBm: a free-space loss of 100.05 dB."""
    wavelength = 299792458 / 2.4e9
    system = SystemSpec(
        panel={"rows": 1, "columns": 1, "wavelength_m": wavelength}, channel={"kind": "direct"}
    )
    found = compute_link_budget(1000.0, 20, system=system, budget=ISOTROPIC)
    # 20 log10(d / km) + 20 log10(f / MHz) + 32.45 dB
    loss = 20 * math.log10(1) + 20 * math.log10(2400) + 32.4478
    assert float(found.received_dbm) == pytest.approx(20 - loss, abs=1e-3)
    # -174 dBm/Hz (at 290 K) in 1 MHz, 5 dB noise figure
    assert found.noise_dbm == pytest.approx(-173.975 + 60 + 5, abs=1e-3)
    assert float(found.snr_db) == pytest.approx(20 - loss + 108.975, abs=2e-3)


def test_the_noise_figure_is_defined_at_290_k():
    quiet = LinkBudgetSpec(noise_figure_db=0, temperature_k=29)
    assert noise_dbm(quiet) == pytest.approx(-173.975 + 60 - 10, abs=1e-3)
    # 10 log10(2) dB: the receiver adds 290 K to the antenna's 29 K
    noisy = LinkBudgetSpec(noise_figure_db=10 * math.log10(2), temperature_k=29)
    assert noise_dbm(noisy) - noise_dbm(quiet) == pytest.approx(10 * math.log10(11))


def test_one_element_is_a_chain_of_two_friis_equations():
    system = SystemSpec(panel={"rows": 1, "columns": 1}, channel={"distance_m": 50.0})
    budget = LinkBudgetSpec(transmit_gain_dbi=3, receive_gain_dbi=6)
    found = compute_link_budget(4.0, 10, system=system, budget=budget)

    def friis(gains_db: float, distance: float) -> float:
        return gains_db + 20 * math.log10(0.3 / (4 * math.pi * distance))

    element = 10 * math.log10(math.pi)  # (wavelength / 2)^2
    assert float(found.received_dbm) == pytest.approx(
        10 + friis(3 + element, 4.0) + friis(6 + element, 50.0), abs=1e-9
    )


def test_area_and_gain_of_an_element_count_once_each():
    default = compute_link_budget(3.0, 0).received_dbm
    larger = compute_link_budget(3.0, 0, budget=LinkBudgetSpec(element_area_m2=0.045, element_gain_dbi=0))
    assert float(larger.received_dbm - default) == pytest.approx(10 * math.log10(2 / math.pi))
    dense = SystemSpec(panel={"spacing_wavelengths": 0.25})
    # A quarter of the area, and of the gain; the panel is smaller, too: look from far away.
    found = compute_link_budget(1e4, 0, system=dense).received_dbm
    assert float(found - compute_link_budget(1e4, 0).received_dbm) == pytest.approx(
        20 * math.log10(0.25), abs=1e-4
    )


@pytest.mark.parametrize("wave", ["spherical", "uniform", "paraxial"])
@pytest.mark.parametrize("exponent", [0.0, 1.5])
def test_against_the_steering_amplitudes(wave, exponent):
    """Sum over the elements, each relative to the first one by the amplitudes of the steering vector."""
    system = SystemSpec(panel={"rows": 5, "columns": 7, "wave": wave, "pattern_exponent": exponent})
    panel = Panel.from_spec(system.panel)
    azimuth, elevation, r = math.radians(40), math.radians(-20), 0.9
    a = steering(panel, *(torch.tensor([x], dtype=torch.float64) for x in (azimuth, elevation, r)))[:, 0]
    at = r * np.array(
        [
            math.sin(azimuth) * math.cos(elevation),
            math.sin(elevation),
            math.cos(azimuth) * math.cos(elevation),
        ]
    )
    way = at - panel.elements[0].numpy()
    d = np.linalg.norm(way)
    first = 1e-3 / (4 * math.pi * (d if wave == "spherical" else r) ** 2) * (way[2] / d) ** (2 * exponent)
    at_elements = first * (a.abs() / a[0].abs()).square().numpy()  # W/m^2
    gain = math.pi
    watts = (at_elements * 0.15**2 * gain * 0.3**2 / (4 * math.pi * 100.0) ** 2).sum()
    found = compute_link_budget(r, 0, azimuth_deg=40, elevation_deg=-20, system=system)
    assert float(found.received_dbm) == pytest.approx(10 * math.log10(watts / 1e-3), abs=1e-9)
    direct = compute_link_budget(
        r, 0, azimuth_deg=40, elevation_deg=-20, system=system.replace(channel={"kind": "direct"})
    )
    expected = (at_elements * 0.15**2).mean()
    assert float(direct.received_dbm) == pytest.approx(10 * math.log10(expected / 1e-3), abs=1e-9)


@pytest.mark.parametrize("kind", ["rician", "rayleigh", "direct"])
def test_the_snr_is_that_of_the_simulated_signal(kind):
    """Mean over snapshots and outputs of |G_l A s_l|^2 for the powers of the budget, and noise variance 1."""
    system = SystemSpec(
        sources=1,
        panel={"rows": 6, "columns": 6},
        channel={"kind": kind},
        codebook={"snapshots": 64},
        scene={"symbols": "qpsk", "range_min_m": 0.5, "range_max_m": 2.0},
    )
    recording = Simulator(system, seed=5, dtype=torch.float64).scenes(0, 300)
    truth, link = recording.truth, Link(recording.channel, recording.codes)
    found = compute_link_budget(
        truth.range, 3, azimuth_deg=truth.azimuth_deg, elevation_deg=truth.elevation_deg, system=system
    )
    symbols = truth.symbols * found.power.sqrt()[..., None]
    signal = link.apply(symbols.mT @ truth.steering(recording.panel).mT)
    snr = signal.abs().square().mean(dim=(-2, -1))
    ratio = float((snr / (found.snr_db[:, 0] / 10 * math.log(10)).exp()).mean())
    assert ratio == pytest.approx(1, abs=1e-9 if kind == "direct" else 0.03)


def test_each_quantity_moves_the_snr_by_its_db():
    base = compute_link_budget(3.0, 0).snr_db
    for change, step in (
        ({"bandwidth_hz": 1e7}, -10),
        ({"noise_figure_db": 8}, -3),
        ({"transmit_gain_dbi": 4}, 4),
        ({"receive_gain_dbi": 4}, 4),
    ):
        moved = compute_link_budget(3.0, 0, budget=LinkBudgetSpec(**change)).snr_db
        assert float(moved - base) == pytest.approx(step, abs=1e-9)
    assert float(compute_link_budget(3.0, 7).snr_db - base) == pytest.approx(7)
    far = compute_link_budget(3.0, 0, system=SystemSpec(channel={"distance_m": 1000.0}))
    assert float(far.snr_db - base) == pytest.approx(-20)


def test_bad_input():
    for arguments, sentence in (
        ((0.0, 0), "range_m: must be positive and finite, in metres; got 0"),
        ((3.0, math.inf), "power_dbm: must be finite, in dBm; got a NaN or an infinity"),
        ((["a"], 0), "range_m: must hold real numbers"),
    ):
        with pytest.raises(InputError, match=sentence):
            compute_link_budget(*arguments)
    with pytest.raises(InputError, match=r"azimuth_deg: must be within -90 .. 90 deg"):
        compute_link_budget(3.0, 0, azimuth_deg=90)
    with pytest.raises(InputError, match=r"must broadcast; got shapes \[2\], \[3\]"):
        compute_link_budget([3.0, 4.0], 0, azimuth_deg=[1.0, 2.0, 3.0])
    with pytest.raises(InputError, match=r"budget.temperature_k: .* give no noise"):
        compute_link_budget(3.0, 0, budget=LinkBudgetSpec(noise_figure_db=0, temperature_k=0))
    with pytest.raises(InputError, match=r"budget.bandwidth_hz: expected more than 0, found 0"):
        LinkBudgetSpec(bandwidth_hz=0)
