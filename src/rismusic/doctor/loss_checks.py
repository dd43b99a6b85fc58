"""Checks of covariances, losses and their gradients, before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

import torch
from torch import Tensor

from rismusic.covariance import Conditioning, Covariance
from rismusic.doctor import references as ref
from rismusic.doctor.case import Case
from rismusic.doctor.report import must_be_zero, report_of
from rismusic.estimation import spectra
from rismusic.estimation.grid import to_cosines
from rismusic.estimation.spectra import music
from rismusic.io import Recording
from rismusic.metrics import match
from rismusic.nn import learner as learner_module
from rismusic.nn import monitors as probes
from rismusic.nn.losses import Losses, Targets
from rismusic.nn.monitors import Finding, Report, at_least, at_most
from rismusic.nn.network import Prediction
from rismusic.nn.spec import TermName

# Relative difference of singular values from one to the next, and relative length of a step down the eigengap
# loss, which must not pass the point where eigenvalues cross.
_EIGENGAP_SPREAD, _EIGENGAP_STEP = 0.01, 1e-3
# Constants of the doctor, deliberately not taken from the code under test: the largest share of the identity
# in a conditioned covariance, and the largest required eigengap.
_IDENTITY_MAX, _EIGENGAP_MARGIN = 0.25, 0.1
# Step of the finite differences.
_DIFFERENCE = 1e-5
# Losses with a gradient in every scene that has a source.
_GRADIENT_IN_EVERY_SCENE = (
    "covariance",
    "covariance_predicted",
    "subspace",
    "count",
    "heat_map",
    "existence",
    "angle",
    "log_range",
)


def check_sample_covariance(case: Case) -> Report:
    """[R_SAMP]: R_samp of the targets against back projections by explicit matrices G_l."""
    recording = case.recording
    targets = Targets.of(recording, case.learner.grid)
    found = ref.unit_trace(targets.sample.dense().to(torch.complex128).cpu())
    candidates = _sample_covariance_candidates(recording, targets)
    off = {name: float(ref.relative_distance(found, matrix).mean()) for name, matrix in candidates.items()}
    truth = recording.truth
    assert truth is not None
    other_labels = replace(recording, truth=truth.each(lambda value: value.flip(0)))
    other = Targets.of(other_labels, case.learner.grid)
    # Projector on the span of the true steering vectors.
    A = targets.steering.to(torch.complex128).cpu()
    projector = A @ torch.linalg.pinv(A, rtol=1e-6)
    inside = float(torch.einsum("snm,smn->s", projector, found).real.mean())
    coverage = min(1.0, recording.snapshots.shape[-1] / found.shape[-1])
    findings = [
        at_most(
            "relative distance of R_samp from the back projection of the snapshots through G_l",
            off[ref.EXPECTED],
            1e-2,
            f"R_samp is not the mean of x_l x_l^H{ref.best_explanation(off)}.",
            "Build it with rismusic.covariance.sample_covariance, from snapshots, channel and codes alone.",
        ),
        at_most(
            "change of R_samp when the labels are replaced by those of other scenes",
            float(ref.relative_distance(other.sample.dense(), targets.sample.dense()).max()),
            1e-6,
            "R_samp depends on the labels (a leak). At inference there are none.",
            "Build R_samp from the snapshots.",
        ),
        at_most(
            "largest share of the identity in R_samp and R_true after loading and shrinkage",
            float(targets.conditioning.identity.max()),
            _IDENTITY_MAX + 1e-3,
            "loading and shrinkage are so large that the identity hides the sources: half of the matrix?",
            "Load by the noise's share, at most a quarter of the trace.",
        ),
        at_least(
            "energy of R_samp in the true sources' subspace, over the share that M outputs can recover",
            inside / coverage,
            0.4,
            "R_samp contains little of the true sources.",
            "Compare R_samp with R_true on noise-free data: conjugated, reordered, or centred?",
        ),
    ]
    return report_of("R_SAMP", f"distance {off[ref.EXPECTED]:.1e} from explicit matrices", findings)


def _sample_covariance_candidates(recording: Recording, targets: Targets) -> dict[str, Tensor]:
    """The correct R_samp, and those of known mistakes."""
    assert recording.noise_variance is not None
    field = ref.back_projection(ref.operators(recording), recording.snapshots, recording.noise_variance)
    R = ref.covariance_of(field)
    N = R.shape[-1]
    candidates = {
        ref.EXPECTED: R,
        ": it is R_true, taken from the labels (a leak)": ref.unit_trace(
            targets.true.dense().to(torch.complex128)
        ),
        ": the mean over the snapshots was subtracted (centred)": ref.covariance_of(
            field - field.mean(1, keepdim=True)
        ),
        ": its sign is reversed": -R,
        ": it is conjugated": R.conj(),
        ": it is the identity": torch.eye(N, dtype=R.dtype).expand_as(R) / N,
    }
    if recording.channel is not None and recording.codes is not None:
        H, c = (part.to(torch.complex128) for part in (recording.channel, recording.codes))
        without_codes = recording.snapshots.to(torch.complex128) @ H.conj()
        candidates[": the codes were left out (H alone)"] = ref.covariance_of(without_codes)
        Hc = (H @ c.mT).mT
        weight = (recording.snapshots * Hc.conj()).sum(-1, keepdim=True)
        candidates[": it is built from H c_l [L, M] instead of (H, c_l)"] = ref.covariance_of(weight * c)
    return candidates


def check_music_ceiling(case: Case) -> Report:
    """[CEILING]: MUSIC on R_true with the true number of sources, the best that a network can lead to."""
    recording, grid = case.recording, case.learner.grid
    truth = recording.truth
    assert truth is not None
    targets = Targets.of(recording, grid)
    spectrum = music(targets.true, targets.count.clamp_min(1))
    found, _ = spectra.rap_music_sources(spectrum, grid, targets.count)
    hits = match(truth, found)
    exact = to_cosines(*truth.filled())
    estimated = to_cosines(*(value.gather(1, hits.partner.clamp_min(0)) for value in found.filled()))
    errors = torch.stack(
        [(a - b).abs() / step for a, b, step in zip(exact, estimated, grid.step, strict=True)]
    ).amax(0)[hits.hit]
    share = float(hits.hit.sum() / hits.true_count.sum())
    findings = [
        at_least(
            "share of the sources that MUSIC finds on R_true",
            share,
            0.75,
            "MUSIC on the exact covariance misses sources. Steering, search and R_true do not match.",
            "Compare the steering vectors of search, labels and simulator.",
        ),
        at_most(
            "median error of MUSIC on R_true, in grid steps",
            float(errors.median()) if len(errors) else float("nan"),
            0.5,
            "the error of MUSIC on R_true exceeds half a grid step.",
            "Check that the peaks are refined and that labels and search use the same coordinates.",
        ),
    ]
    return report_of("CEILING", f"MUSIC on R_true finds {share:.0%}", findings)


def check_blend(case: Case) -> Report:
    """[BLEND]: the covariance loss in use against the error of R_blend from dense matrices."""
    recording, learner = case.recording, case.learner
    findings = []
    with torch.no_grad():
        prediction = learner.predict(recording, averaged=False)
        targets = Targets.of(recording, learner.grid)
        predicted, sample, true = (
            ref.unit_trace(part.dense().to(torch.complex128))
            for part in (prediction.covariance, targets.sample, targets.true)
        )
        for beta in (0.0, 0.3):
            loss = float(
                learner.prediction_losses(prediction, recording, beta, case.spec.loss.weights).terms[
                    "covariance"
                ]
            )
            candidates = {
                ref.EXPECTED: (1 - beta) * predicted + beta * sample,
                ": it is that of R_pred alone, without R_samp (the raw factors)": predicted,
                ": R_true stands in place of R_samp (a leak)": (1 - beta) * predicted + beta * true,
                ": it is that of R_samp alone": sample,
            }
            off = {}
            for name, matrix in candidates.items():
                value = _dense_error(matrix, true, targets)
                off[name] = abs(loss - value) / max(value, 1e-6)
            findings.append(
                at_most(
                    f"relative error of the covariance loss at beta = {beta:g} against dense matrices",
                    off[ref.EXPECTED],
                    1e-2,
                    f"it is not the error of the loaded R_blend against R_true{ref.best_explanation(off)}.",
                    "Use Prediction.blended for losses, metrics and inference, and average over the scenes.",
                )
            )
    return report_of("BLEND", "covariance loss at beta = 0 and 0.3", findings)


def _dense_error(R: Tensor, T: Tensor, targets: Targets) -> float:
    """Error of R against T, loaded alike: diagonal and rest each on their own scale, mean over the scenes."""
    share = targets.conditioning.identity.double().cpu()[:, None, None]
    identity = torch.eye(R.shape[-1], dtype=R.dtype) / R.shape[-1]
    R, T = ((1 - share) * one.cpu() + share * identity for one in (R, T))
    D = R - T
    level, error = (one.diagonal(dim1=-2, dim2=-1).real for one in (T, D))
    off, scale = (one - torch.diag_embed(one.diagonal(dim1=-2, dim2=-1)) for one in (D, T))
    diagonal = error.square().sum(-1) / level.square().sum(-1)
    rest = off.abs().square().sum((-2, -1)) / scale.abs().square().sum((-2, -1))
    return float(((diagonal + rest) / 2).mean())


def every_weight(case: Case) -> dict[TermName, float]:
    """Weights with all terms on: those in use as they are, the others at 0.1."""
    return {name: weight or 0.1 for name, weight in case.spec.loss.weights.items()}


def total_of(case: Case, prediction: Prediction, targets: Targets, beta: float = 0.3) -> Losses:
    """All loss terms of a prediction, by the function that the learner uses."""
    return vars(learner_module)["total_loss"](
        prediction, targets, case.spec.loss, beta=beta, weights=every_weight(case), oracle=False
    )


def _noise_free(case: Case) -> tuple[Targets, Prediction]:
    """Targets with R_samp = R_true and no loading, and a prediction of the right shapes."""
    targets = Targets.of(case.recording, case.learner.grid)
    zero = torch.zeros_like(targets.conditioning.loading)
    like = case.learner.predict(case.recording, averaged=False)
    return replace(targets, sample=targets.true, conditioning=Conditioning(zero, zero)), like


def check_loss_values(case: Case) -> Report:
    """[ORACLE]: each loss of the perfect prediction, and of a random one."""
    targets, like = _noise_free(case)

    def terms(prediction: Prediction) -> dict[str, float]:
        return {name: float(value) for name, value in total_of(case, prediction, targets).terms.items()}

    perfect = terms(ref.perfect_prediction(targets, like))
    random = terms(ref.random_prediction(like))
    findings: list[Finding] = []
    for name in random:
        findings += [
            at_most(
                f"loss {name} of the perfect prediction",
                abs(perfect[name]),
                1e-3,
                "it is not 0 at the truth: a floor above zero, or a similarity for an error?",
                "Subtract the value at the truth. Apply the same loading to both sides.",
            ),
            at_least(
                f"loss {name} of a random prediction",
                random[name],
                1e-3,
                "it is 0 for a wrong prediction: an exception swallowed, a mask, or degrees for radians?",
                "Let errors in the loss propagate, and check its inputs.",
            ),
        ]
    for name in ("covariance", "covariance_predicted", "subspace"):
        if name in random:
            findings.append(
                at_least(
                    f"loss {name}, random less perfect prediction",
                    random[name] - perfect[name],
                    0.1,
                    "it does not rise for a wrong prediction: a similarity for an error, or a wrong sign?",
                    "A loss must fall as the prediction improves.",
                )
            )
    return report_of("ORACLE", f"{len(random)} losses of a perfect and of a random prediction", findings)


def check_eigengap(case: Case) -> Report:
    """[GAP]: the eigengap loss against dense eigenvalues, and whether a step down the loss widens the gap."""
    targets, like = _noise_free(case)
    random = ref.random_prediction(like)
    # From the one of source K on, eigenvalues are small and nearly agree, so that the hinge is active.
    U = torch.linalg.qr(random.angle_factor).Q
    column = torch.arange(U.shape[-1], device=U.device)
    small = 0.1 * (1 - _EIGENGAP_SPREAD * column)
    sizes = torch.where(column < targets.count[:, None] - 1, 1.0, small)
    F = (U * sizes[:, None].to(U.dtype)).requires_grad_()
    start = replace(random, angle_factor=F, range_factor=torch.zeros_like(random.range_factor))
    loss = total_of(case, start, targets, beta=0.0).terms.get("eigengap")
    if loss is None or not loss.requires_grad:
        return report_of("GAP", "skipped: there is no eigengap loss", [])

    def expected(prediction: Prediction) -> float:
        wanted = _eigengaps(targets.true, targets).clamp_max(_EIGENGAP_MARGIN)
        return float(((wanted - _eigengaps(prediction.covariance, targets)).relu() / (wanted + 1e-6)).mean())

    (slope,) = torch.autograd.grad(loss, [F])
    size = float(slope.norm())
    step = _EIGENGAP_STEP * float(F.detach().norm())
    moved = (F - step * slope / max(size, 1e-30)).detach()
    before, after = expected(start), expected(replace(start, angle_factor=moved))
    cause = "eigenvalues in another order (eigh ascends, svd descends)?"
    findings = [
        at_most(
            "relative error of the eigengap loss against eigenvalues of dense matrices",
            abs(float(loss.detach()) - before) / max(before, 1e-3),
            1e-2,
            f"the eigengap loss is not the margin less lambda_K - lambda_K+1: {cause}",
            "Take lambda_K - lambda_K+1 of eigenvalues in descending order.",
        ),
        at_least(
            "fall of the loss of dense eigenvalues in a step down the eigengap loss, over that promised",
            (before - after) / max(step * size, 1e-30),
            0.5,
            f"a step down the eigengap loss does not widen the gap: {cause}",
            "Take lambda_K - lambda_K+1 of eigenvalues in descending order.",
        ),
    ]
    return report_of("GAP", f"eigengap loss {before:.4f} before, {after:.4f} after a step", findings)


def _eigengaps(covariance: Covariance, targets: Targets) -> Tensor:
    """lambda_K - lambda_K+1 of dense matrices of trace 1, sorted explicitly."""
    values = torch.linalg.eigvalsh(covariance.detach().normalised().dense().to(torch.complex128).cpu())
    falling = values.sort(dim=-1, descending=True).values
    K = targets.count.cpu().clamp_min(1)[:, None]
    return (falling.gather(1, K - 1) - falling.gather(1, K))[:, 0]


def check_gradients(case: Case) -> Report:
    """[SLOPE]: gradients of each loss: equal to finite differences, finite, and non-zero in every scene."""
    recording = ref.recording_in_double(case.recording)
    targets = Targets.of(recording, case.learner.grid)
    own = ref.prediction_in_double(case.learner.predict(case.recording, averaged=False))
    findings = []
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
            gradients = _gradients(loss, leaves)
            if name in _GRADIENT_IN_EVERY_SCENE:
                zero = torch.stack([g.abs().flatten(1).amax(1) for g in gradients.values()]).amax(0) == 0
                idle[name] = max(idle[name], float(zero[targets.count.cpu() > 0].double().mean()))
            if not random:
                continue
            bad = [key for key, g in gradients.items() if not bool(g.isfinite().all())]
            findings.append(
                must_be_zero(
                    f"outputs for which the gradient of loss {name} is not finite",
                    len(bad),
                    f"the gradient by {', '.join(bad)} is not finite: through eigenvectors, or a root at 0?",
                    "Project on the true steering vectors. No gradient may flow through eigenvectors.",
                )
            )
            if not bad:
                findings.append(_finite_difference(case, prediction, targets, name, gradients))
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


def _gradients(loss: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradient by each output; zeros where there is none."""
    if not loss.requires_grad:
        return {name: torch.zeros_like(value) for name, value in leaves.items()}
    found = torch.autograd.grad(
        loss, list(leaves.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, found, strict=True))


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
    return at_most(
        f"relative error of the gradient of loss {name} against finite differences",
        abs(rise - expected) / max(abs(rise), abs(expected), 1e-9),
        0.05,
        "the gradient is not that of the loss: detached, reversed (the wrong sign), or clamped?",
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

    findings = []
    for what, other in (("sources", sources), ("heads", heads)):
        change, name = largest_change(other)
        findings.append(
            at_most(
                f"largest relative change of a loss when the order of the {what} changes",
                change,
                1e-3,
                f"loss {name} compares the {what} by index, not as a set. Unmatched heads learn the mean.",
                "Match heads and sources by the assignment of least cost.",
            )
        )
    change, name = largest_change(doubled)
    findings += [
        at_most(
            "largest relative change of a loss when every scene is repeated",
            change,
            1e-3,
            f"the loss {name} is a sum over the scenes, not a mean. Its size depends on the batch size.",
            "Take the mean over the scenes.",
        ),
        at_most(
            "relative error of the total against the weighted sum of its terms",
            abs(base["total"] - weighted) / max(abs(weighted), 1e-9),
            1e-3,
            "the total loss is not the weighted sum of its terms (a factor, a sign, or a missing term?).",
            "Sum weight times term, and nothing else.",
        ),
    ]
    return report_of("SYMMETRY", "order of sources and heads, number of scenes, total", findings)


def check_precision(case: Case) -> Report:
    """[PRECISION]: losses of the same prediction in float32 against float64."""
    learner, weights = case.learner, every_weight(case)
    with torch.no_grad():
        prediction = learner.predict(case.recording, averaged=False)
        single = learner.prediction_losses(prediction, case.recording, 0.3, weights).terms
        wide = ref.prediction_in_double(prediction), ref.recording_in_double(case.recording)
        double = learner.prediction_losses(*wide, 0.3, weights).terms
    off = {
        name: abs(float(value) - float(double[name])) / max(abs(float(double[name])), 1e-2)
        for name, value in single.items()
    }
    name = max(off, key=off.__getitem__)
    finding = at_most(
        "largest relative error of a loss in float32 against float64",
        off[name],
        1e-3,
        f"single precision is not enough for loss {name}, or it is computed in less.",
        "Keep losses, physics and labels in float32. Avoid differences of large numbers.",
    )
    return report_of("PRECISION", f"float32 against float64: {off[name]:.1e}", [finding])


def check_loss_sizes(case: Case) -> Report:
    """[LOSS]: the total before the first step, and each term with its weight."""
    with torch.no_grad():
        losses = case.learner.losses(case.recording, 0.0, case.spec.loss.weights)
    terms: dict[str, float] = {name: float(value) for name, value in losses.terms.items()}
    first = probes.first_loss(float(losses.total))
    shares = probes.losses(terms, losses.weights)
    return Report("LOSS", first.text, {**first.values, **shares.values}, first.findings + shares.findings)
