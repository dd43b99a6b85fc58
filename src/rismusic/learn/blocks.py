"""What the network's stages are made of."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention


class Block(nn.Module):
    """A convolution of each channel by itself, a small network per place, and attention over all places.

    After Liu et al., "A ConvNet for the 2020s" (CVPR 2022); the attention is there because sources far apart
    explain the same data.

    Args:
        width: channels.
        kernel: places along each side of the convolution, odd.
        heads: of the attention; 0 for none.
    """

    def __init__(self, width: int, kernel: int, *, heads: int) -> None:
        super().__init__()
        self.near = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)
        self.attention = Attention(width, heads) if heads else None

    def forward(
        self, x: Float[Tensor, "S C X Y"], kept: Float[Tensor, "S 2 C"] | None = None
    ) -> Float[Tensor, "S C X Y"]:
        """Each part adds to what it was given, as far as its channels are ``kept``.

        See :func:`rismusic.learn.dropout.kept_channels`; all are if none.
        """
        flat = self.near(x).flatten(2).mT  # [S, X Y, C]
        change = self.narrow(gelu(self.widen(self.norm(flat)))).mT
        x = x + _thinned(change, kept, 0).view_as(x)
        if self.attention is not None:
            x = x + _thinned(self.attention(x.flatten(2).mT).mT, kept, 1).view_as(x)
        return x


def _thinned(change: Tensor, kept: Tensor | None, part: int) -> Tensor:
    """A change [S, C, X Y] without the channels that are left out."""
    return change if kept is None else change * kept[:, part, :, None].to(change.dtype)


class Attention(nn.Module):
    """Scaled dot-product attention of all places of a scene to each other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.ask = nn.Linear(width, 3 * width)
        self.answer = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "S T C"]) -> Float[Tensor, "S T C"]:
        """Tokens in, tokens out."""
        queries, keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.ask(self.norm(x)).chunk(3, dim=-1)
        )
        return self.answer(scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2))


class Stage(nn.Module):
    """Maps in, a memory and a value for each point of the grid out.

    Args:
        maps: channels given.
        width: channels of the memory.
        depth: blocks; the last one holds attention.
        kernel: of the convolutions.
        heads: of the attention.
        planes: Z, values for each place.
    """

    precision: torch.dtype | None = None
    """Of the matrix products, where it is not that of what is given; what comes out has the latter."""

    def __init__(self, maps: int, width: int, depth: int, kernel: int, heads: int, planes: int) -> None:
        super().__init__()
        self.read = nn.Conv2d(maps, width, 1)
        last = depth - 1
        self.blocks = nn.Sequential(
            *(Block(width, kernel, heads=heads if i == last else 0) for i in range(depth))
        )
        self.write = nn.Conv2d(width, planes, 1)

    def forward(
        self, given: Float[Tensor, "S C X Y"], kept: Float[Tensor, "S B 2 W"] | None = None
    ) -> tuple[Float[Tensor, "S W X Y"], Float[Tensor, "S P"]]:
        """The memory, and values [S, X Y Z]; ``kept`` is for each block."""
        with torch.autocast(given.device.type, self.precision, enabled=self.precision is not None):
            memory = self.read(given)
            for number, block in enumerate(self.blocks):
                memory = block(memory, None if kept is None else kept[:, number])
            values = self.write(memory).movedim(1, -1).flatten(1)
        return memory.to(given.dtype), values.to(given.dtype)
