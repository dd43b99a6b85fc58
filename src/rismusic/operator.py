r"""The linear operator from the panel to the receiver.

The receiver observes :math:`y_l = G_l A s_l + n_l` with :math:`G_l = H\,\mathrm{diag}(c_l)`: H [M, N] is the
channel from the panel to the base station, c_l [N] the RIS configuration of snapshot l. A directly sampled
array has :math:`G_l = I`. No N x N matrix is formed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Complex
from torch import Tensor

from rismusic.array import ArrayLike, to_tensor
from rismusic.errors import InputError


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Link:
    r"""The operators :math:`G_l = H\,\mathrm{diag}(c_l)` of L snapshots, shared or one per scene.

    Args:
        channel: H, complex [M, N], or [..., M, N] with one per scene, as NumPy array or tensor. None: H = I
            (direct sampling, M = N).
        codes: RIS configurations c_l, complex [L, N] or [..., L, N]. None: c_l = 1. L = 1 broadcasts over
            the snapshots.

    Raises:
        InputError: the values are not complex, have fewer than two axes, or disagree in N.

    Example:
        >>> Link(channel=np.ones((4, 9), complex), codes=np.ones((11, 9), complex))
        Link(channel [4, 9], codes [11, 9])
    """

    channel: Complex[Tensor, "... M N"] | None = None
    codes: Complex[Tensor, "... L N"] | None = None

    def __init__(self, channel: ArrayLike | None = None, codes: ArrayLike | None = None) -> None:
        for name, value, shape in (("channel", channel, "[M, N]"), ("codes", codes, "[L, N]")):
            part = None if value is None else to_tensor(name, value, "complex")
            if part is not None and part.ndim < 2:
                raise InputError(
                    name, f"must have shape {shape}, or [S, ...] with one per scene; got {list(part.shape)}"
                )
            object.__setattr__(self, name, part)
        if (
            self.channel is not None
            and self.codes is not None
            and self.channel.shape[-1] != self.codes.shape[-1]
        ):
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
        """Whether channel or codes have leading scene axes."""
        return any(part is not None and part.ndim > 2 for part in (self.channel, self.codes))

    def apply(self, field: Complex[Tensor, "... L N"]) -> Complex[Tensor, "... L M"]:
        """G_l x_l for a field x_l on the panel, one per snapshot: [..., L, N] to [..., L, M]."""
        coded = field if self.codes is None else field * self.codes
        return coded if self.channel is None else coded @ self.channel.mT

    def adjoint(self, received: Complex[Tensor, "... L M"]) -> Complex[Tensor, "... L N"]:
        """Adjoint G_l^H y_l, the back-projection onto the panel: [..., L, M] to [..., L, N]."""
        field = received if self.channel is None else received @ self.channel.conj()
        return field if self.codes is None else field * self.codes.conj()

    def matmul(self, matrix: Complex[Tensor, "... N K"]) -> Complex[Tensor, "... L M K"]:
        """G_l A for every snapshot: [..., N, K] to [..., L, M, K] (L = 1 without codes).

        With many columns the G_l of all scenes are formed, [..., L, M, N]: work in blocks of scenes.
        """
        if self.codes is None:
            product = matrix if self.channel is None else self.channel @ matrix
            return product.unsqueeze(-3)
        if self.channel is None:
            return self.codes.unsqueeze(-1) * matrix.unsqueeze(-3)
        if not self.per_scene:
            return torch.einsum("lmn,...nk->...lmk", self.dense(), matrix)
        if matrix.shape[-1] >= self.channel.shape[-2] // 2:
            # Many columns: one large product with G_l is worth forming it (up to 7 times faster, measured).
            G = self.dense()
            return (G.flatten(-3, -2) @ matrix).unflatten(-2, G.shape[-3:-1])
        coded = self.codes.mT.unsqueeze(-1) * matrix.unsqueeze(-2)  # [..., N, L, K]
        product = self.channel @ coded.flatten(-2)
        return product.unflatten(-1, coded.shape[-2:]).transpose(-3, -2)

    def dense(self) -> Complex[Tensor, "... L M N"]:
        """The matrices G_l themselves, [..., L, M, N] (L = 1 without codes).

        Raises:
            InputError: the link is direct sampling without codes; it does not know N.
        """
        if self.codes is None:
            if self.channel is None:
                raise InputError(
                    "link", "direct sampling (G = I) has no dense matrix: its size N is not part of the link"
                )
            return self.channel.unsqueeze(-3)
        if self.channel is None:
            return torch.diag_embed(self.codes)
        return self.channel.unsqueeze(-3) * self.codes.unsqueeze(-2)

    def to(self, target: torch.device | str | torch.dtype) -> Link:
        """Copy of the link on another device or in another complex precision."""
        return Link(*(None if part is None else part.to(target) for part in (self.channel, self.codes)))

    def __getitem__(self, scenes: slice | Tensor) -> Link:
        """Link of a subset of scenes; parts shared by all scenes are kept whole."""
        return Link(
            *(part if part is None or part.ndim == 2 else part[scenes] for part in (self.channel, self.codes))
        )
