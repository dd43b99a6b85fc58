"""The calculation of a loss, recorded from an existing loop, so that it can be repeated with other data.

A :class:`TapeRecorder` sees each call of a torch function. At ``backward``, those that the loss depends on
are cut out as a :class:`Tape`: data, weights and noise go in, outputs and loss come out. A :class:`Replay`
repeats it with dropout off and the statistics of batch normalisation held, with any of its tensors replaced.
"""

from __future__ import annotations

import inspect
import math
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from rismusic.doctor.state import Hook, calling_line, mapped, names, tensors_in, widened

# Calls on data alone that keep the order of the samples, and are repeated. The result of any other is a root.
_KEPT = names(
    "view reshape flatten transpose permute t unsqueeze squeeze float long double half bfloat16 to type "
    "type_as one_hot contiguous expand repeat_interleave clone detach real imag view_as_real "
    "view_as_complex unflatten __get__ div sub mul add neg rsub pow exp log log1p sqrt abs square clamp "
    "angle eq ne lt le gt ge logical_not __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ "
    "__rtruediv__ __pow__ __neg__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __invert__ true_divide int "
    "bool unsqueeze_ swapaxes movedim requires_grad_"
)
# Functions that draw random numbers, apart from dropout.
DRAWS = names(
    "randn randn_like rand rand_like normal normal_ uniform_ bernoulli bernoulli_ multinomial randint "
    "randint_like randperm gumbel_softmax exponential_"
)
# Those that draw no rows, but numbers that change the data.
_NUMBERS = DRAWS - names("randint randperm multinomial randint_like gumbel_softmax")
_RANDOM = DRAWS | names("random_ rrelu")
_CONSTANT = names(
    "zeros ones full arange eye linspace empty zeros_like ones_like full_like empty_like new_zeros "
    "new_ones new_full new_empty tril triu tril_indices triu_indices zero_ fill_"
)
# Changes in place that depend on the old values.
_ALTERING = names("mul_ div_ add_ sub_ clamp_ __imul__ __idiv__ __itruediv__ __iadd__ __isub__ log_ neg_")
# Results of these have the size of their argument, but do not depend on its values.
LIKE = names("randn_like rand_like randint_like zeros_like ones_like full_like empty_like") | names(
    "new_zeros new_ones new_full new_empty size numel dim"
)
DROPOUT = names("dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout")
_ATTENTION = "scaled_dot_product_attention"
_RECURRENT = frozenset(["lstm", "gru", "rnn_tanh", "rnn_relu"])
# Steps in which data change in place, from which this is a habit of the loop.
_OFTEN = 3
# Most calls between two steps of the optimizer.
_MOST_CALLS = 20_000
# Most memory of a record: in units of a step's own, and bytes that are always granted.
_TIMES, _GRANTED = 4, 512 * 2**20


class LeftOutError(Exception):
    """Why a check cannot be made."""


class Ref(NamedTuple):
    """A tensor on the tape."""

    key: int


@dataclass(frozen=True)
class Call:
    """A call of a torch function, with tensors replaced by references.

    ``grad``: with gradients enabled; ``inside``: in the forward pass of a module; ``state``: of the random
    generator before it, if it draws; ``cast``: by automatic mixed precision; ``pure``: depends on data alone.
    """

    name: str
    func: Any
    args: Any
    kwargs: Any
    outs: tuple[int, ...]
    mutated: tuple[int, ...]
    grad: bool
    inside: bool
    state: Tensor | None
    cast: tuple[str, torch.dtype] | None
    pure: bool
    where: str = ""

    @property
    def reads(self) -> list[int]:
        """Keys of its tensors."""
        return references((self.args, self.kwargs))


@dataclass
class Root:
    """A tensor that the tape starts from; of a ``leaf``, the loss takes derivatives.

    ``kind``: ``data``, ``noise``, ``constant``, or ``decision`` for integers that a network made (argmax).
    ``rows``: how it was indexed out of others, the last step first: key of that tensor, and the index.
    """

    value: Tensor
    kind: str
    rows: tuple[tuple[int, Any], ...] = ()
    leaf: bool = False

    @property
    def picked(self) -> bool:
        """Whether its first axis is one of samples, picked by a list of rows or stacked."""
        return any(key == 0 or isinstance(index, (Tensor, list)) for key, index in self.rows)


@dataclass(frozen=True)
class Output:
    """The result of a module on the tape; ``inputs`` are those of the module."""

    key: int
    name: str
    kind: str
    outermost: bool
    inputs: tuple[int, ...] = ()


def references(value: Any) -> list[int]:
    """Keys of all references in a nested value."""
    if isinstance(value, Ref):
        return [value.key]
    if isinstance(value, Mapping):
        return [key for part in value.values() for key in references(part)]
    if isinstance(value, slice):
        return references((value.start, value.stop, value.step))
    if isinstance(value, (list, tuple)):
        return [key for part in value for key in references(part)]
    return []


class TapeRecorder:
    """Records the calls since the last step of the optimizer.

    ``problem``: why the record cannot be repeated, or ``over``: why it is too large; empty if it can.
    ``step_bytes``: the most memory of a loss, with its weights and gradients, up to now.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.on = True
        self.problem = ""
        self.step_bytes = 0
        self._depth = 0
        # Whether the loop draws numbers outside the network, as augmentation does.
        self.varied = False
        self._fixed = {id(one) for one in module.buffers()}
        self._window = 0
        # Data of which a part changes in place: in how many steps, the last of them, and the call.
        self._altered: dict[int, tuple[weakref.ref[Tensor], int, int, str]] = {}
        self.clear()

    def clear(self) -> None:
        """Forget all calls."""
        self._release()
        self.problem = self.over = ""
        self._window += 1

    def _release(self) -> None:
        self.calls: list[Call] = []
        self.outputs: list[Output] = []
        # Of each tensor that was made: its bytes, 0 for a view; their sum, and that of those with a gradient.
        self._sizes: dict[int, int] = {}
        self._made = self._graded = 0
        self._tensors: dict[int, Tensor] = {}
        self._versions: dict[int, int] = {}
        self._tainted: set[int] = set()
        self._kinds: dict[int, tuple[str, tuple[int, Any] | None]] = {}
        self._before: dict[int, Tensor] = {}
        self._passed: list[tuple[str, int]] = []
        self._touched: set[int] = set()
        self._decided: set[int] = set()

    def _give_up(self, problem: str) -> None:
        """Leave out the rest up to the next step, and release what was recorded."""
        self._release()
        self.problem = self.over = problem

    @property
    def budget(self) -> int:
        """Most bytes of tensors that are recorded between two steps, or kept from all steps.

        A step of the loop has at least those with a gradient; nothing else is known before its first loss.
        """
        return max(_GRANTED, _TIMES * (self.step_bytes or self._graded))

    def _count(self, made: Sequence[Tensor], given: Sequence[Tensor]) -> None:
        """Count the memory of the results of a call, unless it is that of its arguments."""
        old = {place for place, _ in map(_memory, given)}
        for one in made:
            place, size = _memory(one)
            if id(one) not in self._sizes and place not in old:
                self._sizes[id(one)] = size
                self._made += size
                self._graded += size if one.requires_grad else 0

    def hooks(self) -> list[RemovableHandle]:
        """Hooks on the modules, to be removed at the end."""
        handles: list[RemovableHandle] = []
        for name, part in self.module.named_modules():
            if not isinstance(part, (nn.ModuleDict, nn.ModuleList)):
                handles.append(part.register_forward_pre_hook(Hook(self.enter)))
                handles.append(part.register_forward_hook(Hook(partial(self.leave, name)), always_call=True))
        return handles

    def enter(self, part: nn.Module, given: Any) -> None:
        """Note that the forward pass of a module starts."""
        if self._depth == 0 and self.active:
            names = list(inspect.signature(part.forward).parameters)
            for name, value in zip(names, given, strict=False):
                if isinstance(value, Tensor) and value.numel() > 1 and not isinstance(part, nn.Sequential):
                    self._passed.append((f"{name} of {type(part).__name__}", id(value)))
                    self._tensors[id(value)] = value
        self._depth += 1

    def leave(self, name: str, part: nn.Module, given: Any, result: Any) -> None:
        """Note the result of a module."""
        self._depth = max(0, self._depth - 1)
        if self.active:
            inputs = tuple(id(one) for one in tensors_in(given))
            found = tensors_in(result)
            if not found and hasattr(result, "__dataclass_fields__"):
                found = tensors_in(dict(vars(result)))
            for one in found:
                self.outputs.append(Output(id(one), name, type(part).__name__, self._depth == 0, inputs))

    def depends(self, value: Tensor) -> bool:
        """Whether a tensor depends on weights, or on data by which the loss differentiates."""
        leaf = value.requires_grad and value.is_leaf
        return id(value) in self._tainted or isinstance(value, nn.Parameter) or leaf

    @property
    def active(self) -> bool:
        """Whether calls are recorded now; evaluations are not, to save memory."""
        return self.on and not self.problem and (self.module.training or torch.is_grad_enabled())

    @property
    def inside(self) -> bool:
        """Whether the forward pass of a module runs."""
        return self._depth > 0

    def draws(self, name: str, args: Any, kwargs: Any) -> bool:
        """Whether a call that depends on weights draws random numbers."""
        draws = name in _RANDOM or name in DROPOUT or name in _RECURRENT or "attention" in name
        return draws and any(map(self.depends, tensors_in(list(args)) + tensors_in(kwargs)))

    def touch(self, value: Tensor) -> None:
        """Note that the numbers of a tensor are read."""
        self._touched.add(id(value))

    def before(self, name: str, args: Any, kwargs: Any) -> list[tuple[Tensor, int]]:
        """The tensors of a call with their versions, before it is made."""
        tensors = tensors_in(list(args)) + tensors_in(kwargs)
        found = [(one, one._version) for one in tensors if not one.is_inference()]
        in_place = name.endswith("_") and not name.endswith("__")
        changes = in_place or name == "__setitem__" or name[:3] == "__i"
        if changes and tensors and not self.depends(tensors[0]) and any(map(self.depends, tensors[1:])):
            self._before.setdefault(id(tensors[0]), tensors[0].detach().clone())
        return found

    def after(
        self,
        func: Any,
        name: str,
        args: Any,
        kwargs: Any,
        result: Any,
        found: list[tuple[Tensor, int]],
        state: Any,
    ) -> None:
        """Record a call that was made."""
        outs = tensors_in(result)
        mutated = [one for one, version in found if one._version != version]
        # A weight that is copied or averaged between steps is a new start, not a part of a loss.
        copied = any(isinstance(one, nn.Parameter) for one in mutated) and not torch.is_grad_enabled()
        if (not outs and not mutated) or copied or self.problem:
            return
        tainted = name not in LIKE and any(self.depends(one) for one, _ in found)
        for one in (*outs, *mutated):
            self._tensors[id(one)] = one
        self._count(outs, [one for one, _ in found])
        if self._made > self.budget:
            most = f"more than {self.budget / 2**20:.3g} MiB"
            self._give_up(f"the calls between two steps make too many tensors to be recorded ({most})")
            return
        whole = [one for one in outs if one.is_floating_point() or one.is_complex()]
        if tainted and outs and not whole and not mutated:
            # What a network decides (an argmax, a comparison) has no gradient: it is data of what follows.
            self._decided.update(map(id, outs))
            for one in outs:
                self._kinds[id(one)] = ("decision", None)
                self._versions[id(one)] = one._version if not one.is_inference() else 0
            return
        if not tainted:
            decided = any(id(one) in self._decided for one, _ in found)
            if decided:
                self._decided.update(map(id, (*outs, *mutated)))
            # Within a module, all but random numbers belong to its calculation.
            kept = name in _KEPT or (self._depth > 0 and name not in _RANDOM | _CONSTANT | DROPOUT)
            # The detached state of an earlier step is data of this one.
            earlier = any(one.requires_grad for one, _ in found)
            if kept and not mutated and not earlier and all(self._known(one) for one, _ in found):
                self._record(func, (args, kwargs), outs, mutated, None, pure=True)
                return
            self._touched.update(id(one) for one, _ in found)
            for one in mutated:
                base = one._base
                # An environment in which the network acts is not the data.
                if base is None or base.numel() <= one.numel() or name not in _ALTERING or decided:
                    continue
                old = self._altered.get(id(base))
                steps = 0 if old is None or old[0]() is not base else old[1]
                if id(base) not in self._fixed and (old is None or not steps or old[2] != self._window):
                    self._altered[id(base)] = (weakref.ref(base), steps + 1, self._window, name)
            self.varied |= name in _NUMBERS and not self._depth and torch.is_grad_enabled()
            kind = "noise" if name in _RANDOM else "constant" if name in _CONSTANT else "data"
            base = args[0] if name in ("__getitem__", "index_select") and args else None
            rows = None
            if isinstance(base, Tensor) and not base.requires_grad:
                self._tensors[id(base)] = base
                index = args[1] if name == "__getitem__" else args[2]
                rows = (id(base), index.clone() if isinstance(index, Tensor) else index)
            if name == "stack" and args and isinstance(args[0], (list, tuple)):
                # The samples of a loader, each picked by its number.
                picked = [self._kinds.get(id(one), ("", None))[1] or (0, None) for one in args[0]]
                if len({key for key, _ in picked}) == 1 and all(isinstance(n, int) for _, n in picked):
                    rows = (picked[0][0], [n for _, n in picked])
            for one in (*outs, *mutated):
                self._kinds[id(one)] = (kind, rows or ((0, name) if name == "stack" else None))
                self._versions[id(one)] = one._version if not one.is_inference() else 0
            return
        for one, _ in found if name not in ("backward", "__get__") else ():
            grown = one.requires_grad and one.grad_fn is not None and id(one) not in self._tainted
            if grown and not any(one is other for other in mutated):
                self.problem = "a part of the loss is made by calls that torch does not show"
        self._record(func, (args, kwargs), outs, mutated, state, pure=False)
        self._tainted.update(map(id, (*outs, *mutated)))
        if len(self.calls) > _MOST_CALLS:
            self._give_up(f"more than {_MOST_CALLS} calls in a step")

    @property
    def altered(self) -> set[str]:
        """Calls that change a part of the same data in place, in several steps."""
        return {name for _, steps, _, name in self._altered.values() if steps >= _OFTEN}

    def _known(self, value: Tensor) -> bool:
        if id(value) not in self._tensors:
            self._tensors[id(value)] = value
            self._versions[id(value)] = value._version if not value.is_inference() else 0
        return True

    def _record(
        self, func: Any, given: tuple[Any, Any], outs: list[Tensor], mutated: Any, state: Any, *, pure: bool
    ) -> None:
        def reference(value: Tensor) -> Ref:
            self._known(value)
            return Ref(id(value))

        kind = outs[0].device.type if outs else "cpu"
        cast = (kind, torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None
        keys = tuple(map(id, outs)), tuple(map(id, mutated))
        args, kwargs = (mapped(one, reference) for one in given)
        how = torch.is_grad_enabled(), self._depth > 0
        line = calling_line()
        name = getattr(func, "__name__", "")
        self.calls.append(Call(name, func, args, kwargs, *keys, *how, state, cast, pure, line))

    def base_rows(self, tape: Tape) -> int:
        """Most rows of a tensor from which data are indexed."""
        bases = [self._tensors.get(key) for root in tape.roots.values() for key, _ in root.rows]
        return max((len(one) for one in bases if one is not None and one.ndim), default=0)

    def unread(self) -> list[str]:
        """Tensors that were passed to the network but not used."""
        read = {key for call in self.calls for key in call.reads}
        return [name for name, key in self._passed if key not in read and key not in self._touched]

    def cut(self, loss: Tensor) -> Tape | str:
        """The tape of a loss, or why there is none."""
        if self.problem:
            return self.problem
        if id(loss) not in self._tainted:
            return "the loss is made by calls that torch does not show"
        calls = _needed(self.calls, {id(loss)})
        made: set[int] = set()
        first: dict[int, None] = {}
        # In the order of the calls, which is that of other tapes of the same kind. A call in place reads the
        # tensor that it returns.
        for call in calls:
            first.update(dict.fromkeys(key for key in call.reads if key not in made))
            made.update(call.outs)
        roots: dict[int, Root] = {}
        weights: dict[int, nn.Parameter] = {}
        for key in first:
            value = self._tensors.get(key)
            if value is None:
                return "a tensor is lost"
            if isinstance(value, nn.Parameter):
                weights[key] = value
                continue
            if key not in self._before and value.requires_grad and value.grad_fn is not None:
                return "a part of the loss is made before the last step"
            kind, rows = self._kinds.get(key, ("constant" if key in self._fixed else "data", None))
            chain: list[tuple[int, Any]] = []
            while rows is not None and len(chain) < 8:
                chain.append(rows)
                rows = self._kinds.get(rows[0], ("", None))[1]
            if key in self._before:
                kind, stored = "constant", self._before[key]
            elif value._version != self._versions.get(key, value._version):
                return "the data change in place during the step"
            else:
                stored = value.detach().clone()
            roots[key] = Root(stored, kind, tuple(chain), value.requires_grad)
        made |= {key for call in calls for key in call.mutated}
        outputs = [one for one in self.outputs if one.key in made]
        used = sum(self._sizes.get(key, 0) for key in made)
        used += sum(root.value.nbytes for root in roots.values())
        used += 2 * sum(weight.nbytes for weight in weights.values())
        self.step_bytes = max(self.step_bytes, used)
        return Tape(calls, roots, weights, id(loss), float(loss.detach()), outputs)


def _memory(value: Tensor) -> tuple[int, int]:
    """Address and bytes of the memory of a tensor; of one without such memory (sparse), its own."""
    if value.layout is not torch.strided or torch._C._functorch.is_functorch_wrapped_tensor(value):
        return id(value), 0
    storage = value.untyped_storage()
    return storage.data_ptr() or id(value), storage.nbytes()


def _needed(calls: Sequence[Call], keys: Iterable[int], stop: Iterable[int] = ()) -> list[Call]:
    """The calls on which some tensors depend, up to others."""
    needed, ends, kept = set(keys), set(stop), []
    for call in reversed(calls):
        made = [*call.outs, *call.mutated]
        if any(key in needed and key not in ends for key in made):
            kept.append(call)
            needed.update(call.reads)
    return kept[::-1]


@dataclass
class Tape:
    """The calls that make a loss from data, noise and weights."""

    calls: list[Call]
    roots: dict[int, Root]
    weights: dict[int, nn.Parameter]
    loss: int
    value: float
    outputs: list[Output]
    _reached: dict[int, set[int]] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Its calls, which are the same for the same loss of other data."""
        return " ".join(call.name for call in self.calls)

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return sum(root.value.nbytes for root in self.roots.values())

    @property
    def random(self) -> bool:
        """Whether it draws numbers that depend on the network, apart from dropout."""
        return any(call.name in _RANDOM for call in self.calls)

    def reached(self, key: int) -> set[int]:
        """Keys of all tensors that depend on one."""
        if key not in self._reached:
            self._reached[key] = self._made_of(key, self.calls)
        return self._reached[key]

    def compared(self, key: int) -> set[int]:
        """Keys of the tensors that depend on one outside the modules, as the losses of targets do."""
        return self._made_of(key, (call for call in self.calls if not call.inside))

    @property
    def results(self) -> list[Output]:
        """Outputs of outermost modules, each once."""
        return list({one.key: one for one in self.outputs if one.outermost}.values())

    @property
    def inputs(self) -> list[int]:
        """Keys of the data that reach the result of a module; of numbers drawn in the loop if no data do."""
        ends = {one.key for one in self.results}
        for kind in ("data", "noise"):
            found = [k for k, root in self.roots.items() if root.kind == kind and ends & self.reached(k)]
            if found:
                return found
        return []

    @property
    def targets(self) -> list[int]:
        """Keys of the data that are used outside the modules, as the targets of a loss are."""
        inside = {one.key for one in self.results}
        found = []
        for key, root in self.roots.items():
            if root.kind != "data" or root.value.numel() < 2:
                continue
            copies = self.copies(key)
            if any(not call.inside and not inside & set(call.outs) for call in self.users(copies)):
                found.append(key)
        return found

    def copies(self, key: int) -> set[int]:
        """Keys of what is made of some data, and of other data, before the network and the loss use it."""
        return self._made_of(key, (call for call in self.calls if call.pure))

    def _made_of(self, key: int, calls: Iterable[Call]) -> set[int]:
        """Keys of a tensor and of what calls make of it."""
        found = {key}
        for call in calls:
            if not found.isdisjoint(call.reads):
                found.update((*call.outs, *call.mutated))
        return found

    def users(self, keys: set[int]) -> list[Call]:
        """The calls of network and loss that read one of some tensors."""
        return [call for call in self.calls if not call.pure and not keys.isdisjoint(call.reads)]


class Replay:
    """Repeats a tape, with its own or other values of weights and roots.

    ``running``: batch normalisation uses its running statistics, as in evaluation mode.
    """

    def __init__(
        self,
        tape: Tape,
        weights: Mapping[int, Tensor] | None = None,
        *,
        double: bool = False,
        roots: Mapping[int, Tensor] | None = None,
        running: bool = False,
    ) -> None:
        self.tape = tape
        self.running = running
        self.double = double
        given = weights or {key: value.detach() for key, value in tape.weights.items()}
        self.weights = {key: self._moved(value) for key, value in given.items()}
        values = {key: root.value for key, root in tape.roots.items()} | dict(roots or {})
        self.roots = {key: self._moved(value) for key, value in values.items()}
        # A loss that has derivatives of the network in it needs a graph, also where its value alone is asked.
        self._leaves = [key for key, root in tape.roots.items() if root.leaf]
        self._graph = any(call.func is torch.autograd.grad for call in tape.calls)
        self._norms: dict[int, tuple[Tensor, Tensor]] = {}
        with torch.no_grad():
            self.base = self.run()
        self.loss = float(self.base[tape.loss])

    def keeping(self, keys: Iterable[int]) -> Replay:
        """The replay, without its tensors of the recorded data but some, of which many batches have many."""
        self.base = {key: self.base[key] for key in keys}
        return self

    def forget_statistics(self) -> None:
        """Let batch normalisation use the statistics of the next run."""
        self._norms.clear()

    def _moved(self, value: Tensor) -> Tensor:
        moved: Tensor = widened(value) if self.double else value
        return moved

    def run(
        self,
        roots: Mapping[int, Tensor] | None = None,
        weights: Mapping[int, Tensor] | None = None,
        given: Mapping[int, Tensor] | None = None,
        ends: Iterable[int] = (),
        *,
        exact: bool = False,
    ) -> dict[int, Tensor]:
        """All tensors that the ends (or the loss) need, with roots, weights or ``given`` results replaced.

        ``exact``: with dropout and batch normalisation as recorded.
        """
        given = given or {}
        env: dict[int, Tensor] = {**self.roots, **(roots or {}), **self.weights, **(weights or {})}
        calls = self.tape.calls
        if ends or given:
            calls = _needed(calls, ends or [self.tape.loss], given)
        changed = {key for call in calls for key in call.mutated}
        env = {key: value.clone() if key in changed else value for key, value in env.items()}
        env.update(given)
        if self._graph:
            if given:
                raise LeftOutError("the loss has derivatives of the network")
            env.update({key: env[key].detach().requires_grad_(True) for key in self._leaves if key in env})
            with torch.enable_grad():
                found = self._calculated(calls, env, given, exact=exact)
            return found if torch.is_grad_enabled() else {key: one.detach() for key, one in found.items()}
        return self._calculated(calls, env, given, exact=exact)

    def _calculated(
        self, calls: Sequence[Call], env: dict[int, Tensor], given: Mapping[int, Tensor], *, exact: bool
    ) -> dict[int, Tensor]:
        for call in calls:
            args, kwargs = (mapped(part, lambda one: env[one.key], Ref) for part in (call.args, call.kwargs))
            if not exact or call.func is torch.autograd.grad:
                args, kwargs = self._quiet(call, args, kwargs)
            with ExitStack() as stack:
                if not call.grad and not call.pure:
                    stack.enter_context(torch.no_grad())
                if call.cast is not None and not self.double:
                    stack.enter_context(torch.autocast(call.cast[0], call.cast[1]))
                if call.state is not None:
                    stack.enter_context(torch.random.fork_rng(devices=[]))
                    torch.set_rng_state(call.state)
                result = call.func(*args, **kwargs)
            for key, value in zip(call.outs, tensors_in(result), strict=True):
                env[key] = given.get(key, value)
            for key in call.mutated:
                env[key] = given.get(key, env[key])
        return env

    def _quiet(self, call: Call, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Arguments without dropout, and with the statistics of the recorded batch."""
        if call.func is torch.autograd.grad:
            kwargs = {**kwargs, "retain_graph": True}
        elif call.name in DROPOUT:
            args, kwargs = args[:1], {"p": 0.0, "training": False}
        elif call.name == "multi_head_attention_forward":
            kwargs = {**kwargs, "training": False}
        elif call.name == _ATTENTION:
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
            kwargs = {**kwargs, "dropout_p": 0.0} if "dropout_p" in kwargs else kwargs
        elif call.name in _RECURRENT:
            parts = list(args)
            for number in range(1, len(parts)):
                if isinstance(parts[number - 1], float) and isinstance(parts[number], bool):
                    parts[number] = False
            args = tuple(parts)
        elif call.name == "batch_norm" and kwargs.get("training"):
            value = args[0]
            if self.running and args[1] is not None:
                return args, {**kwargs, "training": False}
            if id(call) not in self._norms:
                axes = [0, *range(2, value.ndim)]
                self._norms[id(call)] = (value.detach().mean(axes), value.detach().var(axes, unbiased=False))
            args = (value, *self._norms[id(call)])
            kwargs = {**kwargs, "training": False}
        return args, kwargs

    def value(self, **given: Any) -> float:
        """The loss with some tensors replaced."""
        with torch.no_grad():
            return float(self.run(**given)[self.tape.loss])


@dataclass
class Batch:
    """A batch of a loop, or one put together from its rows."""

    tape: Tape
    roots: dict[int, Tensor]

    def replay(self, weights: Mapping[int, Tensor] | None = None) -> Replay:
        """A replay of the tape with the data of this batch."""
        return Replay(self.tape, weights, roots=self.roots)


def faithful(tape: Tape) -> bool:
    """Whether the tape gives the recorded loss at the present weights."""
    replay = Replay(tape)
    roots = {key: root.value for key, root in tape.roots.items()}
    with torch.no_grad():
        found = float(replay.run(roots, exact=True)[tape.loss])
    return math.isclose(found, tape.value, rel_tol=1e-3, abs_tol=1e-6)


assert functional.dropout.__name__ in DROPOUT
