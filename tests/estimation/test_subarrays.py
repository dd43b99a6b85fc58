"""The search of a large panel by subarrays, against steering vectors of all points."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from rismusic.array import Panel, steering
from rismusic.devices import VARIABLE
from rismusic.estimation import search, subarrays
from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.estimation.maximum_likelihood import fit_power_noise, unpack, without_compiled_fits
from rismusic.estimation.search import Dictionary, GridSearch, project_out, received_fields
from rismusic.estimation.subarrays import Subarrays, subarrays_of
from rismusic.hybrid import locate
from rismusic.io import Recording
from rismusic.metrics import match
from rismusic.simulation.simulator import simulate
from rismusic.spec import LocateSpec

VOLUME = Volume.from_spec(LocateSpec())
SIDE = 24
LARGE = {"rows": SIDE, "columns": SIDE}


def grid_of(panel: Panel, volume: Volume = VOLUME) -> SearchGrid:
    return SearchGrid.cover(panel, volume)


def irregular() -> Panel:
    """576 elements anywhere on 3.6 m x 3.6 m, a few centimetres off the plane."""
    place = torch.rand(576, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.5
    return Panel(place * torch.tensor([3.6, 3.6, 0.06]), 0.3)


@pytest.mark.parametrize(
    "panel",
    [
        Panel.uniform_planar(SIDE, SIDE),
        Panel.uniform_planar(SIDE, SIDE).replace(wave="uniform"),
        Panel.uniform_planar(SIDE, SIDE).replace(pattern_exponent=1.5),
        Panel.uniform_planar(10, 70),
        irregular(),
        Panel.uniform_planar(50, 50, wavelength=0.0107),
    ],
    ids=["spherical", "uniform", "cosine elements", "long", "irregular", "28 GHz"],
)
def test_products_keep_most_of_the_energy_of_each_wave(panel: Panel) -> None:
    grid = grid_of(panel)
    within = grid.inside.nonzero()[:, 0]
    some = within[torch.randperm(len(within), generator=torch.Generator().manual_seed(0))[:100]]
    place = (grid.azimuth[some].float(), grid.elevation[some].float(), grid.range[some].float())
    waves = steering(panel, *place)
    divided = subarrays_of(grid)
    assert divided is not None
    kept = torch.empty(100, len(within))
    for block, squares in divided.squares(waves.mH):
        kept[:, block] = squares
    number = torch.searchsorted(within, some)
    energy = kept[torch.arange(100), number]
    assert energy.min() > 0.7
    assert energy.mean() > 0.9
    assert kept.max() < 1 + 1e-4  # unit steering vectors


@pytest.mark.parametrize(
    ("panel", "volume"),
    [
        (Panel.uniform_planar(12, 12), VOLUME),
        (Panel.uniform_planar(SIDE, SIDE).replace(wave="fresnel"), VOLUME),
        (Panel.uniform_planar(SIDE, SIDE).replace(frequencies=(1e9, 1.01e9)), VOLUME),
        (Panel.uniform_circular(60, plane="xz"), Volume(3.14, 1.0, 0.5, 10.0)),
    ],
    ids=["small", "another wave", "wideband", "all round"],
)
def test_the_dictionary_serves_all_others(panel: Panel, volume: Volume) -> None:
    with patch.object(subarrays, "_LARGE", 2**23 if panel.size == 144 else 0):
        assert subarrays_of.__wrapped__(grid_of(panel, volume)) is None


class Exact(Subarrays):
    """Products with the steering vectors themselves, in the place of those by subarrays."""

    def __init__(self, grid: SearchGrid) -> None:
        object.__setattr__(self, "A", grid.steering()[:, grid.inside])
        object.__setattr__(self, "norm", torch.ones(self.size))

    @property
    def size(self) -> int:
        return self.A.shape[1]

    def sums(self, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, self.size, 1000):
            block = slice(start, start + 1000)
            products = (rows @ self.A[:, block]).mT
            yield block, torch.cat((products.real, products.imag), dim=1)


def searches(recording: Recording) -> tuple[GridSearch, GridSearch]:
    """The search by the dictionary, and that of a large panel with exact products."""
    grid = grid_of(recording.panel)
    plain = GridSearch(Dictionary.of(grid), recording)
    with patch.object(search, "subarrays_of", Exact), patch.object(search, "_DOMINANCE", 0.0):
        return plain, GridSearch(Dictionary.of(grid), recording)


def scores(of: GridSearch, rest: search.Residual) -> Tensor:
    scenes = torch.arange(len(of.recording))
    found = torch.full((len(scenes), len(of.dictionary)), torch.nan)
    for points, part, value in of._scores(scenes, rest):
        found[part, points] = value
    return found


SYSTEMS = {
    "a link per scene": {},
    "one link": {"one_link": True},
    "constant": {"scene": {"symbols": "constant"}, "channel": {"antennas": 2}, "codebook": {"snapshots": 20}},
    "direct": {"channel": {"kind": "direct"}},
}


@pytest.mark.parametrize("budget", [None, "0.5"], ids=["at once", "in parts"])
@pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)
def test_scores_are_those_of_the_dictionary(
    system: dict[str, object], budget: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = simulate(scenes=3, sources=2, snr_db=10.0, seed=2, **system)
    if recording.codes is not None:  # of unequal energy, so that snapshots differ
        gain = torch.linspace(0.5, 1.5, recording.codes.shape[-2])
        recording = replace(recording, codes=recording.codes * gain[:, None])
    recording = recording.stacked()
    if budget is not None:
        monkeypatch.setenv(VARIABLE, budget)
    plain, large = searches(recording)
    nothing = torch.zeros(3, 0, 3, dtype=torch.float64)
    rest = project_out(recording, nothing, nothing[..., 0].bool())
    exact = scores(plain, rest)
    torch.testing.assert_close(scores(large, rest), exact, rtol=2e-3, atol=1e-3 * float(exact.max()))
    # With the unconditional likelihood few powers are compared: a little is lost, nothing gained.
    rest = project_out(
        recording, nothing, nothing[..., 0].bool(), (nothing[..., 0], recording.noise_variance.double())
    )
    exact, nearly = scores(plain, rest), scores(large, rest)
    leading = exact > 0.5 * exact.amax(1, keepdim=True)
    assert leading.any(1).all()
    ratio = (nearly / exact)[leading]
    assert ratio.min() > 0.85
    assert ratio.max() < 1.01


@pytest.mark.parametrize("budget", [None, "0.5"], ids=["at once", "in parts"])
@pytest.mark.parametrize("known", [False, True], ids=["conditional", "unconditional"])
def test_compiled_scores_are_those_of_the_torch_form(
    known: bool, budget: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a channel with strong directions, beside a source."""
    pytest.importorskip("rismusic.estimation.search_kernel", exc_type=ImportError)
    if budget is not None:
        monkeypatch.setenv(VARIABLE, budget)
    recording = simulate(scenes=3, sources=2, snr_db=20.0, seed=3, channel={"rician_factor_db": 10.0})
    grid = grid_of(recording.panel)
    with patch.object(search, "subarrays_of", Exact):
        large = GridSearch(Dictionary.of(grid), recording)
    assert large._strongest.count > 0
    positions, active = (part[:, :1] for part in unpack(recording.truth, recording))
    power_noise = fit_power_noise(recording, positions, active) if known else None
    rest = project_out(recording, positions, active, power_noise)
    compiled = scores(large, rest)
    with without_compiled_fits():
        torch.testing.assert_close(compiled, scores(large, rest), rtol=1e-4, atol=1e-3)


def test_energy_outside_the_span_of_a_source() -> None:
    """A source takes most of the channel's strongest direction, and little of the others."""
    recording = simulate(scenes=8, sources=2, snr_db=20.0, seed=3, channel={"rician_factor_db": 10.0})
    positions, active = unpack(recording.truth, recording)
    basis = project_out(recording, positions[:, :1], active[:, :1]).basis
    fields = received_fields(recording, positions[:, 1:])[..., 0]
    exact = fields.abs().square().sum(-1) - (basis.mH @ fields[..., None])[..., 0].abs().square().sum(-1)
    strongest = search.Strongest.of(recording.link, recording.panel.size, dominance=2.0)
    assert strongest.count == 1
    azimuth, elevation, q = (value[:, None].float() for value in positions[:, 1].unbind(-1))
    waves = steering(recording.panel, azimuth, elevation, 1 / q)
    strong = (strongest.rows @ waves[:, None]).abs().square()[..., 0]
    other, share = strongest.outside(basis)
    error = ((strongest.level * other + share * strong)[..., 0] / exact).log()
    assert error.mean().abs() < 0.1
    assert error.std() < 0.3


def test_a_source_beside_another_one_leads() -> None:
    """The energy outside the span of the source already there is estimated well enough."""
    recording = simulate(scenes=12, sources=2, snr_db=20.0, seed=3)
    plain, large = searches(recording)
    positions, active = unpack(recording.truth, recording)
    power_noise = fit_power_noise(recording, positions[:, :1], active[:, :1])
    for rest in (
        project_out(recording, positions[:, :1], active[:, :1]),
        project_out(recording, positions[:, :1], active[:, :1], power_noise),
    ):
        one, other = (each.best(torch.arange(12), rest)[0][:, 0] for each in (plain, large))
        assert (one == other).sum() >= 11


def test_the_same_sources_as_with_the_dictionary() -> None:
    recording = Recording.concatenate(
        [simulate(scenes=4, sources=2, snr_db=snr_db, seed=4, panel=LARGE) for snr_db in (0.0, 10.0)]
    )
    blind = replace(recording, noise_variance=None, truth=None)
    found = locate(blind, n_sources=2, method="omp").sources
    with patch.object(search, "subarrays_of", lambda _: None):
        exact = locate(blind, n_sources=2, method="omp").sources
    same = match(exact, found)
    apart = (found.azimuth - exact.azimuth).abs().amax(1)
    assert int((apart < 1e-4).sum()) >= 7
    hits = [int(match(recording.truth, one).hit.sum()) for one in (exact, found)]
    assert same.hit.sum() >= 15
    assert hits[1] >= hits[0] - 1


def test_no_array_of_all_elements_and_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither steering vectors of all points nor N x N numbers are made."""
    recording = simulate(scenes=1, sources=1, snr_db=10.0, panel=LARGE)
    monkeypatch.setattr(SearchGrid, "steering", None)
    monkeypatch.setattr(SearchGrid, "real_steering", None)
    monkeypatch.setattr(SearchGrid, "blocks", None)
    located = locate(replace(recording, noise_variance=None), n_sources=1, method="omp")
    assert match(recording.truth, located.sources).hit.all()
    divided = subarrays_of(grid_of(recording.panel))
    assert isinstance(divided, Subarrays)
    assert len(divided.children) == 16
    largest = max(
        part.numel() for part in (divided.cells, divided.real, *(c.waves for c in divided.children))
    )
    assert largest * 4 < 4 * recording.panel.size * len(divided.norm) / 20


def test_an_element_without_gain_does_not_slow_the_sums() -> None:
    """Its products would be below the normal numbers, for which processors take a hundred times longer."""
    panel = Panel(irregular().elements[:12], 0.3)
    points = panel.elements + torch.tensor([0.0, 0.0, 5.0])
    divided = Subarrays.of(panel, torch.arange(12), points, divisions=4)  # each of a single element
    rows = torch.randn(3, 12, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    rows[:, ::2] *= 1e-38
    products = divided._of_children(rows)
    assert not ((products != 0) & (products.abs() < torch.finfo(torch.float32).tiny)).any()
