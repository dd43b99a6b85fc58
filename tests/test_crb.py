from __future__ import annotations

import math

import h5py
import numpy as np
import pytest
import torch

from rismusic.array import Panel, direction, steering
from rismusic.crb import Bound, conditional_crb, recording_crb, unconditional_crb
from rismusic.errors import InputError
from rismusic.operator import Link
from rismusic.simulation.simulator import simulate
from rismusic.sources import Sources
from rismusic.spec import SystemSpec

SMALL = SystemSpec(
    panel={"rows": 5, "columns": 6}, codebook={"snapshots": 8}, channel={"antennas": 7}, snr_db=10.0
)
DIRECT = SMALL.replace(channel={"kind": "direct"})


@pytest.mark.parametrize(
    "name",
    [
        "ideal_0dB",
        "ideal_10dB",
        "impaired_10dB",
        "direct_10dB",
        "physical_10dB",
        "physical_direct_10dB",
    ],
)
def test_against_bounds_not_made_by_this_code(name, samples):
    bound = np.load(samples / f"{name}.bound.npz")
    with h5py.File(samples / f"{name}.h5") as file:
        read = {
            key: torch.from_numpy(file[key][()]) for key in ("elements", "channel", "codes") if key in file
        }
        truth = {key: torch.from_numpy(file[f"truth/{key}"][()]) for key in ("azimuth", "elevation", "range")}
        wave = file.attrs.get("wave", "spherical")
    sources = Sources(**truth, symbols=torch.from_numpy(bound["symbols"]))
    link = Link(read.get("channel"), read.get("codes"))
    crb = conditional_crb(
        Panel(read["elements"], 0.3, wave), link, sources, torch.from_numpy(bound["noise_variance"])
    )
    assert np.array_equal(np.isnan(crb.std.numpy()), np.isnan(bound["crb"]))
    assert np.nanmax(np.abs(crb.std.numpy() / bound["crb"] - 1)) < 1e-6


def textbook_far_field(panel, azimuth, elevation, symbols, noise_variance):
    """Closed form for one plane wave on a centred rectangular grid, written without steering vectors.

    The Fisher information about (u_x, u_y) is 2 SNR k0^2 diag(mean x^2, mean y^2) with mean x^2 =
    d^2 (N_x^2 - 1) / 12; (azimuth, elevation) follow by the chain rule.
    """
    d, k0 = 0.5 * panel.wavelength, 2 * math.pi / panel.wavelength
    snr = float(symbols.abs().square().sum()) / noise_variance
    J = 2 * snr * k0**2 * d**2 / 12 * np.diag([6**2 - 1, 5**2 - 1])
    T = np.array(
        [
            [math.cos(azimuth) * math.cos(elevation), -math.sin(azimuth) * math.sin(elevation)],
            [0, math.cos(elevation)],
        ]
    )
    return np.linalg.inv(T.T @ J @ T)


@pytest.mark.parametrize("angles", [(0.0, 0.0), (0.7, -0.4), (-1.0, 0.5)])
@pytest.mark.parametrize("kind", ["conditional", "unconditional"])
def test_textbook_far_field(angles, kind, generator):
    """Direct sampling, range known: the angle block meets the plane-wave bound to 1e-6."""
    panel = Panel.uniform_planar(5, 6)
    place = [torch.tensor([value], dtype=torch.float64) for value in (*angles, 1e9)]
    symbols = torch.randn(1, 50, dtype=torch.complex128, generator=generator)
    power = symbols.abs().square().mean(-1)
    sources = Sources(azimuth=place[0], elevation=place[1], range=place[2], power=power, symbols=symbols)
    noise = torch.tensor(1e-9 if kind == "unconditional" else 0.3, dtype=torch.float64)
    crb = {"conditional": conditional_crb, "unconditional": unconditional_crb}[kind](
        panel, Link(), sources, noise, unknowns=("azimuth", "elevation")
    )
    expected = textbook_far_field(panel, *angles, symbols, float(noise))
    measured = crb.covariance[0, :2, 0, :2].numpy()
    # The unconditional bound has the factor 1 + sigma^2 / p, which is 1 without noise.
    np.testing.assert_allclose(measured, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    assert crb.std[0, 2].isnan(), "a known range has no bound"


def test_far_field_of_several_sources_against_a_second_derivation(generator):
    """K = 3 plane waves: J = (2 / sigma^2) Re[(D^H P D) o (S S^H)^T] (Stoica and Nehorai), in numpy."""
    panel = Panel.uniform_planar(5, 6)
    azimuth = torch.tensor([-0.6, 0.1, 0.8], dtype=torch.float64)
    elevation = torch.tensor([0.2, -0.3, 0.3], dtype=torch.float64)
    s = torch.randn(3, 40, dtype=torch.complex128, generator=generator)
    sources = Sources(azimuth=azimuth, elevation=elevation, range=torch.full_like(azimuth, 1e9), symbols=s)
    crb = conditional_crb(
        panel, Link(), sources, torch.tensor(0.1).double(), unknowns=("azimuth", "elevation")
    )

    p, k0, h = panel.elements.numpy(), 2 * np.pi / 0.3, 1e-6
    u = lambda az, el: np.stack([c.numpy() for c in direction(torch.as_tensor(az), torch.as_tensor(el))])  # noqa: E731
    a = lambda az, el: np.exp(1j * k0 * p @ u(az, el)) / np.sqrt(30)  # noqa: E731
    az, el = azimuth.numpy(), elevation.numpy()
    A = a(az, el)
    D = np.stack(
        [(a(az + h, el) - a(az - h, el)) / (2 * h), (a(az, el + h) - a(az, el - h)) / (2 * h)], axis=-1
    )
    P = np.eye(30) - A @ np.linalg.pinv(A)
    D = D.reshape(30, 6)
    weight = np.kron((s.numpy() @ s.numpy().conj().T).T, np.ones((2, 2)))
    J = 2 / 0.1 * np.real((D.conj().T @ P @ D) * weight)
    expected = np.sqrt(np.diag(np.linalg.inv(J))).reshape(3, 2)
    np.testing.assert_allclose(crb.std[:, :2].numpy(), expected, rtol=1e-6)


def numeric(function, x, step):
    """Central differences of a tensor-valued function, stacked along a new first axis."""
    rows = []
    for i in range(len(x)):
        forth, back = x.clone(), x.clone()
        forth[i] += step[i]
        back[i] -= step[i]
        rows.append((function(forth) - function(back)) / (2 * step[i]))
    return torch.stack(rows)


@pytest.mark.parametrize("spec", [SMALL, DIRECT], ids=["link", "direct"])
@pytest.mark.parametrize("K", [1, 2, 3])
def test_conditional_against_the_whole_fisher_matrix(spec, K):
    """Mean mu = [G_l A s_l] with positions *and* symbols as unknowns, differentiated numerically."""
    recording = simulate(spec, scenes=1, sources=K, dtype=torch.float64)
    truth, link, panel = recording.truth, recording.link, recording.panel
    position = torch.cat([getattr(truth, n)[0] for n in ("azimuth", "elevation", "range")])
    s = truth.symbols[0]
    x = torch.cat((position, s.real.flatten(), s.imag.flatten()))

    def mean(x):
        azimuth, elevation, r = x[: 3 * K].reshape(3, K)
        symbols = torch.complex(*x[3 * K :].reshape(2, K, -1))
        mu = link.apply((steering(panel, azimuth, elevation, r) @ symbols).mT[None]).flatten()
        return torch.cat((mu.real, mu.imag))

    jacobian = numeric(mean, x, torch.full_like(x, 1e-6))
    J = 2 / recording.noise_variance[0] * jacobian @ jacobian.T
    expected = torch.linalg.inv(J).diagonal()[: 3 * K].sqrt().reshape(3, K).T
    torch.testing.assert_close(recording_crb(recording).std[0], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("spec", [SMALL, DIRECT], ids=["link", "direct"])
@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize("snr_db", [0.0, 60.0])
def test_unconditional_against_dense_covariances(spec, K, snr_db):
    """tr(R^-1 dR R^-1 dR) with R_l written out and differentiated numerically."""
    recording = simulate(spec, scenes=1, sources=K, snr_db=snr_db, dtype=torch.float64)
    truth, panel, L = recording.truth, recording.panel, 8
    G = (
        torch.eye(30, dtype=torch.complex128).expand(L, 30, 30)
        if recording.channel is None
        else recording.link.dense()[0]
    )
    position = torch.cat([getattr(truth, n)[0] for n in ("azimuth", "elevation", "range", "power")])
    x = torch.cat((position, recording.noise_variance))

    def covariance(x):
        azimuth, elevation, r, power = x[: 4 * K].reshape(4, K)
        GA = G @ steering(panel, azimuth, elevation, r)
        return GA * power @ GA.mH + x[-1] * torch.eye(GA.shape[1])

    step = torch.full_like(x, 1e-6)
    step[-1] = 1e-6 * float(x[-1])
    white = torch.linalg.solve(covariance(x), numeric(covariance, x, step))  # R^-1 dR_i
    J = torch.einsum("ilmn,jlnm->ij", white, white).real
    expected = torch.linalg.inv(J).diagonal()[: 3 * K].sqrt().reshape(3, K).T
    measured = recording_crb(recording, "unconditional").std[0]
    torch.testing.assert_close(measured, expected, rtol=1e-4, atol=0)


def test_batch_equals_loop_and_padding_changes_nothing():
    recording = simulate(SMALL, scenes=12, sources=(1, 4), dtype=torch.float64)
    for kind in ("conditional", "unconditional"):
        whole = recording_crb(recording, kind)
        for i in range(12):
            K = int(recording.truth.active[i].sum())
            one = recording[i : i + 1]
            fields = {
                n: getattr(one.truth, n)[:, :K] for n in ("azimuth", "elevation", "range", "power", "symbols")
            }
            alone = {"conditional": conditional_crb, "unconditional": unconditional_crb}[kind](
                one.panel, one.link, Sources(**fields), one.noise_variance
            )
            torch.testing.assert_close(alone.covariance[0], whole.covariance[i, :K, :, :K])
            assert whole.covariance[i, K:].isnan().all()


def test_an_unknown_range_costs_accuracy_and_so_does_a_neighbour():
    recording = simulate(SMALL, scenes=30, sources=2, dtype=torch.float64)
    problem = recording.panel, recording.link, recording.truth, recording.noise_variance
    both, angles = conditional_crb(*problem), conditional_crb(*problem, unknowns=("azimuth", "elevation"))
    assert (both.std[..., :2] >= angles.std[..., :2] * (1 - 1e-9)).all()
    first = recording.truth.each(lambda value: value[:, :1])
    alone = conditional_crb(recording.panel, recording.link, first, recording.noise_variance)
    assert (both.std[:, 0] >= alone.std[:, 0] * (1 - 1e-9)).all()


def test_inverse_range():
    bound = recording_crb(simulate(SMALL, scenes=3, sources=1, dtype=torch.float64))
    torch.testing.assert_close(bound.inverse_range_std, bound.std[..., 2] / bound.range**2)


def test_a_bound_prints_its_medians():
    bound = recording_crb(simulate(SMALL, scenes=3, sources=(1, 2), dtype=torch.float64))
    azimuth, elevation, distance = (bound.std[..., axis].nanmedian() for axis in (0, 1, 2))
    assert repr(bound) == (
        f"Bound([3, 2], medians: azimuth {azimuth.rad2deg():.3g} deg, "
        f"elevation {elevation.rad2deg():.3g} deg, range {distance:.3g} m)"
    )
    assert repr(Bound(torch.zeros(2, 0, 3, 0, 3), torch.zeros(2, 0), torch.zeros(2, 0))) == "Bound([2, 0])"


def test_scales():
    """Half the noise amplitude or twice the signal: half the standard deviation."""
    recording = simulate(SMALL, scenes=3, sources=2, dtype=torch.float64)
    problem = recording.panel, recording.link, recording.truth
    one = conditional_crb(*problem, recording.noise_variance)
    two = conditional_crb(*problem, recording.noise_variance / 4)
    torch.testing.assert_close(one.std, 2 * two.std)


def test_more_sources_than_the_receiver_can_tell_apart_have_no_finite_bound():
    spec = SMALL.replace(channel={"antennas": 3}, sources=3)
    for scenes in (simulate(spec, scenes=4), simulate(spec, scenes=4, sources=5)):
        assert recording_crb(scenes).std.isinf().all()
    twins = Sources(
        azimuth=torch.tensor([0.1, 0.1]).double(),
        elevation=torch.tensor([0.0, 0.0]).double(),
        range=torch.tensor([2.0, 2.0]).double(),
        symbols=torch.ones(2, 8, dtype=torch.complex128),
    )
    recording = simulate(SMALL, scenes=1)
    link = Link(recording.channel[0], recording.codes[0])
    assert conditional_crb(recording.panel, link, twins, torch.tensor(1.0).double()).std.isinf().all()


def test_a_large_panel_needs_no_square_matrix():
    recording = simulate(scenes=2, sources=2, panel={"rows": 64, "columns": 64})
    assert recording_crb(recording).std.isfinite().all()
    direct = simulate(scenes=1, sources=2, panel={"rows": 64, "columns": 64}, channel={"kind": "direct"})
    assert recording_crb(direct, "unconditional").std.isfinite().all()


def test_bad_input(untyped):
    recording = simulate(SMALL, scenes=2, sources=2)
    problem = recording.panel, recording.link, recording.truth
    bare = Sources(
        azimuth=recording.truth.azimuth, elevation=recording.truth.elevation, range=recording.truth.range
    )
    gap = recording.truth.each(lambda v: torch.cat((torch.full_like(v[:, :1], math.nan), v[:, :1]), dim=1))
    noise = recording.noise_variance
    for call, sentence in [
        (lambda: conditional_crb(*problem, 0 * noise), "noise_variance: must be positive; got 0"),
        (lambda: conditional_crb(*problem[:2], bare, noise), "symbols: missing"),
        (lambda: unconditional_crb(*problem[:2], bare, noise), "power: missing"),
        (lambda: conditional_crb(*problem, noise, unknowns=("azimut",)), "unknowns: must be"),
        (lambda: conditional_crb(*problem[:2], gap, noise), "sources: unused slots"),
        (
            lambda: unconditional_crb(
                recording.panel,
                Link(),
                Sources(
                    azimuth=bare.azimuth,
                    elevation=bare.elevation,
                    range=bare.range,
                    power=recording.truth.power,
                ),
                noise,
            ),
            "snapshots: pass the number of snapshots L",
        ),
    ]:
        with pytest.raises(InputError, match=sentence):
            call()
