"""Each stage of the calculation against dense forms: operator, conditioning, statistics, network and losses.

The forms are written from the documentation, in double precision and with explicit matrices: no mistake
of the code is on both sides. Where a stage works on results of another one, both get these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from rismusic.covariance import back_project
from rismusic.doctor import references as ref
from rismusic.doctor.case import Case
from rismusic.doctor.loss_checks import total_of
from rismusic.doctor.report import report_of
from rismusic.estimation.grid import highest_points
from rismusic.io import Recording
from rismusic.nn import data
from rismusic.nn.losses import Targets
from rismusic.nn.monitors import Finding, Report, at_most
from rismusic.nn.network import Network, Prediction
from rismusic.simulation.random_numbers import Draws

# Scenes that are calculated densely.
_SCENES = 4
# Largest relative distance of single from double precision, and of results that pass several layers.
_SAME, _LAYERS = 2e-3, 1e-2
# The largest share of the identity, the weight of the range factor, and loadings, as documented.
_IDENTITY, _RANGE_WEIGHT, _MVDR_LOADING = 0.25, 0.3, 0.05
# Least share of signal in a scene's energy, limits of logarithms, and the value outside the volume.
_SIGNAL, _LOWEST, _HIGHEST, _OUTSIDE = 0.1, -8.0, 8.0, -30.0


def check_stages(case: Case) -> list[Report]:
    """[STAGES]: results of each stage against those of dense forms in double precision."""
    recording = case.recording[: min(_SCENES, len(case.recording))]
    targets = Targets.of(recording, case.learner.grid)
    findings = [*_conditioning_findings(recording, targets), *_loss_findings(case, targets)]
    if recording.link.weights is None and recording.panel.subcarriers <= 1:
        findings = [*_operator_findings(recording), *findings]
    findings.append(_dropout_finding(case))
    network = case.learner.network
    if isinstance(network, Network) and type(network).forward is Network.forward:
        findings += _network_findings(case, network, recording)
    return [report_of("STAGES", "operator, conditioning, losses, statistics and network", findings)]


def _same(what: str, found: Tensor, expected: Tensor, meaning: str, limit: float = _SAME) -> Finding:
    found, expected = found.detach().cpu().to(expected.dtype), expected.detach().cpu()
    if found.shape != expected.shape:
        value = math.inf
    else:
        value = float((found - expected).norm() / expected.norm().clamp_min(1e-12))
    advice = "Compare it with the formula in the documentation."
    return at_most(f"relative distance of {what} from its definition", value, limit, meaning, advice)


def _dropout_finding(case: Case) -> Finding:
    """Masks of the channel dropout: 0 with the probability of the settings, else 1 / (1 - p)."""
    p, rows = 0.25, torch.arange(64)
    spec = case.spec.network.replace(dropout=p)
    mask = data.channel_dropout(spec, Draws(case.spec.seed, "train", rows)).double()
    share = float((mask == 0).double().mean())
    wrong = float((mask[mask != 0] * (1 - p) - 1).abs().max())
    return at_most(
        "distance of the dropout masks from 0 with probability p and 1 / (1 - p) otherwise",
        max(abs(share - p) - 5 * math.sqrt(p * (1 - p) / mask.numel()), wrong),
        1e-3,
        "the masks of the channel dropout do not have mean 1: another probability, or no scale 1 / (1 - p).",
        "A channel is kept with probability 1 - p, and then divided by it.",
    )


def _operator_findings(recording: Recording) -> list[Finding]:
    """The link's products, against those of G_l = H diag(c_l)."""
    G, link = ref.operators(recording), recording.link
    S, L, M, N = G.shape
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.complex64)

    field, received, matrix = random(S, L, N), random(S, L, M), random(N, 3)
    wide = torch.complex128
    dense = link.dense().to(wide).expand(S, L, M, N) if recording.channel is not None else G
    return [
        _same("the matrices of the link (dense)", dense, G, "the link's matrices are not G_l = H diag(c_l)."),
        _same(
            *("the link's product with a field (apply)", link.apply(field)),
            (G @ field.to(wide)[..., None])[..., 0],
            "the link applied to a field is not G_l x.",
        ),
        _same(
            *("the link's adjoint product", link.adjoint(received)),
            (G.mH @ received.to(wide)[..., None])[..., 0],
            "the adjoint of the link is not G_l^H y (a conjugation of codes or channel).",
        ),
        _same(
            *("the link's product with a matrix (matmul)", link.matmul(matrix).expand(S, L, M, 3)),
            G @ matrix.to(wide),
            "the link applied to steering vectors is not G_l A.",
        ),
    ]


def _conditioning_findings(recording: Recording, targets: Targets) -> list[Finding]:
    """Loading and shrinkage of R_samp, and R_true conditioned with them."""
    found = []
    if recording.link.weights is None and recording.panel.subcarriers <= 1:
        G, y = ref.operators(recording), recording.snapshots.to(torch.complex128)
        assert recording.noise_variance is not None
        noise = recording.noise_variance.double()
        _, L, M, N = G.shape
        x = ref.back_projection(G, recording.snapshots, noise)
        gram = G @ G.mH
        excess = torch.maximum(y.abs().square().mean((1, 2)) - noise, noise / math.sqrt(L * M))
        ridge = (noise / excess).clamp_min(10 * M * torch.finfo(recording.snapshots.real.dtype).eps)
        ridge = ridge * gram.diagonal(dim1=-2, dim2=-1).real.mean((1, 2))
        W = torch.linalg.solve(gram + ridge[:, None, None, None] * torch.eye(M, dtype=y.dtype), G).mH
        through = W.abs().square().sum((2, 3)).mean(1)
        share = (noise * through / x.abs().square().sum(-1).mean(-1)).clamp(0, 1)
        R = ref.covariance_of(x)
        loading = share.clamp_max(_IDENTITY / (1 - _IDENTITY))
        least = ((1 - share) * min(1.0, M / N)).square() / L
        stands_out = torch.maximum(R.abs().square().sum((1, 2)) - 1 / L - 1 / N, least)
        error = share * (2 - share) / L
        shrinkage = torch.minimum(error / (error + stands_out), 1 - (1 - _IDENTITY) * (1 + loading))
        found += [
            _same(
                *(
                    "the back-projected snapshots",
                    back_project(recording.link, recording.snapshots, noise.float()).field,
                    x,
                ),
                "the back-projection is not G_l^H (G_l G_l^H + lambda I)^-1 y_l with lambda from the "
                "signal's power, which is that received less that of the noise.",
            ),
            _same(
                *("the loading of R_samp", targets.conditioning.loading, loading),
                "the loading of R_samp is not the share of the noise in its energy.",
            ),
            _same(
                *("the shrinkage of R_samp", targets.conditioning.shrinkage, shrinkage),
                "the shrinkage of R_samp is not e / (e + d) with the error e = nu (2 - nu) / L of the noise.",
                1e-2,
            ),
        ]
    epsilon, rho = (
        v.double().cpu()[:, None, None]
        for v in (targets.conditioning.loading, targets.conditioning.shrinkage)
    )
    T = ref.unit_trace(targets.true.dense().to(torch.complex128).cpu())
    N = T.shape[-1]
    identity = torch.eye(N, dtype=T.dtype) / N
    expected = (1 - rho) / (1 + epsilon) * (T + epsilon * identity) + rho * identity
    present = targets.count.cpu() > 0
    found.append(
        _same(
            *("R_true, loaded and shrunk,", targets.conditioned.dense()[present], expected[present]),
            "R_true is not loaded and shrunk by (1 - rho) / (1 + eps) (R + eps I / N) + rho I / N (a share "
            "in place of its root?).",
        )
    )
    return found


def _loss_findings(case: Case, targets: Targets) -> list[Finding]:
    """Losses of covariances and factors of a random prediction, by dense matrices."""
    like = case.learner.predict(case.recording[: len(targets)], averaged=False)
    prediction = ref.random_prediction(like)
    beta = 0.3
    losses = total_of(case, prediction, targets, beta)
    wide = torch.complex128
    a, b = (v.to(wide).cpu() for v in (prediction.angle_factor, prediction.range_factor))
    P = ref.unit_trace(a @ a.mH + _RANGE_WEIGHT * b @ b.mH)
    sample = ref.unit_trace(targets.sample.dense().to(wide).cpu())
    keep = (1 - targets.conditioning.identity.double().cpu())[:, None, None]
    N = P.shape[-1]
    identity = torch.eye(N, dtype=wide) / N
    R = keep * ((1 - beta) * P + beta * sample) + (1 - keep) * identity
    T = keep * ref.unit_trace(targets.true.dense().to(wide).cpu()) + (1 - keep) * identity
    here = (targets.count > 0).double().cpu()
    A = targets.steering.to(wide).cpu()
    outside = torch.eye(N, dtype=wide) - A @ torch.linalg.pinv(A, rtol=1e-6)
    leaked = (outside @ R @ outside).abs().square().sum((1, 2)) / R.abs().square().sum((1, 2))
    trace = (a.abs().square().sum((1, 2)) + _RANGE_WEIGHT * b.abs().square().sum((1, 2))).square()

    def coherence(x: Tensor) -> Tensor:
        gram = (x.mH @ x).abs().square()
        return gram.sum((1, 2)) - gram.diagonal(dim1=1, dim2=2).sum(1)

    expected = {
        "covariance": (_covariance_error(R, T) * here).mean(),
        "covariance_predicted": (
            _covariance_error(P, ref.unit_trace(targets.true.dense().to(wide).cpu())) * here
        ).mean(),
        "subspace": (leaked * here).mean(),
        "orthogonality": ((coherence(a) + _RANGE_WEIGHT**2 * coherence(b)) / trace).mean(),
        "cross": (2 * _RANGE_WEIGHT * (a.mH @ b).abs().square().sum((1, 2)) / trace).mean(),
        "peak_contrast": _peak_contrast(case, targets, R, T),
    }
    terms = {str(name): value for name, value in losses.terms.items()}
    return [
        _same(
            *(f"loss {name} of a random prediction", terms[name], value),
            f"loss {name} is {float(terms[name]):.4g}, but {float(value):.4g} by dense matrices and its "
            "definition.",
            1e-2,
        )
        for name, value in expected.items()
        if name in terms
    ]


def _covariance_error(R: Tensor, T: Tensor) -> Tensor:
    """Errors of diagonal and rest, each relative to that of T, in the mean."""

    def parts(x: Tensor) -> tuple[Tensor, Tensor]:
        level = x.diagonal(dim1=-2, dim2=-1)
        return level.abs().square().sum(-1), (x - torch.diag_embed(level)).abs().square().sum((-2, -1))

    (on, off), (level, rest) = parts(R - T), parts(T)
    whole = level + rest
    return (on / level + off / torch.where(rest > 1e-6 * whole, rest, whole)) / 2


def _peak_contrast(case: Case, targets: Targets, R: Tensor, T: Tensor) -> Tensor:
    """Divergence of MVDR spectra on the 5 x 5 cells around each source, the mean over all."""
    grid, truth = case.learner.grid, targets.truth
    spec = case.spec.system.panel
    elements, N = ref.element_positions(spec), R.shape[-1]
    identity = torch.eye(N, dtype=R.dtype) / N
    shift = torch.arange(-2, 3, dtype=torch.float64)
    scenes = []
    for s in range(len(R)):
        found = []
        for k in (~truth.azimuth[s].isnan()).nonzero()[:, 0]:
            azimuth, elevation, distance = (
                float(v[s, k]) for v in (truth.azimuth, truth.elevation, truth.range)
            )
            u_x = math.sin(azimuth) * math.cos(elevation) + grid.step[0] * shift.repeat_interleave(5)
            u_y = math.sin(elevation) + grid.step[1] * shift.repeat(5)
            across = torch.hypot(u_x, u_y)
            scale = torch.where(across > 1 - 1e-6, (1 - 1e-6) / across, 1)
            u_x, u_y = u_x * scale, u_y * scale
            up = (1 - u_x.square() - u_y.square()).sqrt()
            a = ref.steering_vectors(
                *(elements, spec.wavelength_m, torch.atan2(u_x, up), torch.asin(u_y)),
                torch.full_like(u_x, distance),
                uniform=spec.wave == "uniform",
            )
            logs = []
            for matrix in (R[s], T[s]):
                loaded = (matrix + _MVDR_LOADING * identity) / (1 + _MVDR_LOADING)
                value = 1 / (a.conj() * torch.linalg.solve(loaded, a)).sum(0).real
                logs.append(value.log().log_softmax(0))
            found.append((logs[1].exp() * (logs[1] - logs[0])).sum())
        scenes.append(torch.stack(found).mean() if found else torch.zeros((), dtype=torch.float64))
    return torch.stack(scenes).mean()


def _network_findings(case: Case, network: Network, recording: Recording) -> list[Finding]:
    """Statistics on the grid, and each output of the network, from its weights."""
    statistics = network._statistics
    with torch.no_grad():
        scenes, initial, start = network.initial_statistics(recording)
        uniform = statistics.uniform_power(scenes)
        found = []
        a = _in_basis(network)
        B, y = scenes.fields.to(torch.complex128).cpu(), scenes.data.to(torch.complex128).cpu()
        noise, inside = scenes.noise_variance.double().cpu(), network.grid.inside.cpu()
        power = ((recording.snapshots.abs().double().square()).mean((1, 2))).cpu()
        received = y.abs().square().mean((1, 2, 3))
        found.append(
            _same(
                *("the scaled snapshots' power", received, torch.ones_like(received)),
                "the network's input is not scaled to unit power per output.",
            )
        )
        if recording.noise_variance is not None:
            relative = (recording.noise_variance.double().cpu() / power).clamp_min(1e-5)
            found.append(
                _same(
                    *("the network's noise variance", noise, relative),
                    "the noise variance that the network gets is not that of the scaled snapshots.",
                )
            )
        gains = (B @ a).abs().square().sum((1, 2)) * scenes.repeats
        signal = torch.maximum(
            y.abs().square().sum((1, 2, 3)) - y[0].numel() * noise, _SIGNAL * y.abs().square().sum((1, 2, 3))
        )
        level = signal / (gains * inside).sum(-1)
        found.append(
            _same(
                *("the uniform powers", uniform, level[:, None] * inside),
                "the uniform source powers do not explain the signal energy of the snapshots.",
                _LAYERS,
            )
        )
        matched, expected = statistics(scenes, start)
        m, e = _statistics(B, y, noise, a, start.double().cpu(), scenes.repeats)
        for what, one, two in (("matched", matched, m), ("expected", expected, e)):
            found.append(
                _same(
                    *(f"the {what} energies on the grid", one, two),
                    f"the statistics of the network's input ({what} energies) are not those of R_l = G_l C "
                    "G_l^H + sigma^2 I.",
                    _LAYERS,
                )
            )
        with case.learner.single_precision():
            prediction = network(recording)
        found += _stage_findings(network, scenes, initial, start, prediction)
    return found


def _in_basis(network: Network) -> Tensor:
    """Steering vectors of the grid in the basis of the statistics, [D, P]."""
    grid = network.grid
    at = [value.cpu() for value in (grid.azimuth, grid.elevation, grid.range)]
    panel = grid.panel
    a = ref.steering_vectors(
        panel.elements.double().cpu(), panel.wavelength, *at, uniform=panel.wave == "uniform"
    )
    return network._statistics.basis.to(torch.complex128).cpu().mH @ a


def _statistics(
    B: Tensor, y: Tensor, noise: Tensor, a: Tensor, power: Tensor, repeats: int
) -> tuple[Tensor, Tensor]:
    """Matched and expected energies of every point, by dense covariances."""
    C = torch.einsum("dp,sp,ep->sde", a, power.to(a.dtype), a.conj())
    identity = torch.eye(B.shape[2], dtype=B.dtype)
    R = B @ C[:, None] @ B.mH + noise[:, None, None, None] * identity
    fields = B @ a
    whitened = torch.linalg.solve(R, fields)
    matched = (whitened.mH @ y).abs().square().sum((1, 3))
    expected = (fields.conj() * whitened).real.sum((1, 2)) * repeats
    return matched, expected.clamp_min(1e-9)


def _log(value: Tensor) -> Tensor:
    return value.clamp_min(1e-30).log().clamp(_LOWEST, _HIGHEST)


def _stage_findings(
    network: Network, scenes: object, initial: Tensor, power: Tensor, prediction: Prediction
) -> list[Finding]:
    """The heat map of each stage, and the sources, from the weights of the network."""
    grid, statistics = network.grid, network._statistics
    w = {name: value.detach().double().cpu() for name, value in network.named_parameters()}
    X, Y, Z = grid.shape
    S, inside = len(power), grid.inside.cpu()
    assert prediction.grid_logits is not None
    found, features, now = [], None, torch.zeros(0)
    noise = scenes.noise_variance.double().cpu().log() / 4  # type: ignore[attr-defined]
    for stage in range(network.spec.stages):
        matched, expected = statistics(scenes, power)  # type: ignore[arg-type]
        gain = scenes.gain  # type: ignore[attr-defined]
        now = (
            torch.stack((_log(matched / expected), _log(expected * power), _log(power * gain)), 1)
            .double()
            .cpu()
        )
        every = torch.cat((initial.double().cpu(), now), 1).view(S, -1, X, Y, Z)
        maps = [every[:, c, :, :, z] for c in range(every.shape[1]) for z in range(Z)]
        maps += [one.expand(S, X, Y) for one in network.place.double().cpu()]
        maps.append(noise[:, None, None].expand(S, X, Y))
        x = torch.stack(maps, 1)
        x = x if features is None else torch.cat((x, features), 1)
        features, heat = _stage(w, f"stages.{stage}.", x, network)
        logits = torch.where(inside, heat + now[:, 2] + now[:, 0], _OUTSIDE)
        # Without the part that comes from the statistics, which is larger at first.
        own = prediction.grid_logits[:, stage].double().cpu() - now[:, 2] - now[:, 0]
        found.append(
            _same(
                *(f"the heat map of stage {stage + 1}", own[:, inside], heat[:, inside]),
                f"the heat map of stage {stage + 1} is not that of its layers (input maps, blocks with "
                "residual connections, attention, output) with these weights.",
                _LAYERS,
            )
        )
        if not found[-1].fine:
            return found
        share = logits.exp() / logits.exp().sum(-1, keepdim=True) + 1e-7 * inside
        gain = gain.double().cpu()
        level = scenes.signal.double().cpu() / (share * gain).sum(-1)  # type: ignore[attr-defined]
        power = (share * level[:, None]).to(power.dtype)
    assert features is not None
    return [*found, *_source_findings(network, w, features, logits, now, noise, prediction)]


def _stage(w: Mapping[str, Tensor], name: str, x: Tensor, network: Network) -> tuple[Tensor, Tensor]:
    """Features and heat map of a stage, with explicit sums."""

    def linear(which: str, value: Tensor) -> Tensor:
        weight = w[which + "weight"]
        return value @ weight.reshape(len(weight), -1).mT + w[which + "bias"]

    def norm(which: str, value: Tensor) -> Tensor:
        centred = value - value.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * w[which + "weight"] + w[which + "bias"]

    S, _, X, Y = x.shape
    h = linear(name + "read.", x.movedim(1, -1))
    for number in range(network.spec.depth):
        block = f"{name}blocks.{number}."
        kernel, pad = w[block + "near.weight"], network.spec.kernel // 2
        padded = functional.pad(h.movedim(-1, 1), (pad,) * 4)
        near = sum(
            padded[:, :, i : i + X, j : j + Y] * kernel[:, 0, i, j, None, None]
            for i in range(kernel.shape[2])
            for j in range(kernel.shape[3])
        )
        assert isinstance(near, Tensor)
        near = near.movedim(1, -1) + w[block + "near.bias"]
        wide = linear(block + "widen.", norm(block + "norm.", near))
        wide = wide * (1 + torch.erf(wide / math.sqrt(2))) / 2
        h = h + linear(block + "narrow.", wide)
        if block + "attention.ask.weight" in w:
            tokens = h.reshape(S, X * Y, -1)
            asked = linear(block + "attention.ask.", norm(block + "attention.norm.", tokens))
            width, heads = tokens.shape[-1], network.spec.heads
            q, k, v = (part.view(S, X * Y, heads, -1).transpose(1, 2) for part in asked.split(width, -1))
            weights = (q @ k.mT / math.sqrt(width // heads)).softmax(-1)
            mixed = (weights @ v).transpose(1, 2).reshape(S, X * Y, width)
            h = h + linear(block + "attention.answer.", mixed).view_as(h)
    return h.movedim(-1, 1), linear(name + "write.", h).flatten(1)


def _source_findings(
    network: Network,
    w: Mapping[str, Tensor],
    features: Tensor,
    logits: Tensor,
    now: Tensor,
    noise: Tensor,
    prediction: Prediction,
) -> list[Finding]:
    """Existence, amplitudes and number of sources from the features at the peaks of the heat map."""
    grid = network.grid
    X, Y, Z = grid.shape
    S, K = len(features), network.spec.sources_max
    index = highest_points(logits.float().to(grid.inside.device), grid, K).cpu()
    x, y, z = index // (Y * Z), index // Z % Y, index % Z
    height = logits.log_softmax(-1).gather(1, index)
    weight = w["details.weight"].reshape(6, Z, -1)
    bias = w["details.bias"].view(6, Z)
    rows = torch.arange(S)[:, None]
    at = features[rows, :, x, y]
    details = torch.einsum("skw,jskw->skj", at, weight[:, z]) + bias[:, z].movedim(0, -1)
    pooled = torch.cat((features.mean((2, 3)), features.amax((2, 3)), noise[:, None], height), 1)
    pooled = torch.cat((pooled, now.amax((1, 2))[:, None]), 1)
    hidden = pooled @ w["count.0.weight"].mT + w["count.0.bias"]
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    count = hidden @ w["count.2.weight"].mT + w["count.2.bias"]
    norms = [prediction.angle_factor.norm(dim=1).log(), prediction.range_factor.norm(dim=1).log()]
    # The mean of the map around each peak, and a shift of at most a step.
    near = logits.view(S, X, Y, Z)
    steps = [(i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)]
    value = torch.full((S, K, 27), -torch.inf, dtype=torch.float64)
    for n, (i, j, k) in enumerate(steps):
        there = (x + i >= 0) & (x + i < X) & (y + j >= 0) & (y + j < Y) & (z + k >= 0) & (z + k < Z)
        at_step = near[rows, (x + i).clamp(0, X - 1), (y + j).clamp(0, Y - 1), (z + k).clamp(0, Z - 1)]
        value[..., n] = torch.where(there, at_step, -torch.inf)
    mean = value.softmax(-1) @ torch.tensor(steps, dtype=torch.float64) + details[..., :3].tanh()
    u_x, u_y, q = (
        axis.double().cpu()[cell] + grid.step[n] * mean[..., n]
        for n, (axis, cell) in enumerate(zip((grid.u_x, grid.u_y, grid.q), (x, y, z), strict=True))
    )
    u_y = u_y.clamp(-0.95, 0.95)
    u_x = torch.minimum(u_x.abs(), 0.999 * (1 - u_y.square()).sqrt()) * u_x.sign()
    elevation, q = u_y.asin(), q.clamp_min(grid.step[2] / 4)
    azimuth = torch.atan2(u_x, (1 - u_x.square() - u_y.square()).sqrt())
    outputs = (
        ("the azimuths", prediction.azimuth, azimuth),
        ("the elevations", prediction.elevation, elevation),
        ("the inverse ranges", prediction.inverse_range, q),
        ("the existence logits", prediction.existence_logits - height, details[..., 5] + 4),
        ("the angle factor's amplitudes", norms[0] - height / 2, details[..., 3]),
        ("the range factor's amplitudes", norms[1] - height / 2, details[..., 4]),
        ("the logits of the number of sources", prediction.count_logits, count),
    )
    # A peak that is as high as another may be in another place.
    return [
        _same(
            *(what, one, two),
            f"{what} are not those of the last layers at the peaks of the heat map with these weights (order "
            "of the axes?).",
            _LAYERS,
        )
        for what, one, two in outputs
    ]
