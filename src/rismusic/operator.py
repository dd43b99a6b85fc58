r"""The linear operator from the panel to the receiver.

The receiver observes :math:`y_l = G_l A s_l + n_l` with :math:`G_l = H\,\mathrm{diag}(c_l)`: H [M, N] is the
channel from the panel to the base station, c_l [N] the RIS configuration of snapshot l. A directly sampled
array has :math:`G_l = I`. No N x N matrix is formed.

Two further models have the same form with another operator:

* *coherent* (constant or known symbols): all snapshots are one long snapshot of L M outputs. A source of
  constant symbol s sends :math:`[G_1 a; \ldots; G_L a]\, s`, one with the known symbols (pilots) x_l sends
  :math:`[x_1 G_1 a; \ldots; x_L G_L a]` times an unknown amplitude.
* *wideband*: subcarrier f has its own steering vectors and its own channel H_f; the F L snapshots are counted
  subcarrier by subcarrier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from rismusic.array import ArrayLike, to_tensor
from rismusic.batch import takes_all
from rismusic.errors import InputError

_BLOCK = 8  # scenes whose matrices G_l are formed together


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Link:
    r"""The operators :math:`G_l = H\,\mathrm{diag}(c_l)` of L snapshots, shared or one per scene.

    Args:
        channel: H, complex [M, N], or [..., M, N] with one per scene, as NumPy array or tensor. None: H = I
            (direct sampling, M = N).
        codes: RIS configurations c_l, complex [L, N] or [..., L, N]. None: c_l = 1. L = 1 broadcasts over
            the snapshots.
        coherent: whether the L snapshots form one of L M outputs. Needs codes, which tell L.
        pilots: known symbols, complex [L, K] or [..., L, K], of a coherent link; None: constant symbols.
        subcarriers: F; if it is above 1, the channel is [F, M, N] or [..., F, M, N].
        weights: real factors of the outputs, [F L, M] or [..., F L, M]: :math:`G_l = \mathrm{diag}(w_l)\, H\,
            \mathrm{diag}(c_l)`, for samples of unequal noise. None: 1.

    Raises:
        InputError: the values are not complex, have fewer than two axes, or disagree in N.

    Example:
        >>> Link(channel=np.ones((4, 9), complex), codes=np.ones((11, 9), complex))
        Link(channel [4, 9], codes [11, 9])
    """

    channel: Complex[Tensor, "... M N"] | None = None
    codes: Complex[Tensor, "... L N"] | None = None
    coherent: bool = False
    pilots: Complex[Tensor, "... L K"] | None = None
    subcarriers: int = 1
    weights: Float[Tensor, "... L M"] | None = None

    def __init__(
        self,
        channel: ArrayLike | None = None,
        codes: ArrayLike | None = None,
        *,
        coherent: bool = False,
        pilots: ArrayLike | None = None,
        subcarriers: int = 1,
        weights: Float[Tensor, "... L M"] | None = None,
    ) -> None:
        object.__setattr__(self, "coherent", coherent)
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "subcarriers", subcarriers)
        for name, value, shape in (
            ("channel", channel, "[M, N]" if subcarriers == 1 else "[F, M, N]"),
            ("codes", codes, "[L, N]"),
            ("pilots", pilots, "[L, K]"),
        ):
            part = None if value is None else to_tensor(name, value, "complex")
            if part is not None and part.ndim < (3 if name == "channel" and subcarriers > 1 else 2):
                hint = f". For a single antenna, pass {name}.reshape(1, -1)" if name == "channel" else ""
                raise InputError(
                    name,
                    f"must have shape {shape}, or [S, ...] with one per scene; got {list(part.shape)}"
                    f"{hint if part.ndim == 1 else ''}",
                )
            object.__setattr__(self, name, part)
        if (
            self.channel is not None
            and self.codes is not None
            and self.channel.shape[-1] != self.codes.shape[-1]
        ):
            parts = {"channel": self.channel.shape, "codes": self.codes.shape}
            for (name, mine), other in zip(parts.items(), (parts["codes"], parts["channel"]), strict=True):
                if mine[-2] == other[-1]:
                    turn = f"{name}.T" if len(mine) == 2 else f"{name}.swapaxes(-1, -2)"
                    raise InputError(
                        name,
                        f"must have N = {other[-1]} elements in its last axis; got shape {list(mine)}. It "
                        f"looks transposed: pass {turn}",
                    )
            raise InputError(
                "codes",
                f"must have as many elements N (last axis) as channel, {self.channel.shape[-1]}; "
                f"got {self.codes.shape[-1]}",
            )

    def __repr__(self) -> str:
        parts = (("channel", self.channel), ("codes", self.codes))
        shapes = [f"{name} {list(part.shape)}" for name, part in parts if part is not None]
        return f"Link({', '.join(shapes) or 'direct sampling'})"

    @property
    def per_scene(self) -> bool:
        """Whether channel, codes or pilots have leading scene axes."""
        return any(part.ndim > shared for part, shared in self._parts())

    @property
    def device(self) -> torch.device:
        """Device of its parts; the CPU where it has none."""
        return next((part.device for part, _ in self._parts()), torch.device("cpu"))

    @property
    def matrices(self) -> int:
        """Number of different operators of a scene: L F, F or 1."""
        if self.weights is not None and not self.coherent:
            return self.weights.shape[-2]
        snapshots = 1 if self.codes is None or self.coherent else self.codes.shape[-2]
        return self.subcarriers * snapshots

    def _parts(self) -> list[tuple[Tensor, int]]:
        """The parts that are there, and their number of axes without a scene axis."""
        channel = 2 if self.subcarriers == 1 else 3
        parts = ((self.channel, channel), (self.codes, 2), (self.pilots, 2), (self.weights, 2))
        return [(part, shared) for part, shared in parts if part is not None]

    def separate(self, received: Complex[Tensor, "... F LM"]) -> tuple[Complex[Tensor, "... L M"], Link]:
        """The snapshots of a coherent link as separate ones, [..., F L, M], and their link."""
        plain = replace(self, coherent=False, pilots=None)
        return received.unflatten(-1, (self._length(), -1)).flatten(-3, -2), plain

    def for_pilots(self, source: int) -> Link:
        """The operator for any point that sends the pilots of one source."""
        if self.pilots is None:
            return self
        pilots = self.pilots[..., source, None]
        if self.codes is not None:
            pilots = self.codes * pilots
        elif self.channel is not None:
            pilots = pilots.expand(*pilots.shape[:-1], self.channel.shape[-1])
        return replace(self, codes=pilots, pilots=None)

    def apply(self, field: Complex[Tensor, "... L N"]) -> Complex[Tensor, "... L M"]:
        """G_l x_l for a field x_l on the panel, one per snapshot: [..., L, N] to [..., L, M].

        With subcarriers L stands for F L. The snapshots are independent ones, whether the link is coherent
        or not.
        """
        if self.subcarriers > 1:
            field = field.unflatten(-2, (self.subcarriers, -1))
        coded = field if self.codes is None else field * self._per_subcarrier(self.codes)
        received = coded if self.channel is None else coded @ self.channel.mT
        received = received.flatten(-3, -2) if self.subcarriers > 1 else received
        return self._weighted(received, 0)

    def adjoint(self, received: Complex[Tensor, "... L M"]) -> Complex[Tensor, "... L N"]:
        """Adjoint G_l^H y_l, the back-projection onto the panel: [..., L, M] to [..., L, N].

        With subcarriers L stands for F L. The adjoint of a coherent link sums over its snapshots, to
        [..., F, N].
        """
        F = self.subcarriers
        if self.coherent:
            L = self._length()
            received = self._weighted(received.unflatten(-1, (L, -1)).flatten(-3, -2), 0)
            received = received.unflatten(-2, (F, L)) if F > 1 else received  # [..., (F,) L, M]
        else:
            received = self._weighted(received, 0)
            received = received.unflatten(-2, (F, -1)) if F > 1 else received
        field = received if self.channel is None else received @ self.channel.conj()
        field = field if self.codes is None else field * self._per_subcarrier(self.codes).conj()
        if self.coherent:
            return field.sum(-2, keepdim=F == 1)
        return field.flatten(-3, -2) if F > 1 else field

    def matmul(self, matrix: Complex[Tensor, "... N K"]) -> Complex[Tensor, "... L M K"]:
        """G_l A for every snapshot: [..., N, K] to [..., L, M, K] (L = 1 without codes).

        With subcarriers the rows of A are F N, and L stands for F L. A coherent link gives [..., F, L M, K].
        With pilots the K columns are those of the sources, or of the sources and their three derivatives.

        With many columns the G_l of some scenes at a time are formed.
        """
        product = self._matmul(matrix)
        product = self._weighted(product, 1)
        if self.pilots is not None:
            pilots = _for_columns(self.pilots, product.shape[-1])
            pilots = pilots.to(product.dtype)
            if self.subcarriers > 1:
                product = product.unflatten(-3, (self.subcarriers, -1)) * pilots.unsqueeze(-3).unsqueeze(-2)
                product = product.flatten(-4, -3)
            else:
                product = product * pilots.unsqueeze(-2)
        if self.coherent:
            product = product.unflatten(-3, (self.subcarriers, -1)).flatten(-3, -2)
        return product

    def _matmul(self, matrix: Tensor) -> Tensor:
        """The products of independent snapshots."""
        if self.subcarriers > 1:
            matrix = matrix.unflatten(-2, (self.subcarriers, -1))  # [..., F, N, K]
            if self.codes is None:
                return matrix if self.channel is None else self.channel @ matrix
            coded = self.codes.mT[..., None, :, :, None] * matrix.unsqueeze(-2)  # [..., F, N, L, K]
            received = coded.flatten(-2)
            if self.channel is not None:
                received = self.channel @ received
            return received.unflatten(-1, coded.shape[-2:]).transpose(-3, -2).flatten(-4, -3)
        if self.codes is None:
            product = matrix if self.channel is None else self.channel @ matrix
            return product.unsqueeze(-3)
        if self.channel is None:
            return self.codes.unsqueeze(-1) * matrix.unsqueeze(-3)
        plain = Link(self.channel, self.codes)
        if not plain.per_scene:
            return torch.einsum("lmn,...nk->...lmk", plain.dense(), matrix)
        if matrix.shape[-1] >= self.channel.shape[-2] // 2:
            # Many columns: one large product with G_l is worth forming it (up to 7 times faster, measured),
            # in blocks of scenes that stay in the cache.
            scenes = torch.broadcast_shapes(*(part.shape[:-2] for part in (self.channel, self.codes, matrix)))
            blocks = (
                part.expand(*scenes, -1, -1).split(_BLOCK) for part in (self.channel, self.codes, matrix)
            )
            products = []
            for channel, codes, columns in zip(*blocks, strict=True):
                G = channel.unsqueeze(-3) * codes.unsqueeze(-2)
                products.append((G.flatten(-3, -2) @ columns).unflatten(-2, G.shape[-3:-1]))
            return torch.cat(products)
        coded = self.codes.mT.unsqueeze(-1) * matrix.unsqueeze(-2)  # [..., N, L, K]
        product = self.channel @ coded.flatten(-2)
        return product.unflatten(-1, coded.shape[-2:]).transpose(-3, -2)

    def dense(self) -> Complex[Tensor, "... L M N"]:
        """The matrices G_l themselves, [..., L, M, N] (L = 1 without codes).

        With subcarriers L stands for F L; a coherent link gives [..., F, L M, N].

        Raises:
            InputError: the link is direct sampling without codes; it does not know N.
        """
        if self.codes is None:
            if self.channel is None:
                raise InputError(
                    "link", "direct sampling (G = I) has no dense matrix: its size N is not part of the link"
                )
            G = self.channel.unsqueeze(-3) if self.subcarriers == 1 else self.channel
            return self._weighted(G, 1)
        codes = self._per_subcarrier(self.codes)
        if self.channel is None:
            G = torch.diag_embed(codes)
        else:
            G = self.channel.unsqueeze(-3) * codes.unsqueeze(-2)  # [..., (F,) L, M, N]
        if self.subcarriers > 1:
            G = G.expand(*G.shape[:-4], self.subcarriers, *G.shape[-3:]).flatten(-4, -3)
        G = self._weighted(G, 1)
        if self.coherent:
            G = G.unflatten(-3, (self.subcarriers, -1)).flatten(-3, -2)
        return G

    def _weighted(self, value: Tensor, after: int) -> Tensor:
        """Values times the weights of the outputs, with a number of axes after those of the outputs."""
        if self.weights is None:
            return value
        weights = self.weights.to(value.real.dtype)
        return value * weights.reshape(*weights.shape, *[1] * after)

    def _per_subcarrier(self, codes: Tensor) -> Tensor:
        return codes.unsqueeze(-3) if self.subcarriers > 1 else codes

    def _length(self) -> int:
        """L of a coherent link."""
        part = self.codes if self.codes is not None else self.pilots
        if part is None:
            raise InputError("codes", "a coherent link needs codes, which tell the number of snapshots")
        return part.shape[-2]

    def to(self, target: torch.device | str | torch.dtype) -> Link:
        """Copy of the link on another device or in another complex precision."""
        if isinstance(target, torch.dtype):
            return self._each(lambda part, _: part.to(target if part.is_complex() else target.to_real()))
        return self._each(lambda part, _: part.to(target))

    def __getitem__(self, scenes: slice | Tensor) -> Link:
        """Link of a subset of scenes; parts shared by all scenes are kept whole."""
        return self._each(
            lambda part, shared: part if part.ndim == shared or takes_all(scenes, len(part)) else part[scenes]
        )

    def shared(self, scene: int) -> Link:
        """The link of one scene, as one that all scenes share."""
        return self._each(lambda part, shared: part if part.ndim == shared else part[scene])

    def _each(self, change: Callable[[Tensor, int], Tensor]) -> Link:
        """Apply a function of a part and its number of axes without a scene axis to every part."""
        names = ("channel", "codes", "pilots", "weights")
        changed: dict[str, Any] = {}
        for name in names:
            if (part := getattr(self, name)) is not None:
                changed[name] = change(part, 2 + (name == "channel" and self.subcarriers > 1))
        unchanged = all(part is getattr(self, name) for name, part in changed.items())
        return self if unchanged else replace(self, **changed)


def _for_columns(pilots: Tensor, columns: int) -> Tensor:
    """Pilots of the columns of A, of its derivatives (source slow, coordinate fast), or of both."""
    K = pilots.shape[-1]
    thrice = pilots.repeat_interleave(3, dim=-1)
    options = {K: pilots, 3 * K: thrice, 4 * K: torch.cat((pilots, thrice), dim=-1)}
    if columns not in options:
        raise InputError("pilots", f"are for K = {K} sources; got {columns} columns")
    return options[columns]
