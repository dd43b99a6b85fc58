"""What a loop has learned by its end: all terms of its loss, more than a constant, what holds for other rows.

The last batches are repeated with the last weights, and the network is trained anew from its first ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rismusic.doctor.counterfactuals import Counterfactuals, Settings
from rismusic.doctor.report import Findings, listed
from rismusic.doctor.state import first_places, names, row_codes, size_of
from rismusic.doctor.tape import Batch, Call, LeftOutError, Replay, Tape
from rismusic.doctor.tape_checks import attempted, chosen_samples
from rismusic.nn.monitors import Finding, Report, at_least

# Fewest steps after which a network should know more than a constant.
_FEWEST_STEPS = 40
# Gain over the best constant output, relative to its loss, below which nothing is learned of the inputs.
_GAIN = 0.02
# CPU seconds for training anew.
_SECONDS = 2.0
# Share of distinct rows among those seen, below which the data are known well enough to hold rows out.
_REPEATED = 0.85
# Rows from which some can be held out.
_FEW = 32
# Calls through which a constant output is given to the call before, which keeps it in its range.
_LINKS = names(
    "softmax log_softmax sigmoid logsigmoid tanh relu relu_ softplus exp normalize elu leaky_relu gelu "
    "silu squeeze unsqueeze view reshape flatten clone contiguous transpose permute float clamp"
)
_SUMS = names("add __add__ __radd__ sub __sub__ __rsub__ add_ __iadd__")
_LINEAR = names(
    "mul __mul__ __rmul__ div __truediv__ true_divide sum mean neg __neg__ stack squeeze view reshape"
)


@dataclass
class LearningChecks:
    """A loop at its end; ``tapes``: of one kind of loss, each batch once, of all steps, and of the last."""

    first: Mapping[str, Tape]
    tapes: tuple[list[Tape], list[Tape]]
    initial: Mapping[int, Tensor]
    steps: int
    own: set[int]
    alone: bool
    settings: Settings | None = None

    @property
    def reports(self) -> list[Report]:
        """[TERMS], [RETRAIN], and [LEARNED]."""
        checks = (("TERMS", self.terms), ("RETRAIN", self.changed_settings), ("LEARNED", self.learned))
        return list(attempted(checks, "the last batches, repeated with the last weights"))

    def terms(self) -> list[Finding]:
        """The terms of the loss are all learned."""
        tapes = self.tapes[1][-8:]
        if not tapes:
            raise LeftOutError("no batches were recorded")
        last = tapes[-1]
        terms = terms_of(last)
        if len(terms) < 2 or not any(term.data for term in terms):
            raise LeftOutError("the loss is no sum of terms that compare with data")
        found = Findings()
        first = self.first.get(last.kind, last)
        early = term_gradients(Replay(first, {k: self.initial[k] for k in first.weights}), terms_of(first))
        late = term_gradients(Replay(last), terms)
        idle = [term.name for term, norms in zip(terms, late, strict=True) if not any(norms.values())]
        made = {key for call in last.calls if not call.pure for key in (*call.outs, *call.mutated)}
        found.must_be_zero(
            "terms of the loss without a gradient",
            len(idle) if all(term.key in made or term.key in last.weights for term in terms) else 0,
            f"{listed(idle)} of the loss has no gradient: its weight is 0, or it is detached.",
            "Remove it, or give it a weight, and remove detach(), item() and no_grad.",
        )
        data = [k for k, term in enumerate(terms) if term.data]
        if self.steps < _FEWEST_STEPS or not self.alone or len(tapes) < 4:
            return found
        for k in data:
            ratios = [(_ratio(one, k, j), j) for one in (early, late) for j in range(len(terms)) if j != k]
            ratio, j = max(ratios, default=(0.0, 0))
            # Terms of data that also feed the network may balance each other, as those of a likelihood do.
            own_data = any(terms[k].key in last.compared(t) for t in last.targets if t not in last.inputs)
            if ratio < (10 if own_data else 30):
                continue
            keys = [terms_of(tape)[k].key for tape in tapes]
            constant = sum(constant_losses([Batch(tape, {}) for tape in tapes], keys)) / len(tapes)
            values = [float(Replay(t).base[key].mean()) for t, key in zip(tapes, keys, strict=True)]
            own = sum(values) / len(tapes)
            if constant <= 1e-3 * abs(own):
                # A term that is lowest for a constant output, such as the pull of a contrastive loss.
                continue
            found.at_least(
                f"gain of {terms[k].name} over the best constant output, relative",
                (constant - own) / max(abs(constant), 1e-12),
                _GAIN,
                f"{terms[k].name} of the loss is not learned: it is {own:.3g}, with the best constant "
                f"output {constant:.3g}. The gradient of {terms[j].name} is {ratio:.3g} times as large "
                "and outweighs it.",
                "Weight the terms so that their gradients are of one size: average or sum all alike, "
                "scale targets.",
            )
        return found

    def _repeatable(self) -> list[Tape]:
        """The batches on which a network may be trained anew."""
        if not self.alone:
            raise LeftOutError("networks with optimizers of their own may compete")
        if self.steps < _FEWEST_STEPS:
            raise LeftOutError(f"fewer than {_FEWEST_STEPS} steps")
        tapes = self.tapes[0]
        if len(tapes) < 4:
            raise LeftOutError("fewer than 4 batches that differ")
        if any(tape.random for tape in tapes) or not tapes[-1].inputs:
            raise LeftOutError("the loss draws numbers that depend on the network, or there are no inputs")
        if any(not call.grad and not call.pure for call in tapes[-1].calls):
            raise LeftOutError("the targets depend on a network")
        return tapes

    def changed_settings(self) -> list[Finding]:
        """The training would not learn much more with one thing changed."""
        tapes = self._repeatable()
        if self.settings is None:
            raise LeftOutError("no optimizer was seen")
        batches = [Batch(tape, {}) for tape in tapes]
        return Counterfactuals(batches, self.initial, self.settings, self.steps).findings

    def learned(self) -> list[Finding]:
        """The outputs are better than the best constant; if not, why."""
        tapes = self._repeatable()
        used = tapes[-8:]
        constant = constant_losses([Batch(tape, {}) for tape in used], [tape.loss for tape in used])
        network = [Replay(tape).loss for tape in used]
        level = sum(constant) / len(used)
        scale = max(abs(level), deviation(constant), 1e-12)
        gain = (level - sum(network) / len(used)) / scale
        name = "gain of the outputs over the best constant output, relative to its loss"
        before = [Replay(tape, {k: self.initial[k] for k in tape.weights}).loss for tape in used]
        start, end = sum(before) / len(used), sum(network) / len(used)

        def wrong(meaning: str, advice: str = "") -> list[Finding]:
            return [at_least(name, gain, _GAIN, meaning, advice)]

        text = (
            f"after {self.steps} steps the outputs are no better than one constant output (loss {level:.3g})"
        )
        if not tapes[-1].targets:
            if _bypassed(tapes[-1]):
                raise LeftOutError("the loss compares with no data outside the network, but maybe within it")
            meaning = (
                f"{text}: the loss compares outputs with no data, and is lowest where they do not depend on "
                "the input. The targets are missing from it."
            )
            return [at_least(name, gain if gain < 0 else max(gain, _GAIN), 0.0, meaning)]
        if gain >= _GAIN and start - end > _GAIN * abs(start):
            learned = level - sum(network) / len(used)
            found = Findings([*wrong(""), *self._generalises(tapes)])
            if any(call.name == "batch_norm" and call.kwargs.get("training") for call in used[-1].calls):
                running = [Replay(tape, running=True).loss for tape in used]
                found.at_most(
                    "loss with the running statistics of batch normalisation, over what was learned",
                    (sum(running) - sum(network)) / len(used) / max(learned, 1e-12),
                    0.7,
                    "in evaluation mode the network loses what it has learned: the running statistics "
                    "of batch normalisation do not fit the data (momentum, small batches, data of "
                    "another scale).",
                    "Use larger batches or a momentum of 0.1, or normalise over channels (GroupNorm).",
                )
            return found
        best = self._anew([Batch(tape, {}) for tape in tapes], min(self.steps, 200))
        if gain >= _GAIN:
            share = (start - end) / max(start - best.held, 1e-12)
            if (start - best.held) / scale < 10 * _GAIN:
                return wrong("")
            return [
                at_least(
                    "fall of the loss over that of the same network with Adam, on batches held out",
                    share,
                    _GAIN,
                    f"the loop learns hardly anything: the loss falls from {start:.3g} to {end:.3g}, with "
                    f"Adam at {best.rate:g} to {best.held:.3g} on batches held out: the learning rate is too "
                    "low, or the steps are lost.",
                    "Try this optimizer; then look at learning rate, clipping and the order of the calls.",
                )
            ]
        held, learned = ((level - one) / scale for one in (best.held, best.learned))
        if held >= max(5 * _GAIN, 3 * gain):
            if start - end > 0.1 * (start - best.held) or not math.isfinite(start):
                raise LeftOutError("too few steps to judge")
            at_fault = (
                "the learning rate, the optimizer or the order of the calls is at fault, not the network"
            )
            if abs(start - end) < _GAIN * (start - best.held):
                at_fault = "the learning rate is too low, or the steps are lost"
            elif end > start + 0.5 * scale:
                at_fault = "the learning rate is too high, or the steps go uphill"
            return wrong(
                f"{text}, but the same network learns from the same batches with Adam at {best.rate:g} "
                f"(loss {best.held:.3g} on batches held out): {at_fault}.",
                "Try this optimizer; then look at learning rate, weight decay, clipping and the loop.",
            )
        if learned >= 5 * _GAIN:
            what = f"{text}, and what a network learns from some batches"
            return [_unrelated(name, gain, what, best, _GAIN)]
        if self.steps < 1.5 * _FEWEST_STEPS or best.falling > _GAIN:
            raise LeftOutError("too few steps to judge")
        if level <= best.learned:
            text += (
                "; the loss is lowest for such an output, since nothing in it keeps samples apart (collapse)"
            )
        return wrong(
            f"{text}, and the same network does not learn with other optimizers either: the path from "
            "input to loss is broken, or the targets have nothing to do with the inputs.",
            "Check that each input has its own target (labels of other rows?), then network and loss.",
        )

    def _generalises(self, tapes: Sequence[Tape]) -> list[Finding]:
        """What is learned from some rows holds for others; only where the rows come again and again."""
        try:
            batches, distinct, count = rows_of(tapes)
        except LeftOutError:
            return []
        if distinct > _REPEATED or len(batches) < 4:
            return []
        best = self._anew(batches, 200)
        held = batches[-max(1, len(batches) // 4) :]
        used = [*held, *batches[: len(held)]]
        constant = constant_losses(used, [batch.tape.loss for batch in used])[: len(held)]
        level = sum(constant) / len(held)
        scale = max(abs(level), deviation(constant), 1e-12)
        gain, learned = (level - best.held) / scale, (level - best.learned) / scale
        name = "gain over the best constant output on rows held out, relative to its loss"
        text = (
            f"the network only memorises the training data ({count} different rows): what it learns from some"
        )
        # The lowest of several values is below their mean by chance.
        least = max(1.5 * _GAIN, 0.1 * learned)
        if learned < 2 * least:
            return []
        return [_unrelated(name, gain, text, best, least)]

    def _anew(self, batches: Sequence[Batch], steps: int) -> Trained:
        """The best of some trainings from the initial weights."""
        held = max(1, len(batches) // 4)
        weights = {k: self.initial.get(k, v.detach()) for k, v in batches[0].tape.weights.items()}
        start = time.process_time()
        train_anew(batches, weights, held, 1e-3, 4, self.own)
        each = (time.process_time() - start) / 8
        steps = max(20, min(steps, int(_SECONDS / 3 / max(each, 1e-6))))
        found = [train_anew(batches, weights, held, rate, steps, self.own) for rate in (1e-3, 3e-3, 2e-2)]
        best = min(found, key=lambda one: one.held)
        best.learned = min(one.learned for one in found)
        best.falling = max(one.falling for one in found)
        return best


@dataclass
class Term:
    """A term of a loss: its tensor, and whether it compares with data."""

    key: int
    name: str
    data: bool


def terms_of(tape: Tape) -> list[Term]:
    """The terms of which the loss is the sum."""
    maker: dict[int, Call] = {key: call for call in tape.calls for key in (*call.outs, *call.mutated)}
    found: list[int] = []

    def split(key: int, depth: int = 0) -> None:
        call = maker.get(key)
        if call is not None and not call.pure and depth < 40 and not call.inside:
            parts = [one for one in dict.fromkeys(call.reads) if one in maker or one in tape.weights]
            kept = call.name in (_SUMS | _LINEAR) and len(parts) == 1
            if kept or call.name == "stack" or (call.name in _SUMS and len(parts) > 1):
                for one in parts:
                    split(one, depth + 1)
                return
        found.append(key)

    split(tape.loss)
    parts = list(dict.fromkeys(found))
    if len(parts) < 2 or len(parts) > 12:
        return []
    terms = []
    for number, key in enumerate(parts):
        call = maker.get(key)
        name = f"term {number + 1} ({call.name if call is not None else 'weight'})"
        terms.append(Term(key, name, any(key in tape.compared(one) for one in tape.targets)))
    return terms


def term_gradients(replay: Replay, terms: Sequence[Term]) -> list[dict[int, float]]:
    """Norm of the gradient of each term, as weighted in the loss, by weight."""
    weights = {
        key: value.clone().requires_grad_(True)
        for key, value in replay.weights.items()
        if replay.tape.weights[key].requires_grad and (value.is_floating_point() or value.is_complex())
    }
    env = replay.run(weights=weights)
    loss = env[replay.tape.loss]
    found: list[dict[int, float]] = []
    for term in terms:
        value = env[term.key]
        if not value.requires_grad:
            found.append({})
            continue
        (factor,) = torch.autograd.grad(loss, [value], retain_graph=True, allow_unused=True)
        by = list(weights.values())
        parts = torch.autograd.grad([value], by, [factor], retain_graph=True, allow_unused=True)
        found.append({k: 0.0 if g is None else float(g.norm()) for k, g in zip(weights, parts, strict=True)})
    return found


def outputs_below(tape: Tape) -> list[int]:
    """The outputs of the network, each before the activation that keeps it in its range."""
    maker = {key: call for call in tape.calls for key in call.outs}
    found = []
    for one in tape.results:
        key = one.key
        while key in maker and maker[key].name in _LINKS and not maker[key].pure:
            before = [k for k in maker[key].reads if k in maker and not maker[k].pure]
            if len(before) != 1:
                break
            key = before[0]
        found.append(key)
    return list(dict.fromkeys(found))


def rows_of(tapes: Sequence[Tape]) -> tuple[list[Batch], float, int]:
    """Batches of distinct rows, from tapes of one kind, and share and number of the rows that are distinct.

    Few rows are drawn again and again, a quarter of them for the last batches only.
    """
    template = tapes[-1]
    samples = chosen_samples(template)
    # The data of all tapes together, by key of the last one, along the samples.
    alike = [list(tape.roots.values()) for tape in tapes if chosen_samples(tape).number == samples.number]
    pools: dict[int, Tensor] = {}
    for place, key in enumerate(template.roots):
        if key in samples.axes:
            pools[key] = torch.cat([roots[place].value for roots in alike], samples.axes[key])
    own = [key for key in template.inputs if key in pools] or [samples.primary]
    codes = list(zip(*(row_codes(pools[k].movedim(samples.axes[k], 0)).tolist() for k in own), strict=True))
    kept = first_places(codes)
    batches = []
    parts = list(kept.split(samples.number))
    if _FEW <= len(kept) < 4 * samples.number:
        generator = torch.Generator().manual_seed(0)
        some = kept[: 3 * len(kept) // 4], kept[3 * len(kept) // 4 :]
        parts = [
            one[torch.randint(len(one), (samples.number,), generator=generator)]
            for one in (some[0],) * 6 + (some[1],) * 2
        ]
    for index in parts:
        if len(index) == samples.number:
            rows = {k: index.to(pool.device) for k, pool in pools.items()}
            roots = {k: pool.index_select(samples.axes[k], rows[k]) for k, pool in pools.items()}
            batches.append(Batch(template, roots))
    return batches, len(kept) / len(codes), len(kept)


def constant_losses(batches: Sequence[Batch], ends: Sequence[int]) -> list[float]:
    """The losses (or terms) of batches of one kind with the constant output that is best for the others."""
    keys = [outputs_below(batch.tape) for batch in batches]
    replays = [batch.replay().keeping(own) for batch, own in zip(batches, keys, strict=True)]
    shapes = [[replay.base[key].shape[1:] for key in own] for replay, own in zip(replays, keys, strict=True)]
    if not keys[0] or any(one != shapes[0] for one in shapes):
        raise LeftOutError("the outputs of batches have different shapes")
    if any(replay.base[key].ndim < 1 for replay, own in zip(replays, keys, strict=True) for key in own):
        raise LeftOutError("an output has no samples")
    half = len(batches) // 2
    found = []
    for own, others in ((range(half), range(half, len(batches))), (range(half, len(batches)), range(half))):
        constants = []
        for number in range(len(keys[0])):
            values = [replays[k].base[keys[k][number]] for k in others]
            constants.append(torch.cat(values).mean(0).detach().clone().requires_grad_(True))
        start = [c.detach().clone() for c in constants]
        scale = max(max(size_of(c) for c in constants), 0.3)
        optimizer = torch.optim.Adam(constants, lr=0.05 * scale)

        def loss_of(k: int, values: Sequence[Tensor] = constants) -> Tensor:
            shapes = {key: replays[k].base[key].shape for key in keys[k]}
            given = {key: c.expand(shapes[key]).clone() for key, c in zip(keys[k], values, strict=True)}
            return replays[k].run(given=given, ends=[ends[k]])[ends[k]].mean()

        for step in range(120):
            if step == 80:
                optimizer.param_groups[0]["lr"] /= 10
            optimizer.zero_grad()
            loss = loss_of(list(others)[step % len(others)])
            if not loss.requires_grad or not math.isfinite(float(loss.detach())):
                raise LeftOutError("the loss does not depend on the outputs alone")
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            found += [float(loss_of(k)) for k in own]
            if not batches[0].tape.targets:
                # Ten times as far, as for the determinant of a flow, which layers cannot choose freely.
                far = [one + 10 * (c - one) for one, c in zip(start, constants, strict=True)]
                first, best, last = (float(loss_of(others[0], values)) for values in (start, constants, far))
                if last < best - (first - best):
                    raise LeftOutError("the loss falls without end over constant outputs")
    return found


def _bypassed(tape: Tape) -> bool:
    """Whether the data meet what the weights make of them within the network.

    So they do in the layers of a flow, and in a network that compares its input with its reconstruction. Its
    output then depends on the data whatever the weights are.
    """
    data, made = {key for key, root in tape.roots.items() if root.kind == "data"}, set[int]()
    for call in tape.calls:
        free, mixed = any(key in data for key in call.reads), any(key in made for key in call.reads)
        if call.inside and free and mixed:
            return True
        if mixed or (free and not call.pure):
            made.update((*call.outs, *call.mutated))
        elif free:
            data.update(call.outs)
    return False


@dataclass
class Trained:
    """Lowest losses of a network trained anew: of batches it learned from, and of others.

    ``falling``: by how much the latter fell in the last eighth of the steps, relative.
    """

    rate: float
    learned: float
    held: float
    falling: float = 0.0


def train_anew(
    batches: Sequence[Batch], weights: Mapping[int, Tensor], held: int, rate: float, steps: int, own: set[int]
) -> Trained:
    """Train some weights on all batches of one kind but the last ones, with Adam."""
    replays = [batch.replay(weights).keeping(()) for batch in batches]
    trained = {k: v.clone().requires_grad_(k in own) for k, v in replays[0].weights.items()}
    optimizer = torch.optim.Adam([v for v in trained.values() if v.requires_grad], lr=rate)
    count = len(batches) - held
    best = Trained(rate, math.inf, math.inf)

    def loss_of(k: int) -> Tensor:
        replays[k].forget_statistics()
        return replays[k].run(weights=trained)[batches[k].tape.loss]

    def mean(which: range) -> float:
        with torch.no_grad():
            return sum(float(loss_of(k)) for k in which) / len(which)

    for step in range(steps + 1):
        if step % max(1, steps // 8) == 0:
            best.learned = min(best.learned, mean(range(max(0, count - held), count)))
            loss_held = mean(range(count, len(batches)))
            best.falling = (best.held - loss_held) / max(abs(loss_held), 1e-12) if step else 0.0
            best.held = min(best.held, loss_held)
        loss = loss_of(step % count)
        optimizer.zero_grad()
        if not loss.requires_grad or not math.isfinite(float(loss.detach())):
            break
        loss.backward()
        optimizer.step()
    return best


def _unrelated(name: str, gain: float, text: str, best: Trained, least: float) -> Finding:
    return at_least(
        name,
        gain,
        least,
        f"{text} does not hold for others (loss {best.learned:.3g} on those, {best.held:.3g} on batches held "
        "out): there are too few data, or inputs and targets do not belong together (labels shuffled, "
        "shifted, or of other rows).",
    )


def _ratio(norms: Sequence[dict[int, float]], k: int, j: int) -> float:
    """Gradient of a term over that of another, over the weights that both reach."""
    both = [key for key in norms[k] if norms[k][key] > 0 and norms[j].get(key, 0.0) > 0]
    one, two = (math.sqrt(sum(norms[n][key] ** 2 for key in both)) for n in (j, k))
    return one / two if two > 0 else 0.0


def deviation(values: Sequence[float]) -> float:
    """Standard deviation."""
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
