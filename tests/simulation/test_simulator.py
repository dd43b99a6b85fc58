from __future__ import annotations

import math

import pytest
import torch

from rismusic.array import Panel
from rismusic.errors import InputError
from rismusic.io import Recording
from rismusic.operator import Link
from rismusic.simulation.simulator import Simulator, simulate
from rismusic.sources import Sources
from rismusic.spec import HardwareSpec, SystemSpec

SMALL = SystemSpec(panel={"rows": 4, "columns": 5}, codebook={"snapshots": 6}, channel={"antennas": 7})
DIRECT = SMALL.replace(channel={"kind": "direct"})
FAULTY = SMALL.replace(
    hardware=HardwareSpec(static_phase_rad=0.1, dead_fraction=0.1, position_wavelengths=0.02)
)
ONE = SMALL.replace(one_link=True)
SYSTEMS = {"default": SystemSpec(), "small": SMALL, "direct": DIRECT, "faulty": FAULTY, "one link": ONE}


def equal(first: Recording, second: Recording) -> bool:
    pairs = [
        (first.snapshots, second.snapshots),
        (first.noise_variance, second.noise_variance),
        *(
            (getattr(first.truth, n), getattr(second.truth, n))
            for n in ("azimuth", "range", "power", "symbols")
        ),
        *((a, b) for a, b in ((first.channel, second.channel), (first.codes, second.codes)) if a is not None),
    ]
    return all(torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) for a, b in pairs)


def clean_signal(recording: Recording) -> torch.Tensor:
    symbols = torch.where(recording.truth.active[..., None], recording.truth.symbols, 0)
    return recording.link.apply(symbols.mT @ recording.truth.steering(recording.panel).mT)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_scene_is_a_function_of_seed_split_and_number_alone(name):
    """Bit for bit, whatever the batch it is drawn in, whoever drew what before."""
    simulator = Simulator(SYSTEMS[name], seed=5, split="validation")
    whole = simulator.scenes(0, 60)
    for batch in (1, 7, 32):
        parts = list(Simulator(SYSTEMS[name], seed=5, split="validation").stream(batch, stop=60))
        assert sum(map(len, parts)) == 60
        start = 0
        for part in parts:
            assert equal(part, whole[start : start + len(part)])
            start += len(part)
    picked = torch.tensor([41, 3, 59])
    assert equal(simulator(picked), whole[picked])
    resumed = next(iter(Simulator(SYSTEMS[name], seed=5, split="validation").stream(10, start=37)))
    assert equal(resumed, whole[37:47])


def test_seed_and_split_make_other_scenes():
    recordings = [
        Simulator(SMALL, seed=seed, split=split).scenes(0, 2)
        for seed, split in ((0, "train"), (0, "validation"), (0, "test"), (1, "train"))
    ]
    marks = {tuple(scene.flatten().tolist()) for recording in recordings for scene in recording.snapshots}
    assert len(marks) == 8


def test_splits_share_no_link_and_no_scene():
    """Hashes of 20,000 scenes of every split: positions, channel, codes and noise all differ."""
    marks: dict[str, set] = {"positions": set(), "channel": set(), "noise": set()}
    total = 0
    for split in ("train", "validation", "test"):
        for part in Simulator(SMALL.replace(sources=1), split=split).stream(2000, stop=20_000):
            total += len(part)
            marks["positions"].update(
                zip(part.truth.azimuth[:, 0].tolist(), part.truth.range[:, 0].tolist(), strict=True)
            )
            marks["channel"].update(part.channel[:, 0, :2].real.double().sum(-1).tolist())
            marks["noise"].update(part.snapshots[:, 0, 0].tolist())
    assert len(marks["positions"]) == total
    # Single float32 numbers coincide by chance now and then.
    assert len(marks["channel"]) > total - 100
    assert len(marks["noise"]) > total - 100


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("snr_db", [-5.0, 20.0])
def test_measured_snr_is_the_asked_snr(name, snr_db):
    """SNR = mean |G_l A s_l|^2 / sigma^2 exactly, and the noise has that variance."""
    recording = simulate(SYSTEMS[name], scenes=300, snr_db=snr_db, dtype=torch.float64)
    if name != "faulty":  # there the acting system is not in the recording
        signal = clean_signal(recording)
        measured = 10 * (signal.abs().square().mean(dim=(1, 2)) / recording.noise_variance).log10()
        torch.testing.assert_close(measured, torch.full_like(measured, snr_db), rtol=0, atol=1e-9)
        noise = (recording.snapshots - signal) / recording.noise_variance.sqrt()[:, None, None]
        n = noise.numel()
        assert noise.abs().square().mean() == pytest.approx(1, abs=5 / math.sqrt(n))
        assert noise.mean().abs() < 5 / math.sqrt(n)
        assert (noise[:, 1:] * noise[:, :-1].conj()).mean().abs() < 5 / math.sqrt(n)
    total = recording.snapshots.abs().square().mean(dim=(1, 2)) / recording.noise_variance
    assert 10 * (total.mean() - 1).log10() == pytest.approx(snr_db, abs=0.5)


def test_snr_and_number_of_sources_leave_the_link_alone():
    """Common random numbers: a sweep compares the same links."""
    quiet, loud = (simulate(SMALL, scenes=5, sources=k, snr_db=x) for k, x in ((2, 0.0), (4, 20.0)))
    assert torch.equal(quiet.channel, loud.channel)
    assert torch.equal(quiet.codes, loud.codes)


def test_snr_is_uniform_in_its_limits():
    recording = simulate(SMALL, scenes=2000, snr_db=(-5.0, 20.0))
    power = clean_signal(recording).abs().square().mean(dim=(1, 2))
    snr_db = 10 * (power / recording.noise_variance).log10()
    assert -5.001 < snr_db.min() < -4.9
    assert 19.9 < snr_db.max() < 20.001
    assert snr_db.mean() == pytest.approx(7.5, abs=5 * 25 / math.sqrt(12 * 2000))


def test_float32_is_float64_to_rounding():
    narrow, wide = (simulate(scenes=20, seed=3, dtype=dtype) for dtype in (torch.float32, torch.float64))
    error = (narrow.snapshots - wide.snapshots).abs().square().mean() / wide.snapshots.abs().square().mean()
    assert error.sqrt() < 2e-6


def test_statistics_match_those_of_the_samples(samples):
    """Power per antenna, and power of the symbols, of recordings that this code did not make."""
    import h5py
    import numpy as np

    ours = simulate(scenes=2000, snr_db=10.0)
    with h5py.File(samples / "ideal_10dB.h5") as file:
        theirs, K = file["snapshots"][()], np.isfinite(file["truth/azimuth"][()]).sum(1)
    bound = np.load(samples / "ideal_10dB.bound.npz")
    power = np.mean(np.abs(theirs) ** 2, axis=(1, 2)) / K
    expected = ours.snapshots.abs().square().mean(dim=(1, 2)) / ours.truth.active.sum(-1)
    assert abs(power.mean() - float(expected.mean())) < 4 * float(expected.std()) / math.sqrt(24)
    snr = np.mean(np.abs(theirs) ** 2, axis=(1, 2)) / bound["noise_variance"] - 1
    assert 10 * np.log10(snr.mean()) == pytest.approx(10, abs=0.3)
    # Power is the same at all antennas, theirs as ours.
    per_antenna = np.mean(np.abs(theirs) ** 2, axis=(0, 1))
    assert per_antenna.std() / per_antenna.mean() < 0.2
    per_antenna = ours.snapshots.abs().square().mean(dim=(0, 1))
    assert per_antenna.std() / per_antenna.mean() < 0.02
    symbols = bound["symbols"][np.isfinite(bound["symbols"])]
    assert np.mean(np.abs(symbols) ** 2) == pytest.approx(1, abs=0.15)
    assert ours.truth.symbols[ours.truth.active].abs().square().mean() == pytest.approx(1, abs=0.02)


def test_user_given_link_and_panel(generator):
    panel = Panel(torch.randn(9, 3, generator=generator, dtype=torch.float64) * 0.2, 0.3)
    link = Link(
        torch.randn(4, 9, generator=generator, dtype=torch.complex64),
        torch.randn(11, 9, generator=generator, dtype=torch.complex64),
    )
    recording = simulate(scenes=6, panel=panel, link=link, sources=2)
    assert recording.snapshots.shape == (6, 11, 4)
    assert recording.truth.symbols.shape == (6, 2, 11)
    assert torch.equal(recording.channel, link.channel)
    assert torch.equal(recording.elements, panel.elements)


@pytest.mark.parametrize("kind", ["dft", "hadamard"])
@pytest.mark.parametrize("channel", ["rician", "rayleigh"])
def test_other_codebooks_and_channels(kind, channel):
    recording = simulate(SMALL, scenes=3, codebook={"kind": kind, "snapshots": 6}, channel={"kind": channel})
    assert recording.snapshots.isfinite().all()


def test_a_large_panel_needs_no_square_matrix():
    """64 x 64 elements: an N x N complex64 matrix alone would be 134 MB, here nothing comes near."""
    spec = SystemSpec(panel={"rows": 64, "columns": 64})
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(tensor, torch.Tensor):
                    Largest.numbers = max(Largest.numbers, tensor.numel())
            return result

    simulator = Simulator(spec)
    with Largest():
        simulator.scenes(0, 2)
    assert 2 * 16 * 4096 <= Largest.numbers < 4096**2 / 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"scenes": 0}, "scenes: the number of scenes must be at least 1; got 0"),
        ({"scenes": 1, "sources": 0}, "sources: expected"),
        ({"scenes": 1, "sources": (3, 1)}, "sources: give the lower limit first"),
        ({"scenes": 1, "snr_db": math.nan}, "snr_db: expected"),
        ({"scenes": 1, "frobnicate": 1}, "frobnicate: unknown setting"),
        ({"scenes": 1, "seed": -1}, "seed: "),
        (
            {"scenes": 1, "panel": Panel.uniform_planar(3, 3), "codebook": {"kind": "dft"}},
            "panel: a dft codebook needs a uniform planar panel; got 9 elements",
        ),
        ({}, "scenes: the number of scenes must be at least 1; got None"),
        (
            {
                "scenes": 1,
                "link": Link(
                    torch.ones(2, 5, dtype=torch.complex64), torch.ones(3, 5, dtype=torch.complex64)
                ),
            },
            r"link.channel: must have N = 144 elements \(last axis\), as the panel; got 5",
        ),
        (
            {"scenes": 1, "link": Link(torch.ones(2, 144, dtype=torch.complex64))},
            "link: needs both channel and codes, or neither; channel came without codes",
        ),
        (
            {"scenes": 1, "link": Link(torch.zeros(2, 144) + 0j, torch.ones(3, 144) + 0j)},
            "signal: the received signal has zero power",
        ),
    ],
)
def test_bad_input(arguments, sentence, untyped):
    with pytest.raises(InputError, match=sentence):
        simulate(**arguments)


PAIR = Sources.from_degrees([-20.0, 35.0], [0.0, 10.0], [2.0, 4.5])


def test_given_sources_are_in_every_scene():
    recording = simulate(SMALL, sources=PAIR, scenes=4, snr_db=30.0, dtype=torch.float64)
    assert len(recording) == 4
    assert torch.equal(recording.truth.azimuth, PAIR.azimuth.expand(4, 2))
    assert torch.equal(recording.truth.range, PAIR.range.expand(4, 2))
    assert torch.equal(recording.truth.power, torch.ones(4, 2, dtype=torch.float64))
    assert len(recording.truth.symbols[:, 0, 0].abs().unique()) == 4, "symbols are drawn anew in each scene"
    signal = clean_signal(recording)
    error = (recording.snapshots - signal).abs().square().mean(dim=(1, 2)) / recording.noise_variance
    assert (error - 1).abs().max() < 0.6, "the snapshots come from these sources"
    assert len(simulate(SMALL, sources=PAIR)) == 1


def test_scenes_with_given_sources_depend_on_their_number_alone():
    positions = torch.linspace(-40, 40, 12, dtype=torch.float64).reshape(6, 2)
    many = Sources.from_degrees(positions, 0, 3.0)
    whole = simulate(SMALL, sources=many)
    assert len(whole) == 6
    simulator = Simulator(SMALL, split="test", sources=many)
    picked = torch.tensor([4, 0, 5])
    assert equal(simulator(picked), whole[picked])
    with pytest.raises(InputError, match="sources: sources are given for 6 scenes; scene 6 does not exist"):
        simulator(torch.tensor([6]))


def test_given_powers_and_symbols_are_used(generator):
    loud = Sources.from_degrees([-20.0, 35.0], 0, 3.0, power_db=[0.0, -20.0])
    truth = simulate(SMALL, sources=loud, scenes=200).truth
    torch.testing.assert_close(truth.power[0], torch.tensor([1.0, 0.01]))
    measured = truth.symbols.abs().square().mean(dim=(0, 2))
    assert float(measured[1] / measured[0]) == pytest.approx(0.01, rel=0.2)
    symbols = torch.randn(2, 6, dtype=torch.complex64, generator=generator)
    sent = Sources.from_degrees([-20.0, 35.0], 0, 3.0, symbols=symbols)
    truth = simulate(SMALL, sources=sent, scenes=3).truth
    assert torch.equal(truth.symbols, symbols.expand(3, 2, 6))
    torch.testing.assert_close(truth.power[0], symbols.abs().square().mean(-1))


def test_scenes_with_fewer_sources():
    some = Sources.from_degrees([[10.0, 20.0], [30.0, math.nan]], 0, 3.0)
    recording = simulate(SMALL, sources=some)
    assert recording.truth.active.tolist() == [[True, True], [True, False]]
    assert recording.truth.symbols.isnan().any(-1).equal(~recording.truth.active)
    assert recording.snapshots.isfinite().all()


@pytest.mark.parametrize("channel", ["rician", "direct"])
def test_any_panel_without_a_link(channel):
    panel = Panel.uniform_circular(11)
    recording = simulate(SMALL, sources=PAIR, panel=panel, channel={"kind": channel, "antennas": 7})
    assert torch.equal(recording.elements, panel.elements)
    assert recording.snapshots.shape == (1, 6, 11 if channel == "direct" else 7)


@pytest.mark.parametrize(
    ("sources", "sentence"),
    [
        (
            Sources(azimuth=torch.tensor([2.0]), elevation=torch.zeros(1), range=torch.ones(1)),
            "sources/azimuth",
        ),
        (Sources.from_degrees([math.nan], 0, 1.0), "sources: every scene needs at least one source"),
        (
            Sources.from_degrees([1.0], 0, 1.0, symbols=torch.ones(1, 5) + 0j),
            r"sources/symbols: must have L = 6 snapshots \(last axis\); got 5",
        ),
    ],
)
def test_bad_given_sources(sources, sentence, untyped):
    with pytest.raises(InputError, match=sentence):
        simulate(SMALL, sources=sources)


def test_scenes_that_do_not_exist_are_refused():
    simulator = Simulator(SystemSpec())
    for start, stop in ((3, 3), (5, 2), (-1, 2)):
        with pytest.raises(InputError, match="must be above start"):
            simulator.scenes(start, stop)
