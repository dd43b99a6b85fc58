"""Are the covariances what they should be: R_samp, what is done to it, R_blend, and MUSIC on R_true?"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rismusic.covariance import IDENTITY_MAX
from rismusic.doctor.case import Case, told
from rismusic.doctor.physics import apart, covariance_of, field_on_panel, likeliest, operators, unit
from rismusic.estimation.grid import to_cosines
from rismusic.io import Recording
from rismusic.metrics import match
from rismusic.nn import validation
from rismusic.nn.losses import Targets
from rismusic.nn.monitors import Report, at_least, at_most


def sample(case: Case) -> Report:
    """R_samp of the targets against the snapshots carried back by explicit matrices."""
    recording = case.few
    targets = Targets.of(recording, case.learner.grid)
    found = unit(targets.sample.dense().to(torch.complex128).cpu())
    suspects = _sample_suspects(recording, targets)
    off = {name: float(apart(found, matrix).mean()) for name, matrix in suspects.items()}
    truth = recording.truth
    assert truth is not None
    other = truth.each(lambda value: value.flip(0))
    mislabelled = Targets.of(replace(recording, truth=other), case.learner.grid)
    moved = float(apart(mislabelled.sample.dense(), targets.sample.dense()).max())
    identity = targets.conditioning.identity
    inside = _share_inside(found, targets)
    coverage = min(1.0, recording.snapshots.shape[-1] / found.shape[-1])
    findings = [
        at_most(
            "distance of R_samp from the snapshots carried back through G_l, relative",
            off["as it should be"],
            1e-2,
            f"R_samp is not the mean of x_l x_l^H{likeliest(off) or ''}.",
            "Build it with rismusic.covariance.sample_covariance, from snapshots, channel and codes alone.",
        ),
        at_most(
            "change of R_samp when the labels of other scenes are put in",
            moved,
            1e-6,
            "R_samp depends on the labels: a leak of the truth that no user has.",
            "Build R_samp from the snapshots.",
        ),
        at_most(
            "largest share of the identity in what R_samp and R_true are finished with",
            float(identity.max()),
            IDENTITY_MAX + 1e-3,
            "loading and shrinkage are so large that the identity hides the sources: half of the matrix?",
            "Load by the noise's share, and stop at a quarter of the trace.",
        ),
        at_least(
            "energy of R_samp in the true sources' subspace, over the share that snapshots bring back",
            inside / coverage,
            0.4,
            "R_samp says nothing of the true sources.",
            "Compare R_samp with R_true on clean data: conjugation, order of elements, or a mean taken out?",
        ),
    ]
    return told("R_SAMP", f"distance {off['as it should be']:.1e} from explicit matrices", findings)


def _sample_suspects(recording: Recording, targets: Targets) -> dict[str, Tensor]:
    """R_samp as it should be, and as known mistakes make it."""
    G = operators(recording)
    assert recording.noise_variance is not None
    field = field_on_panel(G, recording.snapshots, recording.noise_variance)
    R = covariance_of(field)
    suspects = {
        "as it should be": R,
        ": it is R_true, taken from the labels (a leak)": unit(targets.true.dense().to(torch.complex128)),
        ": the mean over the snapshots was taken out (centred)": covariance_of(
            field - field.mean(1, keepdim=True)
        ),
        ": its sign is reversed": -R,
        ": it is conjugated": R.conj(),
        ": it is the identity": torch.eye(R.shape[-1], dtype=R.dtype).expand_as(R) / R.shape[-1],
    }
    if recording.channel is not None and recording.codes is not None:
        H, c = (part.to(torch.complex128) for part in (recording.channel, recording.codes))
        back = recording.snapshots.to(torch.complex128) @ H.conj()
        suspects[": the codes were left out (H alone)"] = covariance_of(back)
        through = (H @ c.mT).mT  # [S, L, M]: H c_l
        weight = (recording.snapshots * through.conj()).sum(-1, keepdim=True)
        suspects[": it is built from H c_l [L, M] in place of (H, c_l)"] = covariance_of(weight * c)
    return suspects


def _share_inside(R: Tensor, targets: Targets) -> float:
    """Share of R's energy in the span of the true steering vectors, mean over the scenes."""
    A = targets.steering.to(torch.complex128).cpu()
    Q = A @ torch.linalg.pinv(A, rtol=1e-6)
    return float(torch.einsum("snm,smn->s", Q, R).real.mean())


def blended(case: Case) -> Report:
    """The covariance loss that is learned by, against the error of an R_blend of dense matrices."""
    recording, learner = case.few, case.learner
    findings = []
    with torch.no_grad():
        prediction = learner.predict(recording, averaged=False)
        targets = Targets.of(recording, learner.grid)
        predicted, measured, true = (
            unit(part.dense().to(torch.complex128))
            for part in (prediction.covariance, targets.sample, targets.true)
        )
        for beta in (0.0, 0.3):
            loss = learner.judged(prediction, recording, beta, case.spec.loss.weights)
            found = float(loss.terms["covariance"])
            suspects = {
                "as it should be": _dense_error((1 - beta) * predicted + beta * measured, true, targets),
                ": it is that of R_pred alone, without R_samp (the raw factors)": _dense_error(
                    predicted, true, targets
                ),
                ": R_true stands in the place of R_samp (a leak)": _dense_error(
                    (1 - beta) * predicted + beta * true, true, targets
                ),
                ": it is that of R_samp alone": _dense_error(measured, true, targets),
            }
            off = {name: abs(found - value) / max(value, 1e-6) for name, value in suspects.items()}
            finding = at_most(
                f"error of the covariance loss at beta = {beta:g} against dense matrices, relative",
                off["as it should be"],
                1e-2,
                "the loss is not the error of R_blend, finished, against R_true, finished alike"
                f"{likeliest(off) or ''}.",
                "Let losses, metrics and inference use the one R_blend of Prediction.blended, and mean "
                "over scenes.",
            )
            findings.append(finding)
    return told("BLEND", "covariance loss at beta = 0 and 0.3", findings)


def _dense_error(R: Tensor, T: Tensor, targets: Targets) -> float:
    """Error of R against T, loaded alike: diagonal and rest each on their own scale, mean over the scenes."""
    share = targets.conditioning.identity.double().cpu()[:, None, None]
    identity = torch.eye(R.shape[-1], dtype=R.dtype) / R.shape[-1]
    R, T = ((1 - share) * one.cpu() + share * identity for one in (R, T))
    D = R - T
    level, wrong = (one.diagonal(dim1=-2, dim2=-1).real for one in (T, D))
    off, scale = (one - torch.diag_embed(one.diagonal(dim1=-2, dim2=-1)) for one in (D, T))
    first = wrong.square().sum(-1) / level.square().sum(-1)
    rest = off.abs().square().sum((-2, -1)) / scale.abs().square().sum((-2, -1))
    return float(((first + rest) / 2).mean())


def ceiling(case: Case) -> Report:
    """MUSIC on R_true with the true number of sources: what no network can beat."""
    recording, grid = case.few, case.learner.grid
    truth = recording.truth
    assert truth is not None
    targets = Targets.of(recording, grid)
    found = validation.sources_of(targets.true, targets.count, grid)
    hits = match(truth, found)
    exact = to_cosines(*truth.filled())
    theirs = to_cosines(*(value.gather(1, hits.partner.clamp_min(0)) for value in found.filled()))
    steps = torch.stack(
        [(a - b).abs() / step for a, b, step in zip(exact, theirs, grid.step, strict=True)]
    ).amax(0)[hits.hit]
    share = float(hits.hit.sum() / hits.true_count.sum())
    findings = [
        at_least(
            "share of the sources that MUSIC finds on R_true",
            share,
            0.75,
            "MUSIC on the exact covariance misses sources: steering, search or R_true do not belong "
            "together.",
            "Compare the steering of search, labels and simulator.",
        ),
        at_most(
            "median error of MUSIC on R_true, in steps of the grid",
            float(steps.median()) if len(steps) else float("nan"),
            0.5,
            "the ceiling of MUSIC lies above the step of the grid.",
            "Is the search refined, and is the truth in the frame of the search?",
        ),
    ]
    return told("CEILING", f"MUSIC on R_true finds {share:.0%}", findings)
