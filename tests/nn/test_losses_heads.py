"""Losses of the heads: sources as a set, their number, and the heat map."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from loss_scenes import (
    check_gradient,
    each_field,
    perfect_prediction,
    random_prediction,
    targets,
    with_gradient,
)

from rismusic.nn.losses import count_divergence, heat_map_divergence, heat_map_target, match_heads
from rismusic.nn.network import Prediction
from rismusic.sources import Sources

WEIGHTS = (0.7, 0.4, 0.3)
SETTINGS = {"weights": WEIGHTS}


def heads_of(azimuth: list[float], elevation: list[float], inverse_range: list[float], exists: list[float]):
    """A prediction of one scene by its heads alone."""
    values = (torch.tensor([v], dtype=torch.float64) for v in (azimuth, elevation, inverse_range, exists))
    factor = torch.zeros(1, 4, 2, dtype=torch.complex128)
    return Prediction(
        **dict(zip(("azimuth", "elevation", "inverse_range", "existence_logits"), values, strict=True)),
        angle_factor=factor,
        range_factor=factor,
        count_logits=torch.zeros(1, 3, dtype=torch.float64),
    )


def sources_at(*places: tuple[float, float, float]) -> Sources:
    azimuth, elevation, distance = torch.tensor(places, dtype=torch.float64).T[:, None]
    return Sources(azimuth=azimuth, elevation=elevation, range=distance)


def huber(x: float) -> float:
    return x * x / 2 if abs(x) <= 1 else abs(x) - 0.5


def test_is_the_least_weighted_sum_over_all_assignments(generator):
    """Written out with loops over scenes, assignments and sources."""
    to = targets(generator)
    prediction = random_prediction(generator, to)
    matched = match_heads(prediction, to.truth, **SETTINGS)
    for scene in range(4):
        truth = to.truth[scene]
        places = truth.active.nonzero()[:, 0].tolist()
        heads = [float(v) for v in prediction.existence_logits[scene]]
        outcomes = []
        for chosen in itertools.permutations(range(4), len(places)):
            angle = log_range = 0.0
            for head, source in zip(chosen, places, strict=True):
                off = [
                    float(getattr(prediction, name)[scene, head] - getattr(truth, name)[source])
                    for name in ("azimuth", "elevation")
                ]
                angle += sum(huber(math.degrees(v) / 5) for v in off) / 2 / len(places)
                ratio = float(prediction.inverse_range[scene, head] * truth.range[source])
                log_range += huber(math.log(ratio) / 0.3) / len(places)
            existence = sum(
                math.log1p(math.exp(-e if q in chosen else e)) for q, e in enumerate(heads)
            ) / len(heads)
            parts = (angle, log_range, existence)
            outcomes.append((sum(w * p for w, p in zip(WEIGHTS, parts, strict=True)), chosen, parts))
        _, chosen, parts = min(outcomes)
        assert matched.partner[scene, places].tolist() == list(chosen)
        found = [float(getattr(matched, name)[scene]) for name in ("angle", "log_range", "existence")]
        assert found == pytest.approx(parts)


def test_zero_at_a_perfect_answer_in_any_order(generator):
    """Mistakes 15 and 18: heads in another order than the sources, and no floor."""
    to = targets(generator)
    matched = match_heads(perfect_prediction(to), to.truth, **SETTINGS)
    for name in ("angle", "log_range", "existence"):
        assert getattr(matched, name).abs().max() < 1e-12, name


def test_order_of_heads_and_sources_does_not_matter(generator):
    """Mistake 15: heads compared by index."""
    to = targets(generator)
    prediction = random_prediction(generator, to)
    reference = match_heads(prediction, to.truth, **SETTINGS)
    heads, sources = torch.tensor([2, 0, 3, 1]), torch.tensor([2, 0, 1])
    names = ("azimuth", "elevation", "inverse_range", "existence_logits")
    shuffled = replace(prediction, **{name: getattr(prediction, name)[:, heads] for name in names})
    truth = to.truth.each(lambda value: value[:, sources])
    other = match_heads(shuffled, truth, **SETTINGS)
    for name in ("angle", "log_range", "existence"):
        torch.testing.assert_close(getattr(other, name), getattr(reference, name))
    active = truth.active
    assert torch.equal(heads[other.partner][active], reference.partner[:, sources][active])


def test_gradients_are_those_of_finite_differences(generator):
    to = targets(generator)
    prediction = random_prediction(generator, to)
    names = ("azimuth", "elevation", "inverse_range", "existence_logits")

    def loss(*values: torch.Tensor) -> torch.Tensor:
        changed = replace(prediction, **dict(zip(names, values, strict=True)))
        matched = match_heads(changed, to.truth, **SETTINGS)
        return 0.7 * matched.angle + 0.4 * matched.log_range + 0.3 * matched.existence

    check_gradient(loss, *(getattr(prediction, name) for name in names), generator=generator)


def test_errors_of_any_size_have_a_gradient():
    """Mistake 14: the pull of a head that is 100 deg off is as strong as that of one 10 deg off."""
    truth = sources_at((0.0, 0.0, 2.0))
    for off_deg in (10.0, 100.0, -100.0):
        azimuth = torch.tensor([[math.radians(off_deg)]], dtype=torch.float64, requires_grad=True)
        prediction = replace(heads_of([0.0], [0.0], [0.01], [0.0]), azimuth=azimuth)
        matched = match_heads(prediction, truth, **SETTINGS)
        (gradient,) = torch.autograd.grad(matched.angle.sum(), azimuth)
        assert float(gradient) == pytest.approx(math.copysign(0.5 / math.radians(5), off_deg))
        assert float(matched.log_range) == pytest.approx(math.log(50) / 0.3 - 0.5)


def test_angles_wrap():
    truth = sources_at((math.radians(1), 0.0, 2.0))
    once = match_heads(heads_of([math.radians(3)], [0.0], [0.5], [0.0]), truth, **SETTINGS)
    around = match_heads(heads_of([math.radians(363)], [0.0], [0.5], [0.0]), truth, **SETTINGS)
    assert float(once.angle) == pytest.approx(huber(2 / 5) / 2)
    torch.testing.assert_close(around.angle, once.angle)


def test_worse_heads_cost_more():
    truth = sources_at((0.2, 0.1, 2.0), (-0.4, 0.0, 1.0))
    values = []
    for worse in (0.0, 0.1, 0.3):
        prediction = heads_of(
            [-0.4 + worse, 0.2], [0.0, 0.1 - worse], [1.0 + worse, 0.5], [5 - 20 * worse, 5.0]
        )
        matched = match_heads(prediction, truth, **SETTINGS)
        values.append([float(v) for v in (matched.angle, matched.log_range, matched.existence)])
    assert all(a < b < c for a, b, c in zip(*values, strict=True))


def test_empty_places_have_no_gradient_and_no_effect(generator):
    to = targets(generator)
    prediction = with_gradient(random_prediction(generator, to, grid=False))
    matched = match_heads(prediction, to.truth, **SETTINGS)
    (matched.angle + matched.log_range).sum().backward()
    for name in ("azimuth", "elevation", "inverse_range"):
        gradient = getattr(prediction, name).grad
        assert gradient.isfinite().all()
        assert (gradient != 0).sum(-1).tolist() == [3, 2, 1, 0]
    # Scene 2 holds one source in three places; alone it costs the same.
    alone = to.truth[2:3].each(lambda value: value[:, 1:2])
    one = Prediction(**{name: value[2:3] for name, value in each_field(prediction).items()})
    again = match_heads(one, alone, **SETTINGS)
    for name in ("angle", "log_range", "existence"):
        torch.testing.assert_close(getattr(again, name), getattr(matched, name)[2:3])


def test_count_divergence_is_the_cross_entropy_less_its_least_value(generator):
    logits = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    count = torch.tensor([0, 1, 2, 3, 3, 0])
    for smoothing in (0.0, 0.1):
        cross = torch.nn.functional.cross_entropy(logits, count, label_smoothing=smoothing, reduction="none")
        label = torch.nn.functional.one_hot(count, 4).double() * (1 - smoothing) + smoothing / 4
        entropy = torch.distributions.Categorical(label).entropy()
        torch.testing.assert_close(count_divergence(logits, count, smoothing), cross - entropy)
        assert count_divergence((label + 1e-30).log(), count, smoothing).abs().max() < 1e-12
    check_gradient(lambda z: count_divergence(z, count, 0.1), logits, generator=generator)


def test_heat_map_target_spreads_sources_over_their_neighbours(generator):
    to = targets(generator, rows=12, columns=12)
    grid, truth = to.grid, to.truth
    assert 0 < (~grid.inside).sum() < len(grid) / 4
    # A source in the corner of the volume, where neighbours are outside.
    truth = truth.each(torch.clone)
    truth.azimuth[0, 0], truth.elevation[0, 0] = 1.04, 0.52
    target = heat_map_target(truth, grid, 0.6)
    assert (target[:, ~grid.inside] == 0).all()
    torch.testing.assert_close(target.sum(-1), torch.tensor([1.0, 1.0, 1.0, 0.0]).double())
    # Written out for the first scene.
    wanted = torch.zeros(len(grid)).double()
    u_x, u_y = grid.azimuth.sin() * grid.elevation.cos(), grid.elevation.sin()
    for k in range(3):
        azimuth, elevation, r = (getattr(truth, n)[0, k] for n in ("azimuth", "elevation", "range"))
        off = (
            (u_x - azimuth.sin() * elevation.cos()) / grid.step[0],
            (u_y - elevation.sin()) / grid.step[1],
            (1 / grid.range - 1 / r) / grid.step[2],
        )
        bump = torch.exp(-sum(o**2 for o in off) / 2 / 0.6**2)
        wanted += bump / bump.sum()
    wanted *= grid.inside
    torch.testing.assert_close(target[0], wanted / wanted.sum(), rtol=1e-5, atol=1e-12)


def test_heat_map_divergence(generator):
    to = targets(generator, rows=12, columns=12)
    grid = to.grid
    target = heat_map_target(to.truth, grid, 0.6)
    logits = torch.randn(4, len(grid), generator=generator, dtype=torch.float64)
    value = heat_map_divergence(logits, target, grid)
    inside = grid.inside
    cross = torch.nn.functional.cross_entropy(logits[:3, inside], target[:3, inside], reduction="none")
    entropy = torch.distributions.Categorical(target[:3, inside]).entropy()
    torch.testing.assert_close(value[:3], cross - entropy)
    assert value[3] == 0  # a scene without a source
    best = target.clamp_min(1e-30).log()
    assert heat_map_divergence(best, target, grid).abs().max() < 1e-12
    torch.testing.assert_close(heat_map_divergence(logits + 7, target, grid), value)
    worse = [heat_map_divergence(best * (1 - t) + logits * t, target, grid)[:3] for t in (0.1, 0.4, 1.0)]
    assert ((worse[0] < worse[1]) & (worse[1] < worse[2])).all()
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(heat_map_divergence(leaf, target, grid).sum(), leaf)
    assert gradient.isfinite().all()
    assert (gradient[:, ~inside] == 0).all()
    check_gradient(lambda z: heat_map_divergence(z, target, grid), logits, generator=generator)


def test_heat_map_of_a_source_outside_the_volume_is_finite(generator):
    to = targets(generator)
    far = sources_at((1.5, 1.2, 0.2))
    target = heat_map_target(far, to.grid, 0.6)
    assert target.isfinite().all()
