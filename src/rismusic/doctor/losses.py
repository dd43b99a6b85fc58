"""Are the losses what they should be: 0 where all is right, more where it is not, the same in any order?"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rismusic.covariance import Conditioning, Covariance
from rismusic.doctor import guesses
from rismusic.doctor.case import Case, double, told
from rismusic.io import Recording
from rismusic.nn import learner as learning
from rismusic.nn import monitors as probes
from rismusic.nn.losses import Losses, Targets
from rismusic.nn.monitors import Finding, Report, at_least, at_most
from rismusic.nn.network import Prediction
from rismusic.nn.spec import TermName

# Length of a step down the eigengap's loss, relative: a long one would pass the place where eigenvalues meet.
_STEP = 1e-3


def every_weight(case: Case) -> dict[TermName, float]:
    """All terms on: those in use at their weight, the rest at a little."""
    return {name: weight or 0.1 for name, weight in case.spec.loss.weights.items()}


def oracle(case: Case) -> Report:
    """Each loss at the right answer, and at a random one."""
    targets, like = _clean(case)
    perfect = _terms(case, guesses.right(targets, like, case.spec.loss), targets)
    wrong = _terms(case, guesses.random(like), targets)
    findings: list[Finding] = []
    for name in wrong:
        findings += [
            at_most(
                f"loss {name} of the right answer",
                abs(perfect[name]),
                1e-3,
                "it is not 0 when all is right: a floor above zero, or a similarity mistaken for an error.",
                "Subtract what the right answer gives, and compare what is finished alike.",
            ),
            at_least(
                f"loss {name} of a random answer",
                wrong[name],
                1e-3,
                "it is 0 although all is wrong: an exception swallowed, a mask, or degrees for radians?",
                "Let the loss fail aloud, and look at what it is fed.",
            ),
        ]
    for name in ("covariance", "covariance_predicted", "subspace"):
        if name in wrong:
            findings.append(
                at_least(
                    f"loss {name}, random less right answer",
                    wrong[name] - perfect[name],
                    0.1,
                    "it is no larger where all is wrong: a similarity taken for an error, or the wrong sign?",
                    "A loss falls as the answer gets better.",
                )
            )
    return told("ORACLE", f"{len(wrong)} losses at the right and at a random answer", findings)


def _clean(case: Case) -> tuple[Targets, Prediction]:
    """Targets whose R_samp is R_true, nothing loaded; and the shapes of a prediction."""
    targets = Targets.of(case.few, case.learner.grid)
    zero = torch.zeros_like(targets.conditioning.loading)
    like = case.learner.predict(case.few, averaged=False)
    return replace(targets, sample=targets.true, conditioning=Conditioning(zero, zero)), like


def total_of(case: Case, prediction: Prediction, targets: Targets, beta: float = 0.3) -> Losses:
    """All terms of a prediction, by the loss that the learner has."""
    return vars(learning)["total_loss"](
        prediction, targets, case.spec.loss, beta=beta, weights=every_weight(case), oracle=False
    )


def _terms(case: Case, prediction: Prediction, targets: Targets) -> dict[str, float]:
    return {name: float(value) for name, value in total_of(case, prediction, targets).terms.items()}


def gap(case: Case) -> Report:
    """Does a step against the gradient of the eigengap's loss widen the gap, measured apart?"""
    targets, like = _clean(case)
    factors = [
        value.requires_grad_()
        for value in (guesses.random(like).angle_factor, guesses.random(like, 1).range_factor)
    ]
    start = replace(guesses.random(like), angle_factor=factors[0], range_factor=factors[1])
    loss = total_of(case, start, targets, beta=0.0).terms.get("eigengap")
    if loss is None or not loss.requires_grad:
        return told("GAP", "no eigengap in the loss", [])
    before = _gaps(start.covariance, targets)
    wanted = _gaps(targets.true, targets).clamp_max(case.spec.loss.eigengap_margin)
    lacking = float(((wanted - before).relu() / (wanted + 1e-6)).mean())
    order = "eigenvalues in another order (eigh ascends, svd descends)?"
    value = at_most(
        "error of the eigengap loss against eigenvalues of dense matrices, relative",
        abs(float(loss.detach()) - lacking) / max(lacking, 1e-3),
        1e-2,
        f"the eigengap loss is not what lambda_K - lambda_K+1 lacks of its margin: {order}",
        "Take lambda_K - lambda_K+1 of eigenvalues in descending order.",
    )
    slopes = torch.autograd.grad(loss, factors)
    moved = [
        (value - _STEP * value.norm() * slope / slope.norm().clamp_min(1e-30)).detach()
        for value, slope in zip(factors, slopes, strict=True)
    ]
    after = _gaps(replace(start, angle_factor=moved[0], range_factor=moved[1]).covariance, targets)
    finding = at_least(
        "change of the eigengap by a step down its loss",
        float((after - before).mean()),
        1e-5,
        f"the eigengap loss does not widen the gap, or pushes the wrong way: {order}",
        "Take lambda_K - lambda_K+1 of eigenvalues in descending order.",
    )
    return told(
        "GAP", f"gap {float(before.mean()):.4f} before, {float(after.mean()):.4f} after", [value, finding]
    )


def _gaps(covariance: Covariance, targets: Targets) -> Tensor:
    """lambda_K - lambda_K+1 of dense matrices of trace 1, by numpy's own order."""
    values = torch.linalg.eigvalsh(covariance.detach().normalised().dense().to(torch.complex128).cpu())
    falling = values.sort(dim=-1, descending=True).values
    K = targets.count.cpu().clamp_min(1)[:, None]
    return (falling.gather(1, K - 1) - falling.gather(1, K))[:, 0]


def symmetry(case: Case) -> Report:
    """Losses do not care for the order of sources and heads, and are means over the scenes."""
    recording, learner = case.few, case.learner
    weights = every_weight(case)
    with torch.no_grad():
        prediction = guesses.random(learner.predict(recording, averaged=False))

        def terms(guess: Prediction, scenes: Recording) -> dict[str, float]:
            judged = learner.judged(guess, scenes, 0.3, weights)
            return {"total": float(judged.total), **{n: float(v) for n, v in judged.terms.items()}}

        base = terms(prediction, recording)
        truth = recording.truth
        assert truth is not None
        turned = terms(prediction, replace(recording, truth=truth.each(lambda value: value.flip(1))))
        names = ("azimuth", "elevation", "inverse_range", "existence_logits")
        heads = terms(replace(prediction, **{n: getattr(prediction, n).flip(1) for n in names}), recording)
        twice = torch.arange(len(recording)).repeat(2)
        doubled = terms(prediction[twice], recording[twice])
    weighted = sum(weights.get(n, 0.0) * v for n, v in base.items() if n != "total")  # type: ignore[call-overload]

    def worst(other: dict[str, float]) -> tuple[float, str]:
        off = {n: abs(other[n] - v) / max(abs(v), 1e-3) for n, v in base.items()}
        name = max(off, key=off.__getitem__)
        return off[name], name

    findings = [
        at_most(
            f"largest change of a loss by another order of {what}, relative",
            off,
            1e-3,
            f"the {what} are compared by index, not as a set (loss {name}): unmatched heads settle on the "
            "mean.",
            "Match heads and sources by the assignment of least cost.",
        )
        for what, (off, name) in (("sources", worst(turned)), ("heads", worst(heads)))
    ]
    off, name = worst(doubled)
    findings += [
        at_most(
            "largest change of a loss when every scene is given twice, relative",
            off,
            1e-3,
            f"the loss {name} is a sum over the scenes and no mean: its size hangs on the batch.",
            "Take the mean over the scenes.",
        ),
        at_most(
            "error of the total against the weighted sum of its terms, relative",
            abs(base["total"] - weighted) / max(abs(weighted), 1e-9),
            1e-3,
            "what is learned by is not the sum of the terms with their weights (a factor, a sign, a term "
            "apart?).",
            "Sum weight times term, and nothing else.",
        ),
    ]
    return told("SYMMETRY", "order of sources and heads, number of scenes, total", findings)


def precision(case: Case) -> Report:
    """Losses in float32 against float64, of the same prediction."""
    recording, learner = case.few, case.learner
    with torch.no_grad():
        prediction = learner.predict(recording, averaged=False)
        narrow = learner.judged(prediction, recording, 0.3, every_weight(case)).terms
        exact = learner.judged(guesses.wide(prediction), double(recording), 0.3, every_weight(case)).terms
    off = {
        name: abs(float(value) - float(exact[name])) / max(abs(float(exact[name])), 1e-2)
        for name, value in narrow.items()
    }
    name = max(off, key=off.__getitem__)
    finding = at_most(
        "largest error of a loss in float32 against float64, relative",
        off[name],
        1e-3,
        f"single precision is not enough for the loss {name}, or it is computed in less.",
        "Keep losses, physics and labels in float32, and large differences out of them.",
    )
    return told("PRECISION", f"float32 against float64: {off[name]:.1e}", [finding])


def balance(case: Case) -> Report:
    """The size of the losses before the first step, and of each with its weight."""
    with torch.no_grad():
        losses = case.learner.losses(case.few, 0.0, case.spec.loss.weights)
    terms: dict[str, float] = {name: float(value) for name, value in losses.terms.items()}
    first = probes.first_loss(float(losses.total))
    shares = probes.losses(terms, losses.weights)
    return Report("LOSS", first.text, {**first.values, **shares.values}, first.findings + shares.findings)
