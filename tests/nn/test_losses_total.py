"""The total: what reaches the network, what is left at the truth, and what is refused."""

from __future__ import annotations

import copy
import math
from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from loss_scenes import (
    TRUTH,
    VOLUME,
    check_gradient,
    each_field,
    perfect_prediction,
    random_complex,
    random_prediction,
    targets,
    with_gradient,
)

from rismusic.covariance import Conditioning, Covariance, load_and_shrink, recording_covariance
from rismusic.errors import InputError
from rismusic.estimation.grid import SearchGrid
from rismusic.nn.losses import Targets, check_start, covariance_error, total_loss
from rismusic.nn.network import Prediction
from rismusic.nn.spec import LossSpec
from rismusic.simulation.simulator import simulate
from rismusic.spec import SystemSpec

SPEC = LossSpec()
EVERY = {**SPEC.weights, "peak_contrast": 0.1}
STRUCTURE = {"covariance", "subspace", "eigengap", "peak_contrast"}
FIELDS = (
    "angle_factor",
    "range_factor",
    "count_logits",
    "azimuth",
    "elevation",
    "inverse_range",
    "existence_logits",
    "grid_logits",
)


def without_noise(to: Targets) -> Targets:
    """R_samp replaced by R_true, and no conditioning: in tests only."""
    nothing = torch.zeros(len(to), dtype=torch.float64)
    return replace(to, sample=to.true, conditioning=Conditioning(nothing, nothing))


def test_nothing_is_left_at_a_perfect_prediction_and_sample(generator):
    """Mistake 18: a floor above zero."""
    to = without_noise(targets(generator))
    for beta in (0.0, 0.3, 1.0):
        losses = total_loss(perfect_prediction(to), to, SPEC, beta=beta, weights=EVERY)
        assert set(losses.terms) == set(EVERY)
        for name, value in losses.terms.items():
            assert value.abs() < 1e-12, name
        for name, value in losses.oracle.items():
            assert value.abs() < 1e-12, name
        assert losses.total.abs() < 1e-12


def test_oracle_is_the_value_at_a_perfect_prediction(generator):
    to = targets(generator)
    perfect = total_loss(perfect_prediction(to), to, SPEC, beta=0.3, weights=EVERY)
    other = total_loss(random_prediction(generator, to), to, SPEC, beta=0.3, weights=EVERY)
    assert set(other.oracle) == STRUCTURE
    for name in STRUCTURE:
        torch.testing.assert_close(perfect.terms[name], other.oracle[name], msg=name)
        assert other.oracle[name] > 0
        assert other.terms[name] > other.oracle[name], name
    assert not total_loss(perfect_prediction(to), to, SPEC, beta=0.3, oracle=False).oracle


def test_the_blend_and_the_truth_are_conditioned_alike(generator):
    """At beta = 0 a loading changes neither side of the comparison: the error stays 0."""
    to = targets(generator, loading=0.2)
    losses = total_loss(perfect_prediction(to), to, SPEC, beta=0.0, weights=EVERY)
    for name in ("covariance", "eigengap", "peak_contrast"):
        assert losses.terms[name].abs() < 1e-12, name
    # Written out from the builder for a random prediction.
    prediction = random_prediction(generator, to)
    R = prediction.covariance.dense() * 0.7 + to.sample.dense() * 0.3
    share = to.conditioning.identity[:, None, None]
    eye = torch.eye(20) / 20
    blended = (1 - share) * R + share * eye
    built = prediction.blended(to.sample, to.conditioning, 0.3)
    torch.testing.assert_close(built.dense(), blended)
    torch.testing.assert_close(to.conditioned.dense(), (1 - share) * to.true.dense() + share * eye)
    losses = total_loss(prediction, to, SPEC, beta=0.3)
    error = covariance_error(built, to.conditioned)
    torch.testing.assert_close(losses.terms["covariance"], error[:3].sum() / 4)


def test_total_is_the_weighted_sum(generator):
    to = targets(generator)
    losses = total_loss(random_prediction(generator, to), to, SPEC, beta=0.3, weights=EVERY)
    assert losses.weights == EVERY
    torch.testing.assert_close(losses.total, sum(EVERY[name] * losses.terms[name] for name in EVERY))
    off = {**EVERY, "heat_map": 0.0, "cross": 0.0}
    kept = total_loss(random_prediction(generator, to), to, SPEC, beta=0.3, weights=off)
    assert set(EVERY) - set(kept.terms) == {"heat_map", "cross"}


def test_every_field_learns_from_finite_differences(generator):
    to = targets(generator, rows=3, columns=3)
    prediction = random_prediction(generator, to)

    def loss(*values: torch.Tensor) -> torch.Tensor:
        changed = Prediction(**dict(zip(FIELDS, values, strict=True)))
        return total_loss(changed, to, SPEC, beta=0.3, weights=EVERY, oracle=False).total

    check_gradient(loss, *(getattr(prediction, name) for name in FIELDS), generator=generator)


def test_a_batch_is_the_mean_of_its_scenes(generator):
    to = targets(generator)
    prediction = random_prediction(generator, to)
    whole = total_loss(prediction, to, SPEC, beta=0.3, weights=EVERY)
    alone = [
        total_loss(prediction[s : s + 1], to[s : s + 1], SPEC, beta=0.3, weights=EVERY) for s in range(4)
    ]
    for name in EVERY:
        torch.testing.assert_close(whole.terms[name], sum(one.terms[name] for one in alone) / 4)
    for name in STRUCTURE:
        torch.testing.assert_close(whole.oracle[name], sum(one.oracle[name] for one in alone) / 4)


def test_order_and_number_of_places_do_not_matter(generator):
    """Mistake 15, for the total: places of sources shuffled, columns of factors shuffled and turned."""
    to = targets(generator)
    prediction = random_prediction(generator, to)
    reference = total_loss(prediction, to, SPEC, beta=0.3, weights=EVERY)
    order = torch.tensor([1, 2, 0])
    turned = torch.polar(torch.ones(3), torch.tensor([1.0, -2.0, 0.4])).to(torch.complex128)
    shuffled = replace(
        prediction,
        angle_factor=prediction.angle_factor[..., order] * turned,
        range_factor=prediction.range_factor[..., order] * turned,
    )
    moved = replace(to, truth=to.truth.each(lambda value: value[:, order]), steering=to.steering[..., order])
    other = total_loss(shuffled, moved, SPEC, beta=0.3, weights=EVERY)
    for name in EVERY:
        torch.testing.assert_close(other.terms[name], reference.terms[name], msg=name)


def test_a_scene_without_sources_teaches_only_that_it_is_empty(generator):
    to = targets(generator)[3:]
    prediction = with_gradient(random_prediction(generator, to))
    losses = total_loss(prediction, to, SPEC, beta=0.3, weights=EVERY)
    for name in (*STRUCTURE, "covariance_predicted", "angle", "log_range", "heat_map"):
        assert losses.terms[name] == 0, name
    losses.total.backward()
    for value in each_field(prediction).values():
        assert value.grad is None or value.grad.isfinite().all()
    assert (prediction.count_logits.grad != 0).all()
    assert (prediction.existence_logits.grad > 0).all()


def test_nothing_is_swallowed(generator):
    """Mistake 3: bad numbers in, bad numbers out; bad shapes are an error."""
    to = targets(generator)
    prediction = random_prediction(generator, to)
    for name in ("angle_factor", "azimuth", "count_logits", "grid_logits"):
        bad = getattr(prediction, name).clone()
        bad[0, 1] = math.nan
        spoiled = replace(prediction, **{name: bad})
        # The eigenvalue solver refuses a matrix of NaN; everything else hands it on.
        quiet = {**EVERY, "eigengap": 0.0}
        assert total_loss(spoiled, to, SPEC, beta=0.3, weights=quiet, oracle=False).total.isnan()
    random = total_loss(prediction, to, SPEC, beta=0.3, weights=EVERY)
    assert all(value > 1e-3 for value in random.terms.values())


def test_no_gradient_reaches_sample_or_truth(generator):
    """Mistake 7: R_samp is taken as it is."""
    to = targets(generator)
    leaf = to.sample.factor.clone().requires_grad_()
    watched = replace(to, sample=Covariance(leaf, to.sample.loading))
    prediction = with_gradient(random_prediction(generator, to))
    losses = total_loss(prediction, watched, SPEC, beta=0.3, weights=EVERY)
    losses.total.backward()
    assert leaf.grad is None


def test_the_network_cannot_hide_behind_the_sample(generator):
    """At beta = 1 the blend says nothing of R_pred; its own term does."""
    to = targets(generator)
    prediction = with_gradient(random_prediction(generator, to))
    only = dict.fromkeys(EVERY, 0.0) | {"covariance": 1.0}
    losses = total_loss(prediction, to, SPEC, beta=1.0, weights=only)
    losses.total.backward()
    assert (prediction.angle_factor.grad == 0).all()
    losses = total_loss(prediction, to, SPEC, beta=1.0, weights=only | {"covariance_predicted": 0.05})
    losses.total.backward()
    assert (prediction.angle_factor.grad[:3] != 0).any((-2, -1)).all()


@pytest.fixture(scope="module")
def simulated():
    """Scenes of the default system, as the training meets them, with the grid and their targets."""
    recording = simulate(SystemSpec(), scenes=6, seed=5)
    grid = SearchGrid.cover(recording.panel, VOLUME)
    return recording, Targets.of(recording, grid)


def test_targets_hold_the_sample_of_inference_and_the_truth(simulated):
    """Mistake 7: R_samp comes from the snapshots; another truth leaves it as it was."""
    recording, to = simulated
    finished = load_and_shrink(to.sample, to.conditioning)
    inference = recording_covariance(recording)
    torch.testing.assert_close(finished.dense(), inference.dense(), rtol=1e-5, atol=1e-7)
    truth = recording.truth
    other = replace(truth, azimuth=truth.azimuth / 2, power=truth.power * 2)
    again = Targets.of(replace(recording, truth=other), to.grid)
    assert torch.equal(again.sample.factor, to.sample.factor)
    assert not torch.allclose(again.true.factor, to.true.factor)
    dense = torch.zeros(6, 144, 144, dtype=torch.complex64)
    for scene in range(6):
        for k in truth.active[scene].nonzero()[:, 0].tolist():
            a = truth.steering(recording.panel)[scene, :, k]
            dense[scene] += truth.power[scene, k] * torch.outer(a, a.conj())
    dense = dense / dense.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    torch.testing.assert_close(to.true.dense(), dense)


def test_targets_ask_for_truth_and_powers(simulated):
    recording, to = simulated
    with pytest.raises(InputError, match="truth: the recording has no true sources"):
        Targets.of(replace(recording, truth=None), to.grid)
    bare = replace(recording.truth, power=None, symbols=None)
    with pytest.raises(InputError, match="truth/power"):
        Targets.of(replace(recording, truth=bare), to.grid)


def test_noise_is_estimated_where_it_is_not_recorded(simulated):
    recording, to = simulated
    guessed = Targets.of(replace(recording, noise_variance=None), to.grid)
    assert not torch.equal(guessed.conditioning.loading, to.conditioning.loading)
    given = Targets.of(replace(recording, noise_variance=None), to.grid, recording.noise_variance)
    assert torch.equal(given.sample.factor, to.sample.factor)


def test_single_precision_agrees_with_double(generator, simulated):
    """Each term and each gradient to 3e-5 of itself (4e-6 were measured on 64 scenes)."""
    _, single = simulated
    prediction = random_prediction(generator, single, heads=5, most=5)
    double = as_double(single)
    results = {}
    for name, to, change in (
        ("double", double, lambda v: v.clone()),
        ("single", single, lambda v: v.to(torch.complex64 if v.is_complex() else torch.float32)),
    ):
        cast = with_gradient(Prediction(**{k: change(v) for k, v in each_field(prediction).items()}))
        losses = total_loss(cast, to, SPEC, beta=0.3, weights=EVERY)
        gradients = torch.autograd.grad(losses.total, list(each_field(cast).values()))
        results[name] = losses, dict(zip(each_field(cast), gradients, strict=True))
    for name in EVERY:
        one, two = (results[kind][0].terms[name].double() for kind in ("single", "double"))
        assert abs(one - two) <= 3e-5 * abs(two), name
    for name in FIELDS:
        one, two = (results[kind][1][name] for kind in ("single", "double"))
        assert (one - two).norm() <= 3e-5 * two.norm(), name


def as_double(to: Targets) -> Targets:
    def wide(covariance: Covariance) -> Covariance:
        return Covariance(covariance.factor.to(torch.complex128), covariance.loading.double())

    truth = to.truth.each(lambda value: value.double())
    return replace(
        to,
        truth=truth,
        steering=to.steering.to(torch.complex128),
        true=wide(to.true),
        sample=wide(to.sample),
        conditioning=Conditioning(to.conditioning.loading.double(), to.conditioning.shrinkage.double()),
    )


def test_the_host_never_waits_and_lends_no_tensor(generator, simulated):
    """On the meta device there are shapes but no values: asking for one, or mixing devices, is an error.

    Of all that runs here only ``eigvalsh`` waits on a GPU, for its own error code.
    """
    _, single = simulated

    def on_meta(value):
        if isinstance(value, torch.Tensor):
            return value.to("meta")
        if is_dataclass(value):
            moved = copy.copy(value)
            for field in fields(value):
                object.__setattr__(moved, field.name, on_meta(getattr(value, field.name)))
            return moved
        return value

    to = on_meta(single)
    prediction = on_meta(random_prediction(generator, single, heads=5, most=5))
    cast = {
        k: v.to(torch.complex64 if v.is_complex() else torch.float32) for k, v in vars(prediction).items()
    }
    prediction = with_gradient(Prediction(**cast))
    losses = total_loss(prediction, to, SPEC, beta=0.3, weights=EVERY)
    losses.total.backward()
    assert all(value.grad.is_meta for value in each_field(prediction).values())
    with pytest.raises(RuntimeError):
        losses.total.item()


def test_start_is_refused_where_an_output_learns_nothing(generator, untyped):
    to = targets(generator)

    def started(prediction: Prediction, **settings: float) -> None:
        losses = total_loss(prediction, to, SPEC.replace(**settings), beta=0.3)
        check_start(losses, prediction)

    whole = with_gradient(random_prediction(generator, to))
    started(whole)
    with pytest.raises(InputError, match=r"prediction\.grid_logits: no loss of positive weight"):
        started(whole, heat_map=0.0)
    with pytest.raises(InputError, match=r"prediction\.count_logits: no loss"):
        started(whole, count=0.0)
    with pytest.raises(InputError, match="nothing to train"):
        started(random_prediction(generator, to))
    with pytest.raises(InputError, match=r"prediction\.azimuth: the output is constant"):
        started(replace(whole, azimuth=whole.azimuth.detach()))
    # A factor of zeros is a stationary point of A A^H: it would never move.
    still = torch.zeros_like(whole.range_factor, requires_grad=True)
    with pytest.raises(InputError, match=r"prediction\.range_factor: no loss"):
        started(replace(whole, range_factor=still))
    spoiled = whole.azimuth.detach().clone()
    spoiled[0, 0] = math.nan
    with pytest.raises(InputError, match="the total must be finite"):
        started(replace(whole, azimuth=spoiled.requires_grad_()))


def test_mismatches_are_refused_in_one_sentence(generator, untyped):
    to = targets(generator)
    prediction = random_prediction(generator, to)
    with pytest.raises(InputError, match="4 scenes like the targets; got 3"):
        total_loss(prediction[:3], to, SPEC, beta=0.3)
    small = targets(generator, rows=3, columns=3)
    with pytest.raises(InputError, match="N = 20 elements like the targets; got 9"):
        total_loss(random_prediction(generator, small), to, SPEC, beta=0.3)
    with pytest.raises(InputError, match="at most K_max = 2 sources are supported; got 3"):
        total_loss(random_prediction(generator, to, most=2), to, SPEC, beta=0.3)
    with pytest.raises(InputError, match=r"grid_logits: must have P = \d+ points like the grid; got 2"):
        total_loss(replace(prediction, grid_logits=torch.zeros(4, 1, 2).double()), to, SPEC, beta=0.3)
    with pytest.raises(InputError, match=r"loss\.angle: the weight must be finite and not negative; got -1"):
        total_loss(prediction, to, SPEC, beta=0.3, weights={"angle": -1.0})
    with pytest.raises(InputError, match="the weight must be positive"):
        total_loss(prediction, to, SPEC, beta=0.3, weights={"covariance": 0.0})
    with pytest.raises(InputError, match=r"prediction\.range_factor: must have shape \[4, 20, 3\]"):
        replace(prediction, range_factor=random_complex(generator, 4, 20, 2))
    with pytest.raises(InputError, match=r"prediction\.count_logits: must have shape \[4, 4\]"):
        replace(prediction, count_logits=torch.zeros(4, 3).double())


def test_truth_may_have_fewer_places_than_the_network(generator):
    to = targets(generator, TRUTH[1:3].each(lambda value: value[:, [0, 1]]))
    losses = total_loss(random_prediction(generator, to, heads=6, most=4), to, SPEC, beta=0.3, weights=EVERY)
    assert losses.total.isfinite()


def test_prediction_keeps_its_covariance_at_trace_one(generator):
    to = targets(generator)
    prediction = random_prediction(generator, to)
    torch.testing.assert_close(prediction.covariance.trace, torch.ones(4).double())
    A, B = prediction.angle_factor, prediction.range_factor
    dense = A @ A.mH + 0.3 * B @ B.mH
    trace = dense.diagonal(dim1=-2, dim2=-1).real.sum(-1)
    torch.testing.assert_close(prediction.covariance.dense(), dense / trace[:, None, None])
    assert not with_gradient(prediction).detach().azimuth.requires_grad
    assert len(prediction[1:3]) == 2
