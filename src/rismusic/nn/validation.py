"""How good the network is on scenes it does not learn from: its losses, and what inference makes of it.

Always in single precision, on the covariances that the same builder makes in training and inference, with
beta and the weights of the losses as at the end of the training, so that epochs compare.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rismusic.covariance import Covariance, energy
from rismusic.crb import recording_crb
from rismusic.estimation.locators import rap_music_sources
from rismusic.estimation.spectra import music
from rismusic.metrics import Score, match, score
from rismusic.nn.data import TrainingScenes
from rismusic.nn.learner import Learner
from rismusic.nn.losses import Targets, covariance_error
from rismusic.nn.monitors import Report, at_least, at_most
from rismusic.nn.schedules import weights_at

# Eigenvalues below this share of the largest are rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What came of a validation.

    Args:
        loss: the weighted total.
        terms: each loss, mean over the scenes.
        weights: of the losses.
        oracle: see :class:`~rismusic.nn.losses.Losses`.
        scores: ``blend``: MUSIC on R_blend, as in inference; ``predicted``: on R_pred alone. K is that of the
            network's count.
        covariance: of R_pred and R_blend on the scenes that were located: see :func:`describe`.
        first_batch: loss of the first batch.
    """

    loss: float
    terms: dict[str, float]
    weights: dict[str, float]
    oracle: dict[str, float]
    scores: dict[str, Score]
    covariance: dict[str, float]
    first_batch: float

    def record(self) -> dict[str, object]:
        """As a line of the log has it."""
        return asdict(self)


@torch.no_grad()
def validate(learner: Learner, scenes: TrainingScenes, *, averaged: bool = True) -> Validation:
    """Losses on the whole validation set, metrics on a part of it.

    Args:
        learner: the network and its averaged weights.
        scenes: where the validation set comes from.
        averaged: whether the averaged weights are looked at, or the network's own.
    """
    spec = learner.spec
    beta = spec.schedule.beta
    weights = weights_at(spec.loss, spec.schedule, spec.schedule.epochs - 1, beta)
    totals: list[Tensor] = []
    names: list[str] = []
    best: list[str] = []
    count: list[int] = []
    for recording in scenes.validation():
        prediction = learner.predict(recording, averaged=averaged)
        losses = learner.judged(prediction, recording, beta, weights, oracle=True)
        names, best = ["loss", *losses.terms], list(losses.oracle)
        values = [losses.total, *losses.terms.values(), *losses.oracle.values()]
        totals.append(torch.stack(values).double())
        count.append(len(recording))
    share = torch.tensor(count, dtype=torch.float64, device=totals[0].device) / sum(count)
    means = (torch.stack(totals) * share[:, None]).sum(0).tolist()
    terms = dict(zip(names, means, strict=False))
    scores, covariance = _located(learner, scenes, beta, averaged)
    return Validation(
        loss=terms.pop("loss"),
        terms=terms,
        weights={name: weights[name] for name in terms},  # type: ignore[index]
        oracle=dict(zip(best, means[len(names) :], strict=True)),
        scores=scores,
        covariance=covariance,
        first_batch=float(totals[0][0]),
    )


def report(now: Validation, before: float | None, sources_max: int, snapshots: int) -> Report:
    """[VAL]: what the probes make of a validation.

    Args:
        now: of this epoch.
        before: the loss of the one before.
        sources_max: K_max.
        snapshots: L.
    """
    seen = now.covariance
    values = {"loss": now.loss, "first_batch": now.first_batch, **seen}
    for name, held in now.scores.items():
        values |= {f"{name}_recall": held.recall, f"{name}_f1": held.f1, f"{name}_gospa_m": held.gospa_m}
    findings = [
        at_most("validation loss", now.loss, 100.0, "not finite, or far from order 1.", "See the terms."),
        at_most(
            "loss of the first validation batch, over that of all",
            now.first_batch / now.loss if now.loss > 0 else math.nan,
            5.0,
            "one batch is far from the rest.",
            "Are its scenes, or their noise variance, damaged?",
        ),
        at_least(
            "rank of R_pred over the number of sources",
            seen["rank_predicted"] / max(seen["sources"], 1e-9),
            1.0,
            "R_pred has fewer directions than there are sources: its columns have collapsed.",
            "Raise the weight of orthogonality, or look at the factor heads.",
        ),
        at_most(
            "rank of R_pred", seen["rank_predicted"], 2.0 * sources_max, "no factor allows it.", "A bug."
        ),
        at_most(
            "rank of R_blend",
            seen["rank_blend"],
            float(2 * sources_max + snapshots),
            "more than factors and snapshots allow.",
            "Is R_samp built from something else than the snapshots?",
        ),
        at_most(
            "error of R_pred against R_true",
            seen["error_predicted"],
            0.5,
            "no better than the identity.",
            "Train longer, or look at [GRADPATH].",
        ),
        at_least(
            "variety of the predictions, over that of the truth",
            seen["variety"],
            0.5,
            "the network says nearly the same of every scene: it has learned the mean of the data.",
            "Is the input the same for all scenes, or the learning rate too high?",
        ),
        at_least(
            "spread of the predicted number of sources, over that of the truth",
            seen["count_variety"],
            0.1,
            "the count head says the same of every scene.",
            "Train longer, or raise the weight of count.",
        ),
    ]
    if before is not None:
        findings.append(
            at_least(
                "change of the validation loss since the last epoch",
                abs(now.loss - before),
                1e-9,
                "it does not move at all.",
                "Is what is validated the network that learns?",
            )
        )
    blend = now.scores["blend"]
    text = (
        f"loss {now.loss:.4f}  hit {blend.recall:.3f}  F1 {blend.f1:.3f}  GOSPA {blend.gospa_m:.2f} m  "
        f"count {blend.count_right:.3f}  R_pred: error {seen['error_predicted']:.3f} "
        f"rank {seen['rank_predicted']:.1f}"
    )
    return Report("VAL", text, values, tuple(findings))


def _located(
    learner: Learner, scenes: TrainingScenes, beta: float, averaged: bool
) -> tuple[dict[str, Score], dict[str, float]]:
    recording, told = scenes.scored()
    assert recording.truth is not None
    prediction = learner.predict(told, averaged=averaged)
    targets = Targets.of(told, learner.grid)
    blended = prediction.blended(targets.sample, targets.conditioning, beta)
    count = prediction.count_logits.argmax(-1)
    bound = recording_crb(recording)
    scores = {}
    for name, covariance in (("blend", blended), ("predicted", prediction.covariance)):
        # The same search as inference runs on R_blend.
        found, _ = rap_music_sources(music(covariance, count.clamp_min(1)), learner.grid, count)
        scores[name] = score(match(recording.truth, found), bound)
    return scores, describe(prediction.covariance, blended, targets, count)


def describe(
    predicted: Covariance, blended: Covariance, targets: Targets, count: Int64[Tensor, "S"]
) -> dict[str, float]:
    """Ranks, errors and variety of covariances.

    Args:
        predicted: R_pred.
        blended: R_blend, finished.
        targets: of the same scenes.
        count: K as the network has it.

    Returns:
        ``rank_predicted``, ``rank_blend``: mean numbers of eigenvalues above the rounding (the loading of
        R_blend left aside); ``error_predicted``, ``error_blend``: mean covariance error against R_true;
        ``variety``: :func:`variety` of R_pred over that of R_true; ``sources``: mean true K;
        ``count_variety``: standard deviation of the predicted K over that of the true one.
    """
    true = targets.count.double()
    spread = float(true.std(unbiased=False))
    return {
        "rank_predicted": float(rank(predicted).double().mean()),
        "rank_blend": float(rank(blended).double().mean()),
        "error_predicted": float(covariance_error(predicted, targets.true).mean()),
        "error_blend": float(covariance_error(blended, targets.conditioned).mean()),
        "variety": variety(predicted) / max(variety(targets.true), _ROUNDING),
        "sources": float(true.mean()),
        "count_variety": float(count.double().std(unbiased=False)) / spread if spread > 0 else 1.0,
    }


def rank(covariance: Covariance) -> Int64[Tensor, "S"]:
    """Eigenvalues of F F^H above the rounding."""
    F = covariance.factor.to(torch.complex128)
    values = torch.linalg.eigvalsh(F.mH @ F if F.shape[-1] <= F.shape[-2] else F @ F.mH)
    return (values > _ROUNDING * values[..., -1:]).sum(-1)


def variety(covariance: Covariance) -> float:
    r"""How far covariances are from being all the same, 0 to 1.

    .. math:: 1 - \frac{|\overline{R}|_F^2}{\overline{|R_i|_F^2}}, \qquad \overline R = \frac1S \sum_i R_i.

    Args:
        covariance: R_i of S scenes, without loading.
    """
    F: Float[Tensor, "..."] = covariance.normalised().factor
    S, N, R = F.shape
    flat = F.movedim(1, 0).reshape(N, S * R)
    products = energy(flat.mH @ flat).view(S, R, S, R).sum((1, 3))
    return float(1 - products.mean() / products.diagonal().mean())
