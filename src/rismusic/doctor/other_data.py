"""The recorded training, repeated with its data changed: does the network take them for what they mean?

Columns that are codes, units or marks of missing numbers, targets of another scale, and rows in another order
train without an error. Each change is a training of the same loop from the same weights on the same batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from rismusic.doctor.counterfactuals import Counterfactuals, Settings
from rismusic.doctor.report import must_be_zero
from rismusic.doctor.shifts import shift
from rismusic.doctor.state import names
from rismusic.doctor.tape import Batch, Call, LeftOutError, Tape
from rismusic.nn.monitors import Finding, at_most

# Fewest batches, fewest and most steps of a training.
_BATCHES, _FEWEST, _MOST = 8, 50, 200
# CPU seconds of a training, and of all.
_SECONDS, _ALL_SECONDS = 0.7, 8.0
# Share of the loss of a constant output that a change must gain, and below which nothing is learned.
_GAIN, _NOTHING, _CLEAR = 0.15, 0.1, 0.5
# Share of a column that a mark of missing numbers has; its distance from the others, over their spread.
_MARKED, _FAR = (0.005, 0.6), 3.0
# Numbers of different values that a code may have, and share of each.
_CODES, _EACH = (5, 30), 0.01
# Most columns that are codes; more are measurements of few steps, such as pixels.
_COLUMNS = 4
# Sizes of targets, spread of the logarithm of the sizes of samples, ratio of tails to middle, and offset of a
# column over its spread, from which they are tried otherwise.
_SIZES, _LOUD, _TAILS, _OFFSET = (0.05, 8.0), 0.7, 8.0, 4.0
# Units of a layer that may be a bottleneck, and layers that are looked at.
_NARROW = 2
_NARROWED = names("linear gru lstm rnn_tanh rnn_relu")
# Numbers of a sample of which a size is meant.
_WIDE = 8


@dataclass
class _Change:
    """Batches that are changed, what this says of the data, and weights that fit the changed ones.

    ``level``: the loss of the best constant output, if changed; ``control``: a change without a meaning,
    which others must surpass; ``twice``: whether more is easier anyway, so that it must bring twice as much.
    """

    what: str
    meaning: str
    advice: str
    batches: list[Batch]
    initial: Mapping[int, Tensor]
    level: float | None = None
    control: bool = False
    twice: bool = False


class OtherData:
    """Trainings on changed data.

    Args:
        tapes: of one kind, each batch once.
        initial: the first values of the weights.
        settings: those of the loop.
        steps: number of steps of the loop.
        constant: mean loss of some batches with the best constant output.
    """

    def __init__(
        self,
        tapes: Sequence[Tape],
        initial: Mapping[int, Tensor],
        settings: Settings,
        steps: int,
        constant: Callable[[Sequence[Batch]], float],
    ) -> None:
        if len(tapes) < _BATCHES:
            raise LeftOutError(f"fewer than {_BATCHES} batches that differ")
        self.tapes, self.initial, self.settings, self.constant = tapes, initial, settings, constant
        self.batches = [Batch(tape, {}) for tape in tapes]
        last = tapes[-1]
        rows = [len(r.value) if r.kind == "data" and r.value.ndim else 0 for r in last.roots.values()]
        used, asked = set(last.inputs), set(last.targets)
        # Places of the data among the roots, which are the same in all tapes.
        self.inputs = [n for n, key in enumerate(last.roots) if key in used and rows[n] > 1]
        self.targets = [n for n, key in enumerate(last.roots) if key in asked - used and rows[n] > 1]
        self.level = constant(self.batches)
        started = time.process_time()
        self.end = started + _ALL_SECONDS
        Counterfactuals(self.batches, initial, settings, 4).weights_after(settings, 4)
        each = (time.process_time() - started) / (4 + len(tapes) / 3)
        self.steps = min(_MOST, 2 * steps, int(_SECONDS / max(each, 1e-6)))
        if self.steps < _FEWEST:
            raise LeftOutError("repeating the training takes too long")

    def values(self, place: int) -> list[Tensor]:
        """The data at a place, of each batch."""
        return [list(tape.roots.values())[place].value for tape in self.tapes]

    def changed(self, values: Mapping[int, Sequence[Tensor]]) -> list[Batch]:
        """The batches with other data at some places."""
        return [
            Batch(tape, {list(tape.roots)[place]: new[k] for place, new in values.items()})
            for k, tape in enumerate(self.tapes)
        ]

    def share(self, change: _Change, order: int = 1) -> float:
        """The share of the loss of the best constant output that the loop removes, on batches held out."""
        training = Counterfactuals(change.batches, change.initial, self.settings, self.steps)
        level = self.level if change.level is None else change.level
        _, held = training._trained(self.settings, self.steps, order=order)
        return (level - held) / max(abs(level), 1e-12)

    @property
    def findings(self) -> list[Finding]:
        """No change of the data lets the loop learn much more."""
        own = _Change("", "", "", self.batches, self.initial)
        shares: dict[int, float] = {}

        def plain(order: int) -> float:
            if order not in shares:
                shares[order] = self.share(own, order)
            return shares[order]

        found, best = self.marks(), None
        if any(not one.fine for one in found):
            return found
        changes, control = list(self.changes()), 0.0
        if changes or self.targets:
            changes += self.orders() if plain(1) < _NOTHING else ()
        for change in changes:
            if time.process_time() > self.end:
                break
            try:
                other = self.share(change)
            except (RuntimeError, ValueError, IndexError):
                # The change does not fit the rest of the network.
                continue
            if change.control:
                control = other
                continue
            # A loss below 0 has no share.
            gain = other - max(plain(1), control, 0.0) if other <= 1 else 0.0
            gain = 0.0 if change.twice and other < 2 * plain(1) else gain
            if gain > _GAIN:
                other = min(other, self.share(change, -1))
                gain = min(gain, other - max(plain(-1), control, 0.0))
            finding = at_most(
                f"share of the loss of a constant output that is gained {change.what}",
                gain,
                _GAIN,
                f"{change.meaning}: {change.what}, the same loop removes {100 * max(other, 0):.0f} % of the "
                f"loss of the best constant output on batches held out, now {100 * max(plain(1), 0):.0f} %.",
                change.advice,
            )
            # Of several changes that help, the best one is the cause.
            if best is None or gain > best.value:
                best = finding
            if gain > _CLEAR:
                break
        found += [] if best is None else [best]
        if plain(1) < _NOTHING:
            found += self.sorted_apart()
        if all(one.fine for one in found) and time.process_time() < self.end:
            found += self.halves()
        return found

    def marks(self) -> list[Finding]:
        """Numbers that mark missing ones, far from all others, and parts of complex numbers that are 0."""
        found = []
        for place in (*self.inputs, *self.targets):
            value = torch.cat(
                [one.flatten(0, -2) if one.ndim > 1 else one[:, None] for one in self.values(place)]
            )
            what = "the input" if place in self.inputs else "the targets"
            if value.is_complex():
                empty = [name for name in ("real", "imag") if not bool(getattr(value, name).any())]
                found.append(
                    must_be_zero(
                        f"parts of {what} that are 0 in all samples",
                        len(empty),
                        f"{what} is complex, but its {'imaginary' if 'imag' in empty else 'real'} part is 0 "
                        "in all samples: magnitudes (abs) or real parts were taken, and the phase is lost.",
                        "Keep the complex numbers where the data are read and prepared.",
                    )
                )
            if not value.is_floating_point() or len(value) < 64 or value.shape[1] > 512:
                continue
            for number, column in enumerate(value.double().unbind(1)):
                mark = _mark(column)
                if mark is not None:
                    share, distance = mark[1:]
                    found.append(
                        at_most(
                            "distance of one repeated number from all others of a column, over their spread",
                            distance,
                            _FAR,
                            f"column {number} of {what} has the number {mark[0]:.4g} in {100 * share:.2g} % "
                            f"of the samples, {distance:.3g} times the spread of the others away from them: "
                            "a mark for missing values (such as -999, -1 or 0) is taken for a number, and "
                            "spoils means and deviations as well.",
                            "Leave such samples out, or replace the mark by the mean of the others (before "
                            "scaling), with a column that says so.",
                        )
                    )
        return found

    def changes(self) -> Iterator[_Change]:
        """Other meanings of inputs and targets that their numbers suggest."""
        yield from self.wider()
        yield from self.finer()
        new: dict[str, dict[int, list[Tensor]]] = {words: {} for words in _SCALES}
        for place in self.inputs:
            values = self.values(place)
            if values[0].ndim < 2 or len({one.shape[1:] for one in values}) > 1:
                continue
            whole = torch.cat(values)
            if not (whole.is_floating_point() or whole.is_complex()):
                continue
            sizes, parts = [len(one) for one in values], {}
            loud = whole.abs().double().flatten(1).square().mean(1).sqrt()
            if whole[0].numel() >= _WIDE and float(loud[loud > 0].log().std()) > _LOUD:
                shape = (-1, *[1] * (whole.ndim - 1))
                parts["with each sample divided by its own size"] = whole / loud.clamp_min(1e-12).reshape(
                    shape
                )
            if whole.is_floating_point() and whole.ndim == 2 and place not in self._both:
                parts |= _other_columns(whole.double())
                yield from self.codes(place, whole)
            for words, value in parts.items():
                new[words][place] = list(value.to(whole.dtype).split(sizes))
        for words, (meaning, advice) in _SCALES.items():
            if new[words]:
                batches = self.changed(new[words])
                level = self.constant(batches) if set(new[words]) & set(self._both) else None
                yield _Change(words, meaning, advice, batches, self.initial, level)
        unturned = [n for n in (*self.inputs, *self.targets) if any(r is not None for r in self._unturned(n))]
        if unturned:
            batches = self.changed(
                {
                    n: [a if b is None else b for a, b in zip(self.values(n), self._unturned(n), strict=True)]
                    for n in unturned
                }
            )
            yield _Change(
                "without turning them",
                "inputs or targets are flipped, rotated or shifted in the loop and the others not, though "
                "targets depend on it",
                "Turn the targets likewise (positions, masks, classes of mirror images), or leave this out.",
                batches,
                self.initial,
                twice=True,
            )
        yield from self.scaled_targets()

    def wider(self) -> Iterator[_Change]:
        """Layers of one or two units between others, with eight times as many."""
        tape, initial = self.tapes[-1], dict(self.initial)
        drawn, states, where = torch.Generator().manual_seed(0), dict[int, list[Tensor]](), ""
        fewest = 0
        for call in tape.calls:
            keys = [key for key in call.reads if key in tape.weights]
            after = self._next_linear(call) if keys and call.name in _NARROWED else None
            if after is None:
                continue
            shapes, following = [tape.weights[key].shape for key in keys], tape.weights[after].shape
            units = shapes[0][0] if call.name == "linear" else shapes[1][1]
            if units > _NARROW or shapes[0][1] in (1, 2, 2 * units) or following[1] % units:
                continue
            if following[0] <= units:
                continue
            # All but the first weights of a recurrent layer get its own states.
            new = [
                [_WIDE * n if not axis or n != shapes[0][1] else n for axis, n in enumerate(shape)]
                for shape in shapes
            ]
            for key, shape in (*zip(keys, new, strict=True), (after, [following[0], _WIDE * following[1]])):
                initial[key] = torch.empty(*shape).uniform_(-1, 1, generator=drawn) / math.sqrt(shape[-1])
            for n, key in enumerate(tape.roots):
                if key in call.reads and n not in self.inputs and tape.roots[key].value.shape[-1] == units:
                    states[n] = [one.repeat_interleave(_WIDE, -1) for one in self.values(n)]
            fewest, where = units, f"{call.name} ({call.where})"
        if where:
            yield _Change(
                f"with {_WIDE * fewest} units in place of {fewest} in {where}",
                f"a layer has {fewest} unit{'s' if fewest > 1 else ''} only, through which all that the "
                "output needs must pass: it is a bottleneck",
                "Use more units (or a longer code).",
                self.changed(states),
                initial,
                twice=fewest > 1,
            )

    def finer(self) -> Iterator[_Change]:
        """A mean (or maximum) over all places, over three parts of each axis in place of it."""
        tape = self.tapes[-1]
        for number, call in enumerate(tape.calls):
            pool, axes = _pooled_axes(call, self.batches[-1].replay().base)
            after = self._next_linear(call) if axes else None
            if after is None:
                continue
            parts = 3 ** len(axes)
            weight = self.initial[after].repeat_interleave(parts, 1) / parts

            def finer(x: Tensor, *_: object, pool: str = pool, axes: tuple[int, ...] = axes) -> Tensor:
                kept = [n for n in range(x.ndim) if n not in axes]
                found: Tensor = getattr(functional, f"adaptive_{pool}_pool{len(axes)}d")(
                    x.permute(*kept, *axes), 3
                )
                return found.flatten(1)

            batches = []
            for batch in self.batches:
                one = batch.tape.calls[number]
                calls = [*batch.tape.calls]
                calls[number] = replace(one, func=finer, name="finer", args=one.args[:1], kwargs={})
                batches.append(Batch(replace(batch.tape, calls=calls), {}))
            yield _Change(
                f"with {parts} means in place of one ({call.where})",
                "the network takes a mean or maximum over all places, but the targets depend on the place, "
                "which is lost there",
                "Flatten in place of the global pooling, pool over parts, or add coordinates.",
                batches,
                {**self.initial, after: weight},
            )

    def _next_linear(self, call: Call) -> int | None:
        """The weight of the only linear layer that gets the output of a call, with no others in between."""
        made, found = {call.outs[0]}, []
        for one in self.tapes[-1].calls[self.tapes[-1].calls.index(call) + 1 :]:
            if any(key in made for key in one.reads):
                weights = [key for key in one.reads if key in self.tapes[-1].weights]
                if not weights:
                    made.update(one.outs)
                    continue
                if one.name != "linear" or one.reads[0] not in made:
                    return None
                found.append(weights[0])
        return found[0] if len(found) == 1 else None

    @property
    def _both(self) -> list[int]:
        """Places of data that are inputs and targets, as in an autoencoder."""
        last = self.tapes[-1]
        return [n for n, key in enumerate(last.roots) if key in last.targets and key in last.inputs]

    def _unturned(self, place: int) -> list[Tensor | None]:
        return [list(tape.roots.values())[place].unturned for tape in self.tapes]

    def scaled_targets(self) -> Iterator[_Change]:
        """Targets of mean 0 and deviation 1, if they are far from it where they meet the outputs."""
        for place in self.targets:
            values = self.values(place)
            if (
                not values[0].is_floating_point()
                or len(torch.cat([v.flatten() for v in values]).unique()) < 20
            ):
                continue
            whole = torch.cat([value.flatten() for value in values]).double()
            mean, spread = float(whole.mean()), float(whole.std())
            key = list(self.tapes[-1].roots)[place]
            users = [call for call in self.tapes[-1].calls if key in call.reads]
            size = math.hypot(mean, spread)
            if any(call.pure for call in users):
                # Scaled before it is compared: what is compared counts.
                scale, shift = self._scaling(place)
                if scale == 0:
                    continue
                size = math.hypot(scale * mean + shift, scale * spread)
            else:
                scale, shift = 1.0, 0.0
            if _SIZES[0] < size < _SIZES[1] or spread == 0:
                continue
            # What is compared then has mean 0 and deviation 1.
            new = [(((one - mean) / spread) - shift) / scale for one in values]
            batches = self.changed({place: new})
            yield _Change(
                "with targets of mean 0 and deviation 1",
                f"the targets are not scaled (mean {scale * mean + shift:.3g}, deviation "
                f"{abs(scale) * spread:.3g}), while the outputs of a network start at about 0 and 1",
                "Train on (target - mean) / deviation, and undo it where outputs are used.",
                batches,
                self.initial,
                self.constant(batches),
            )

    def _scaling(self, place: int) -> tuple[float, float]:
        """Factor and offset with which a target is scaled on the tape before it meets an output; 0 if not."""
        tape, key = self.tapes[-1], list(self.tapes[-1].roots)[place]
        replay = self.batches[-1].replay()
        pure, last = {key}, key
        for call in tape.calls:
            if call.pure and any(one in pure for one in call.reads):
                pure.update(call.outs)
                last = call.outs[0]
        x, y = replay.base[key].double().flatten(), replay.base[last].double().flatten()
        if x.shape != y.shape or len(x) < 3:
            return 0.0, 0.0
        scale = float(
            ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum().clamp_min(1e-30)
        )
        shift = float(y.mean() - scale * x.mean())
        return (scale, shift) if torch.allclose(y, scale * x + shift, rtol=1e-3, atol=1e-3) else (0.0, 0.0)

    def codes(self, place: int, whole: Tensor) -> Iterator[_Change]:
        """A column with few numbers, as a column for each of them, in a first layer that is wide enough."""
        key = list(self.tapes[-1].roots)[place]
        first = _first_layer(self.tapes[-1], key)
        if first is None:
            return
        weight = self.initial.get(first.reads[1])
        coded = [n for n, column in enumerate(whole.double().unbind(1)) if _is_code(column)]
        if weight is None or not 0 < len(coded) <= _COLUMNS or weight.shape[1] != whole.shape[1]:
            return
        parts, columns = [whole.clone()], whole.double()
        for n in coded:
            numbers = columns[:, n].unique(return_inverse=True)[1]
            parts.append(functional.one_hot(numbers).to(whole.dtype))
            parts[0][:, n] = 0
        wide = torch.cat(parts, 1)
        bound = 1 / math.sqrt(weight.shape[1])
        extra = torch.empty(len(weight), wide.shape[1] - whole.shape[1])
        extra.uniform_(-bound, bound, generator=torch.Generator().manual_seed(0))
        initial = {**self.initial, first.reads[1]: torch.cat((weight, extra.to(weight)), 1)}
        new = list(wide.split([len(one) for one in self.values(place)]))
        yield _Change(
            f"with a column for each number of column {', '.join(map(str, coded))}",
            f"column {', '.join(map(str, coded))} of the input is a code (category, class, identifier), but "
            "is given to the network as a quantity",
            "Use one_hot or an embedding for categories.",
            self.changed({place: new}),
            initial,
        )

    def orders(self) -> Iterator[_Change]:
        """Targets of other rows of the data set, or in another order of their axes."""
        for place in self.targets:
            values = self.values(place)
            roots = [list(tape.roots.values())[place] for tape in self.tapes]
            orders: list[tuple[str, list[Tensor], bool]] = []
            base = roots[0].base
            if base is not None and len(base) >= _WIDE and self._numbers(place):
                # The first is so far away that it shows what rows without a relation bring.
                for by in (len(base) // 2, 1, -1, 2, -2):
                    rows = [(torch.tensor(root.numbers) + by) % len(base) for root in roots]
                    where = f"of {abs(by)} row{'s' if abs(by) > 1 else ''} {'after' if by > 0 else 'before'}"
                    new = [base[one.to(base.device)].to(values[0].dtype) for one in rows]
                    orders.append((f"{where} in the data set", new, abs(by) > 2))
            # Classes may be in any order; samples of a batch are neighbours only where none are picked.
            has_order = values[0].ndim > 1 and not _is_one_hot(values[0])
            for words, order in _ORDERS.items():
                if has_order if "ax" in words else base is None:
                    orders.append((words, [order(one) for one in values], False))
            for words, new, control in orders:
                if all(one.shape == two.shape for one, two in zip(new, values, strict=True)):
                    yield _Change(
                        f"with the targets {words}",
                        "inputs and targets are not in one order: each sample has the target of another one",
                        "Look for a line too many or too few (a header, a shift, a dropped row), and at axes "
                        "that are flattened or exchanged, where inputs and targets are read.",
                        self.changed({place: new}),
                        self.initial,
                        control=control,
                    )

    def sorted_apart(self) -> list[Finding]:
        """Where nothing is learned: inputs and targets were not put in order separately."""
        numbers = self._numbers_of_any
        if len(set(numbers)) < 2:
            return []
        order = _ranks(torch.tensor(numbers))
        columns = {}
        for place in (*self.inputs, *self.targets):
            for number, column in enumerate(
                torch.cat([v.flatten(1) if v.ndim > 1 else v[:, None] for v in self.values(place)])
                .real.double()
                .unbind(1)[:256]
            ):
                if len(column) == len(order) and len(column.unique()) > 1:
                    columns[place in self.inputs, number] = _correlation(order, _ranks(column))
        sides = [
            max([abs(v) for (given, _), v in columns.items() if given is side] or [0.0])
            for side in (True, False)
        ]
        apart = sides[0] > 0.98 > 0.3 > sides[1] or sides[1] > 0.98 > 0.3 > sides[0]
        one, two = ("inputs", "targets") if sides[0] > sides[1] else ("targets", "inputs")
        return [
            must_be_zero(
                "inputs and targets of which one is sorted and the other is not",
                int(apart),
                f"the {one} of the data set are sorted (by one of their columns), the {two} are not, and "
                f"nothing is learned of them: the {one} were put in another order without the {two}.",
                "Sort or shuffle inputs and targets with the same permutation.",
            )
        ]

    def halves(self) -> list[Finding]:
        """What is learned of one half of the data set holds for the other half."""
        numbers = self._numbers_of_any
        data = {n: self.values(n) for n in (*self.inputs, *self.targets)}
        keys = {
            n: list(self.tapes[-1].roots)[n]
            for n, parts in data.items()
            if sum(map(len, parts)) == len(numbers)
        }
        uneven = any(len({one.shape[1:] for one in data[n]}) > 1 for n in keys)
        if uneven or not set(keys) & set(self.inputs) or not set(keys) & set(self.targets):
            return []
        places, size = torch.tensor(numbers), len(data[next(iter(keys))][0])
        first = places < (places.amax() + places.amin() + 1) // 2
        # Rows that come again would be learned by heart.
        once = torch.tensor(list({row: n for n, row in enumerate(numbers)}.values()))
        pools = {key: torch.cat(data[n])[once] for n, key in keys.items()}
        first = first[once]
        sides = [{key: pool[which] for key, pool in pools.items()} for which in (first, ~first)]
        parts = [
            [
                Batch(self.tapes[-1], {key: pool[start : start + size] for key, pool in side.items()})
                for start in range(0, len(next(iter(side.values()))) - size + 1, size)
            ]
            for side in sides
        ]
        moved = {n: shift(sides[0][key], sides[1][key])[0] > 0 for n, key in keys.items()}
        if min(map(len, parts)) < _BATCHES // 2 or any(moved[n] for n in keys if n in self.inputs):
            return []
        drops, cause = [], ""
        for one, other in (parts, parts[::-1]):
            training = Counterfactuals(one, self.initial, self.settings, self.steps)
            weights = training.weights_after(self.settings, self.steps)
            if not weights:
                return []
            losses = partial(_mean_loss, weights=weights)
            held, across = losses(one[training.learned :]), losses(other)
            learned = self.level - held > _GAIN * abs(self.level)
            drops.append((across - self.level) / abs(self.level) if learned else 0.0)
            best = (across + held) / 2
            for n, key in keys.items() if drops[-1] > _GAIN else ():
                what = "inputs" if n in self.inputs else "targets"
                for words, coding in _CODINGS.items():
                    new = [coding(batch.roots[key]) for batch in other]
                    changed = [
                        Batch(b.tape, {**b.roots, key: v})
                        for b, v in zip(other, new, strict=True)
                        if v is not None
                    ]
                    if changed and losses(changed) < best:
                        best, cause = losses(changed), f" It holds if the {what} of one half have {words}."
        return [
            at_most(
                "loss of what one half of the data teaches, on the other half, above that of a constant",
                # Targets of another distribution may be of other kinds.
                max(drops) if cause else 0.0 if any(moved.values()) else min(drops),
                _GAIN,
                "inputs and targets belong together in another way in the first half of the data set than in "
                "the second one, though the inputs have the same distribution: files with another order of "
                f"columns, other labels, units or signs were joined.{cause}",
                "Look at where the data were joined, and bring both to one form.",
            )
        ]

    @property
    def _numbers_of_any(self) -> list[int]:
        """Row numbers of the targets in the data set, or of the inputs where those have none."""
        return next((rows for n in (*self.targets, *self.inputs) if (rows := self._numbers(n))), [])

    def _numbers(self, place: int) -> list[int]:
        roots = [list(tape.roots.values())[place] for tape in self.tapes]
        if any(len(root.numbers) != len(root.value) for root in roots):
            return []
        return [number for root in roots for number in root.numbers]


_ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "with their first two axes exchanged": lambda y: y.transpose(0, 1).reshape(y.shape),
    "of the place before along the second axis": lambda y: y.roll(1, 1),
    "of the place after along the second axis": lambda y: y.roll(-1, 1),
    "in reverse order along the second axis": lambda y: y.flip(1),
    "of the sample before in the batch": lambda y: y.roll(1, 0),
    "of the sample after in the batch": lambda y: y.roll(-1, 0),
}


def _pooled_axes(call: Call, base: Mapping[int, Tensor]) -> tuple[str, tuple[int, ...]]:
    """Kind and axes of a call that takes a mean or maximum over all places; no axes if not."""
    x = base.get(call.reads[0]) if call.reads and not call.pure and call.inside else None
    if x is None or x.ndim not in (3, 4) or x.is_complex():
        return "", ()
    if call.name.startswith("adaptive_") and call.outs and base[call.outs[0]].shape[2:].numel() == 1:
        return call.name.split("_")[1], tuple(range(2, x.ndim))
    dim = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else None)
    if call.name not in ("mean", "amax") or dim is None or call.kwargs.get("keepdim"):
        return "", ()
    axes = tuple(sorted(n % x.ndim for n in (dim if isinstance(dim, (tuple, list)) else (dim,))))
    fits = axes == (2, 3) if x.ndim == 4 else axes in ((1,), (2,))
    return {"mean": "avg", "amax": "max"}[call.name], axes if fits and min(
        x.shape[n] for n in axes
    ) >= 3 else ()


def _reversed_labels(v: Tensor) -> Tensor | None:
    return int(v.max()) - v if v.dtype == torch.long else None


# Other codings of inputs or targets that occur in practice.
_CODINGS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "their last axis in reverse order": lambda v: v.flip(-1) if v.ndim > 1 else None,
    "their second axis in reverse order": lambda v: v.flip(1) if v.ndim > 2 else None,
    "the opposite sign": lambda v: -v if v.is_floating_point() or v.is_complex() else None,
    "real and imaginary parts exchanged": lambda v: torch.complex(v.imag, v.real) if v.is_complex() else None,
    "the opposite phase (conjugated)": lambda v: v.conj().resolve_conj() if v.is_complex() else None,
    "labels that start with another number": lambda v: (
        (v - 1).clamp_min(0) if v.dtype == torch.long else None
    ),
    "labels in reverse order": _reversed_labels,
    "0 and 1 exchanged": lambda v: 1 - v if bool(((v == 0) | (v == 1)).all()) else None,
}


def _mean_loss(batches: Sequence[Batch], weights: Mapping[int, Tensor]) -> float:
    return sum(batch.replay(weights).loss for batch in batches) / len(batches)


# Changes of the scale of the input, what it means if they help, and advice.
_SCALES = {
    "with each sample divided by its own size": (
        "samples have sizes that differ by orders of magnitude (volume, exposure, distance), which drown "
        "what the loss asks for",
        "Normalise each sample by its own root mean square before the network.",
    ),
    "with the logarithm of columns that span orders of magnitude": (
        "columns of the input span orders of magnitude: units are mixed, or their logarithm counts",
        "Bring all rows to one unit, or use logarithms of such columns.",
    ),
    "with the columns of the input standardised": (
        "the input is not standardised: an offset or a scale of columns drowns their differences",
        "Subtract the mean of each column and divide by its deviation, both of the training data.",
    ),
}


def _other_columns(columns: Tensor) -> dict[str, Tensor]:
    """Columns with logarithms of long tails, and standardised ones, where they are far from it."""
    middle, spread, found = columns.median(0).values, columns.std(0), {}
    width, far = ((columns - middle).abs().quantile(share, 0) for share in (0.5, 0.98))
    many = torch.tensor([len(column.unique()) > _CODES[1] for column in columns.unbind(1)])
    heavy = (width > 0) & (far > _TAILS * width) & many
    if bool(heavy.any()):
        logs = ((columns - middle) / width.clamp_min(1e-30)).asinh()
        logs = (logs - logs.mean(0)) / logs.std(0).clamp_min(1e-30)
        found["with the logarithm of columns that span orders of magnitude"] = torch.where(
            heavy, logs, columns
        )
    if bool(((spread > 0) & ((columns.mean(0).abs() > _OFFSET * spread) | (spread > 10))).any()):
        scaled = (columns - columns.mean(0)) / torch.where(spread > 0, spread, 1)
        found["with the columns of the input standardised"] = scaled
    return found


def _mark(column: Tensor) -> tuple[float, float, float] | None:
    """A number that many samples share, outside the range of all others: itself, share, and distance."""
    values, counts = column.unique(return_counts=True)
    if len(values) < 20:
        return None
    for place in (0, len(values) - 1):
        share = float(counts[place]) / len(column)
        rest = column[column != values[place]]
        others = counts[counts != counts[place]]
        rare = not len(others) or float(others.max()) < counts[place] / 2
        if not _MARKED[0] <= share <= _MARKED[1] or counts[place] < 5 or not rare or float(rest.std()) == 0:
            continue
        nearest = rest.min() if place == 0 else rest.max()
        distance = float((nearest - values[place]).abs() / rest.std())
        if distance > _FAR:
            return float(values[place]), share, distance
    return None


def _is_code(column: Tensor) -> bool:
    """Whether a column has few different numbers, at equal distances, each in many samples."""
    values, counts = column.unique(return_counts=True)
    if not _CODES[0] <= len(values) <= _CODES[1] or float(counts.min()) < _EACH * len(column):
        return False
    gaps = values.diff()
    steps = gaps / gaps.min()
    return bool(torch.allclose(steps, steps.round(), atol=1e-3)) and float(steps.sum()) < 2 * _CODES[1]


def _is_one_hot(values: Tensor) -> bool:
    """Whether the second axis of values is that of classes."""
    return bool(((values == 0) | (values == 1)).all()) and bool((values.sum(1) == 1).all())


def _first_layer(tape: Tape, key: int) -> Call | None:
    """The only call that uses some data, if it is a linear layer."""
    users = [call for call in tape.calls if key in call.reads]
    fits = len(users) == 1 and users[0].name == "linear" and users[0].reads[0] == key
    return users[0] if fits else None


def _ranks(values: Tensor) -> Tensor:
    return values.double().unique(return_inverse=True)[1].double()


def _correlation(one: Tensor, two: Tensor) -> float:
    return float(torch.corrcoef(torch.stack((one, two)))[0, 1])
