"""Dropout of whole channels, drawn for each scene by its address.

The places of a map that lie side by side say much the same, so that a number left out at one of them is told
by the next. What is left out is therefore a channel, everywhere (Tompson et al., "Efficient object
localization using convolutional networks", CVPR 2015), of what a block adds (Vaswani et al., "Attention is
all you need", NeurIPS 2017).

The generator that torch shares among all that ask would make a training depend on how often it was asked.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from rismusic.draws import Draws, Stream
from rismusic.learn.spec import NetworkSpec


def kept_channels(spec: NetworkSpec, draws: Draws) -> Float[Tensor, "S T B 2 W"]:
    """What to multiply the channels with that the blocks add: 0 where one is left out, else above 1.

    The mean is 1, so that nothing is multiplied once the training is over.

    Args:
        spec: T stages of B blocks of W channels, and the share that is left out. Of each block the first row
            is for what its small network adds, the second for its attention, where it has one.
        draws: one row for each of S scenes.
    """
    uniform = draws.uniform(Stream.DROPOUT, spec.stages, spec.depth, 2, spec.width)
    return (uniform >= spec.dropout).to(uniform.dtype) / (1 - spec.dropout)
