"""Checks of covariances, losses and their gradients, before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial

import torch
from torch import Tensor

from rismusic.doctor import references as ref
from rismusic.doctor.case import Case
from rismusic.doctor.function_definitions import loss_terms
from rismusic.doctor.hypotheses import explanation, given
from rismusic.doctor.report import Findings, report_of
from rismusic.doctor.state import real_view
from rismusic.io import Recording
from rismusic.nn import learner as learner_module
from rismusic.nn import monitors as probes
from rismusic.nn.losses import Losses, Targets
from rismusic.nn.monitors import Finding, Report, at_most
from rismusic.nn.network import Prediction
from rismusic.nn.spec import TermName

# Relative difference of singular values from one to the next, where eigenvalues nearly agree.
_EIGENGAP_SPREAD = 0.01
# Scenes whose losses are calculated densely.
_SCENES = 8
# Largest relative distance of R_samp from that of explicit matrices.
_BACK_PROJECTED = 1e-2
# Step of the finite differences.
_DIFFERENCE = 1e-5
# Losses with a gradient in every scene that has a source.
_GRADIENT_IN_EVERY_SCENE = (
    *("covariance", "covariance_predicted", "subspace", "count"),
    *("heat_map", "existence", "angle", "log_range"),
)


def check_sample_covariance(case: Case) -> Report:
    """[R_SAMP]: R_samp of the targets against back projections by explicit matrices G_l."""
    recording = case.recording
    targets = Targets.of(recording, case.learner.grid)
    found = ref.unit_trace(targets.sample.dense().to(torch.complex128).cpu())
    define = partial(_sample_covariance, recording, targets)
    off = float(ref.relative_distance(found, define()).mean())
    cause = explanation([found], [define], 1e-3) if off > _BACK_PROJECTED else ""
    finding = at_most(
        "relative distance of R_samp from the back projection of the snapshots through G_l",
        off,
        _BACK_PROJECTED,
        f"R_samp is not the mean of x_l x_l^H{cause}.",
        "Build it with rismusic.covariance.sample_covariance, from snapshots, channel and codes alone.",
    )
    return report_of("R_SAMP", f"distance {off:.1e} from explicit matrices", [finding])


def _sample_covariance(recording: Recording, targets: Targets) -> Tensor:
    """R_samp by explicit matrices, and what may stand in its place."""
    assert recording.noise_variance is not None
    given("R_true of the labels (a leak)", ref.unit_trace(targets.true.dense().to(torch.complex128)))
    if recording.channel is not None and recording.codes is not None:
        H, c = (part.to(torch.complex128) for part in (recording.channel, recording.codes))
        Hc = (H @ c.mT).mT
        other = ref.covariance_of((recording.snapshots * Hc.conj()).sum(-1, keepdim=True) * c)
        given("a matrix built from H c_l [L, M] instead of (H, c_l)", other)
    field, _ = ref.back_projection(ref.operators(recording), recording.snapshots, recording.noise_variance)
    field = given("the back-projected snapshots", field)
    return given("R_samp", ref.covariance_of(field))


def every_weight(case: Case) -> dict[TermName, float]:
    """Weights with all terms on: those in use as they are, the others at 0.1."""
    return {name: weight or 0.1 for name, weight in case.spec.loss.weights.items()}


def total_of(case: Case, prediction: Prediction, targets: Targets, beta: float = 0.3) -> Losses:
    """All loss terms of a prediction, by the function that the learner uses."""
    return vars(learner_module)["total_loss"](
        prediction, targets, case.spec.loss, beta=beta, weights=every_weight(case), oracle=False
    )


def _gapless(targets: Targets, like: Prediction) -> Prediction:
    """A prediction whose eigenvalues from that of source K on are small and nearly agree: the hinge acts."""
    random = ref.random_prediction(like)
    U = torch.linalg.qr(random.angle_factor).Q
    column = torch.arange(U.shape[-1], device=U.device)
    sizes = torch.where(column < targets.count[:, None] - 1, 1.0, 0.1 * (1 - _EIGENGAP_SPREAD * column))
    factor = U * sizes[:, None].to(U.dtype)
    return replace(random, angle_factor=factor, range_factor=torch.zeros_like(random.range_factor))


def trial_losses(case: Case) -> None:
    """Every loss of a prediction without an eigengap, and of a random one with much of R_samp."""
    recording = case.recording[: min(_SCENES, len(case.recording))]
    targets = Targets.of(recording, case.learner.grid)
    like = case.learner.predict(recording, averaged=False)
    total_of(case, _gapless(targets, like), targets, beta=0.0)
    total_of(case, ref.random_prediction(like, seed=1), targets, beta=0.6)


def check_gradients(case: Case) -> Report:
    """[SLOPE]: gradients of each loss: equal to finite differences, finite, and non-zero in every scene."""
    recording = ref.recording_in_double(case.recording)
    targets = Targets.of(recording, case.learner.grid)
    own = ref.doubled(case.learner.predict(case.recording, averaged=False))
    findings = Findings()
    idle = dict.fromkeys(_GRADIENT_IN_EVERY_SCENE, 0.0)
    for random in (True, False):
        prediction = ref.random_prediction(own) if random else own
        leaves = {
            field.name: value.detach().clone().requires_grad_()
            for field in fields(Prediction)
            if (value := getattr(prediction, field.name)) is not None
        }
        losses = total_of(case, replace(prediction, **leaves), targets)
        for name, loss in losses.terms.items():
            gradients = gradients_by(leaves, loss)
            if name in _GRADIENT_IN_EVERY_SCENE:
                zero = torch.stack([g.abs().flatten(1).amax(1) for g in gradients.values()]).amax(0) == 0
                idle[name] = max(idle[name], float(zero[targets.count.cpu() > 0].double().mean()))
            if not random:
                continue
            bad = [key for key, g in gradients.items() if not bool(g.isfinite().all())]
            findings.must_be_zero(
                f"outputs for which the gradient of loss {name} is not finite",
                len(bad),
                f"the gradient by {', '.join(bad)} is not finite: through eigenvectors, or a root at 0?",
                "Project on the true steering vectors. No gradient may flow through eigenvectors.",
            )
            if not bad and name != "eigengap":
                findings.append(_finite_difference(case, prediction, targets, name, gradients))
    if "eigengap" in losses.terms:
        start = _gapless(targets, own)
        leaf = start.angle_factor.detach().requires_grad_()
        loss = total_of(case, replace(start, angle_factor=leaf), targets).terms["eigengap"]
        slope = gradients_by({"angle_factor": leaf}, loss)
        findings.append(_finite_difference(case, start, targets, "eigengap", slope))
    findings += [
        at_most(
            f"share of the scenes in which loss {name} has no gradient",
            share,
            0.05,
            "the network learns nothing from these scenes: is the loss clamped, or cut off by a threshold?",
            "Use a loss whose gradient neither vanishes nor grows with the error (Huber), without a clamp.",
        )
        for name, share in idle.items()
        if name in losses.terms
    ]
    return report_of("SLOPE", f"{len(losses.terms)} losses", findings)


def gradients_by(leaves: Mapping[str, Tensor], loss: Tensor) -> dict[str, Tensor]:
    """Gradient of a number by each tensor; zeros where there is none."""
    if not loss.requires_grad:
        return {name: torch.zeros_like(value) for name, value in leaves.items()}
    found = torch.autograd.grad(
        loss, list(leaves.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, found, strict=True))


def _flat(gradients: Mapping[str, Tensor]) -> Tensor:
    """All gradients as one vector of real numbers."""
    return torch.cat([real_view(g).flatten().double().cpu() for g in gradients.values()])


def _finite_difference(
    case: Case, prediction: Prediction, targets: Targets, name: TermName, gradients: dict[str, Tensor]
) -> Finding:
    """Change of a loss along a fixed direction against its gradient."""
    generator = torch.Generator().manual_seed(1)
    size = sum(float(g.abs().square().sum()) for g in gradients.values()) ** 0.5
    direction = {}
    for key, g in gradients.items():
        # Mostly along the gradient; the random part shows what the gradient leaves out.
        noise = torch.randn(g.shape, generator=generator, dtype=g.dtype)
        direction[key] = (g / size if size else 0.0) + 0.3 * noise / noise.norm()

    def at(step: float) -> float:
        moved = {key: getattr(prediction, key) + step * way for key, way in direction.items()}
        return float(total_of(case, replace(prediction, **moved), targets).terms[name])

    with torch.no_grad():
        rise = (at(_DIFFERENCE) - at(-_DIFFERENCE)) / (2 * _DIFFERENCE)
    expected = sum(float((g.conj() * direction[key]).real.sum()) for key, g in gradients.items())
    off = abs(rise - expected) / max(abs(rise), abs(expected), 1e-9)
    limit, cause = 0.05, ""
    if off > limit:

        def define() -> Tensor:
            with torch.enable_grad():
                leaves = {
                    key: getattr(prediction, key).detach().clone().requires_grad_() for key in gradients
                }
                weights = {str(key): value for key, value in every_weight(case).items()}
                loss = loss_terms(replace(prediction, **leaves), targets, 0.3, weights)[name]()
                return _flat(gradients_by(leaves, torch.as_tensor(loss)))

        cause = explanation([_flat(gradients)], [define])
    return at_most(
        f"relative error of the gradient of loss {name} against finite differences",
        off,
        limit,
        f"the gradient is not that of the loss{cause or ': detached, reversed, or clamped?'}.",
        "Let autograd differentiate the whole loss. Detach R_samp only.",
    )


def check_symmetry(case: Case) -> Report:
    """[SYMMETRY]: losses do not depend on the order of sources and heads, and are means over the scenes."""
    recording, learner = case.recording, case.learner
    weights = every_weight(case)
    truth = recording.truth
    assert truth is not None

    def terms(prediction: Prediction, scenes: Recording) -> dict[str, float]:
        losses = learner.prediction_losses(prediction, scenes, 0.3, weights)
        return {"total": float(losses.total), **{n: float(v) for n, v in losses.terms.items()}}

    with torch.no_grad():
        prediction = ref.random_prediction(learner.predict(recording, averaged=False))
        base = terms(prediction, recording)
        sources = terms(prediction, replace(recording, truth=truth.each(lambda value: value.flip(1))))
        names = ("azimuth", "elevation", "inverse_range", "existence_logits")
        heads = terms(replace(prediction, **{n: getattr(prediction, n).flip(1) for n in names}), recording)
        twice = torch.arange(len(recording)).repeat(2)
        doubled = terms(prediction[twice], recording[twice])
    weighted = sum(weights.get(n, 0.0) * v for n, v in base.items() if n != "total")  # type: ignore[call-overload]

    def largest_change(other: dict[str, float]) -> tuple[float, str]:
        return max((abs(other[n] - v) / max(abs(v), 1e-3), n) for n, v in base.items())

    findings = Findings()
    for what, other in (("sources", sources), ("heads", heads)):
        change, name = largest_change(other)
        meaning = f"loss {name} compares the {what} by index, not as a set. Unmatched heads learn the mean."
        findings.at_most(
            f"largest relative change of a loss when the order of the {what} changes", change, 1e-3, meaning
        )
    change, name = largest_change(doubled)
    meaning = f"the loss {name} is a sum over the scenes, not a mean. Its size depends on the batch size."
    findings.at_most("largest relative change of a loss when every scene is repeated", change, 1e-3, meaning)
    findings.at_most(
        "relative error of the total against the weighted sum of its terms",
        abs(base["total"] - weighted) / max(abs(weighted), 1e-9),
        1e-3,
        "the total loss is not the weighted sum of its terms (a factor, a sign, or a missing term?).",
    )
    return report_of("SYMMETRY", "order of sources and heads, number of scenes, total", findings)


def check_loss_sizes(case: Case) -> Report:
    """[LOSS]: the total before the first step, and each term with its weight."""
    with torch.no_grad():
        losses = case.learner.losses(case.recording, 0.0, case.spec.loss.weights)
    terms: dict[str, float] = {name: float(value) for name, value in losses.terms.items()}
    first = probes.first_loss(float(losses.total))
    shares = probes.losses(terms, losses.weights)
    return Report("LOSS", first.text, {**first.values, **shares.values}, first.findings + shares.findings)
