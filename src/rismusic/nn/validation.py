"""Validation: losses on held-out scenes, and the sources that the search of inference locates with them.

It runs in single precision, with the covariances that training and inference use, and with beta and the loss
weights of the end of the training, so that epochs can be compared.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rismusic.covariance import Covariance, squared_modulus
from rismusic.crb import recording_crb
from rismusic.estimation.spectra import music, rap_music_sources
from rismusic.metrics import Score, match, score
from rismusic.nn.data import TrainingScenes, weights_at
from rismusic.nn.learner import Learner
from rismusic.nn.losses import Targets, covariance_error
from rismusic.nn.monitors import Report, at_least, at_most
from rismusic.nn.spec import TrainSpec

# Eigenvalues below this share of the largest are rounding errors.
_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Result of a validation.

    Args:
        oracle: see :class:`~rismusic.nn.losses.Losses`.
        scores: of MUSIC on R_blend (``blend``), as in inference, and on R_pred (``predicted``). The number of
            sources is the most probable one of the network's count head.
        covariance: statistics of R_pred and R_blend, see :func:`covariance_statistics`.
    """

    loss: float
    terms: dict[str, float]
    weights: dict[str, float]
    oracle: dict[str, float]
    scores: dict[str, Score]
    covariance: dict[str, float]
    first_batch: float

    def record(self) -> dict[str, object]:
        """As a record for the run log."""
        return asdict(self)


@torch.no_grad()
def validate(learner: Learner, scenes: TrainingScenes) -> Validation:
    """Losses on the whole validation set, metrics on a part of it."""
    spec = learner.spec
    beta = spec.schedule.beta
    weights = weights_at(spec.loss, spec.schedule, spec.schedule.epochs - 1, beta)
    totals: list[Tensor] = []
    names: list[str] = []
    oracle_names: list[str] = []
    sizes: list[int] = []
    for recording in scenes.validation():
        prediction = learner.predict(recording)
        losses = learner.prediction_losses(prediction, recording, beta, weights, oracle=True)
        names, oracle_names = ["loss", *losses.terms], list(losses.oracle)
        values = [losses.total, *losses.terms.values(), *losses.oracle.values()]
        totals.append(torch.stack(values).double())
        sizes.append(len(recording))
    share = torch.tensor(sizes, dtype=torch.float64, device=totals[0].device) / sum(sizes)
    means = (torch.stack(totals) * share[:, None]).sum(0).tolist()
    terms = dict(zip(names, means, strict=False))
    scores, covariance = _score(learner, scenes, beta)
    return Validation(
        loss=terms.pop("loss"),
        terms=terms,
        weights={name: weights[name] for name in terms},  # type: ignore[index]
        oracle=dict(zip(oracle_names, means[len(names) :], strict=True)),
        scores=scores,
        covariance=covariance,
        first_batch=float(totals[0][0]),
    )


def report(now: Validation, previous_loss: float | None, spec: TrainSpec) -> Report:
    """[VAL]: findings of a validation."""
    stats = now.covariance
    factor_rank = 2.0 * spec.network.sources_max
    values = {"loss": now.loss, "first_batch": now.first_batch, **stats}
    for name, one in now.scores.items():
        values |= {f"{name}_recall": one.recall, f"{name}_f1": one.f1, f"{name}_gospa_m": one.gospa_m}
    findings = [
        at_most("validation loss", now.loss, 100.0, "the loss is not of order 1.", "Look at its terms."),
        at_most(
            "loss of the first validation batch over the loss of all",
            now.first_batch / now.loss if now.loss > 0 else math.nan,
            5.0,
            "the first batch differs strongly from the others.",
            "Check its scenes and their noise variance.",
        ),
        at_least(
            "rank of R_pred over the number of sources",
            stats["rank_predicted"] / max(stats["sources"], 1e-9),
            1.0,
            "the rank of R_pred is below the number of sources: its columns have collapsed.",
            "Raise the weight of orthogonality, or check the factor heads.",
        ),
        at_most(
            "rank of R_pred",
            stats["rank_predicted"],
            factor_rank,
            "the rank exceeds the number of columns of the factors.",
            "This is a bug.",
        ),
        at_most(
            "rank of R_blend",
            stats["rank_blend"],
            factor_rank + spec.system.codebook.snapshots,
            "the rank exceeds what factors and snapshots allow.",
            "Check that R_samp is built from the snapshots.",
        ),
        at_most(
            "error of R_pred against R_true",
            stats["error_predicted"],
            0.5,
            "R_pred is no better than the identity.",
            "Train longer, or look at [GRADPATH].",
        ),
        at_least(
            "variety of the predictions over that of the truth",
            stats["variety"],
            0.5,
            "the network predicts nearly the same covariance for every scene, the mean of the data.",
            "Check that the inputs differ between scenes and that the learning rate is not too high.",
        ),
        at_least(
            "spread of the predicted number of sources over that of the truth",
            stats["count_variety"],
            0.1,
            "the count head predicts the same number for every scene.",
            "Train longer, or raise the weight of count.",
        ),
    ]
    if previous_loss is not None:
        findings.append(
            at_least(
                "change of the validation loss since the last epoch",
                abs(now.loss - previous_loss),
                1e-9,
                "the validation loss does not change.",
                "Check that the validated network is the trained one.",
            )
        )
    blend = now.scores["blend"]
    text = (
        f"loss {now.loss:.4f}  recall {blend.recall:.3f}  F1 {blend.f1:.3f}  GOSPA {blend.gospa_m:.2f} m  "
        f"count {blend.count_right:.3f}  R_pred: error {stats['error_predicted']:.3f} "
        f"rank {stats['rank_predicted']:.1f}"
    )
    return Report("VAL", text, values, tuple(findings))


def _score(
    learner: Learner, scenes: TrainingScenes, beta: float
) -> tuple[dict[str, Score], dict[str, float]]:
    recording, network_input = scenes.scored()
    assert recording.truth is not None
    prediction = learner.predict(network_input)
    targets = Targets.of(network_input, learner.grid)
    blended = prediction.blended(targets.sample, targets.conditioning, beta)
    count = prediction.count_logits.argmax(-1)
    bound = recording_crb(recording)
    scores = {}
    for name, covariance in (("blend", blended), ("predicted", prediction.covariance)):
        # The same search as inference runs on R_blend.
        estimate, _ = rap_music_sources(music(covariance, count.clamp_min(1)), learner.grid, count)
        scores[name] = score(match(recording.truth, estimate), bound)
    return scores, covariance_statistics(prediction.covariance, blended, targets, count)


def covariance_statistics(
    predicted: Covariance, blended: Covariance, targets: Targets, count: Int64[Tensor, "S"]
) -> dict[str, float]:
    """Ranks, errors and variety of covariances.

    ``rank_predicted``, ``rank_blend``: mean numerical rank (of R_blend without its loading);
    ``error_predicted``, ``error_blend``: mean covariance error against R_true; ``variety``: variety of R_pred
    over that of R_true; ``sources``: mean true K; ``count_variety``: standard deviation of the predicted K
    over that of the true one.
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
    """Numerical rank of F F^H."""
    F = covariance.factor.to(torch.complex128)
    values = torch.linalg.eigvalsh(F.mH @ F if F.shape[-1] <= F.shape[-2] else F @ F.mH)
    return (values > _ROUNDING * values[..., -1:]).sum(-1)


def variety(covariance: Covariance) -> float:
    r"""Variety of covariances: 0 if all are equal, up to 1.

    .. math:: 1 - \frac{|\overline{R}|_F^2}{\overline{|R_i|_F^2}}, \qquad \overline R = \frac1S \sum_i R_i.
    """
    F: Float[Tensor, "..."] = covariance.normalised().factor
    S, N, R = F.shape
    flat = F.movedim(1, 0).reshape(N, S * R)
    products = squared_modulus(flat.mH @ flat).view(S, R, S, R).sum((1, 3))
    return float(1 - products.mean() / products.diagonal().mean())
