r"""Covariances of low rank plus identity, :math:`R = F F^H + \epsilon I`, never N x N unless asked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from rismusic.errors import InputError


@dataclass(frozen=True, eq=False)
class Covariance:
    r"""Low rank plus identity, :math:`R = F F^H + \epsilon I`.

    Args:
        factor: F, [..., N, R] complex.
        loading: :math:`\epsilon`, [...] real, not negative.

    Raises:
        InputError: a factor that is not complex or has fewer than two axes; a loading of another shape.
    """

    factor: Complex[Tensor, "*batch N R"]
    loading: Float[Tensor, "*batch"]

    def __post_init__(self) -> None:
        if self.factor.ndim < 2 or not self.factor.is_complex():
            raise InputError(
                "covariance.factor",
                "complex values of shape [..., N, R]",
                f"{self.factor.dtype}, shape {list(self.factor.shape)}",
            )
        if self.loading.shape != self.factor.shape[:-2]:
            raise InputError(
                "covariance.loading",
                f"one value per scene, shape {list(self.factor.shape[:-2])}",
                f"{list(self.loading.shape)}",
            )

    @property
    def size(self) -> int:
        """N."""
        return self.factor.shape[-2]

    @property
    def rank(self) -> int:
        """Most directions that can stand out of the identity."""
        return min(self.factor.shape[-2:])

    @property
    def trace(self) -> Float[Tensor, "*batch"]:
        """The trace of R."""
        return energy(self.factor).sum((-2, -1)) + self.size * self.loading

    def dense(self) -> Complex[Tensor, "*batch N N"]:
        """R itself, N x N, Hermitian."""
        product = self.factor @ self.factor.mH
        identity = torch.eye(self.size, dtype=product.dtype, device=product.device)
        return (product + product.mH) / 2 + self.loading[..., None, None] * identity

    def normalised(self) -> Covariance:
        """R / tr R. Where R is zero it says nothing of any direction, and I / N takes its place."""
        trace = self.trace
        empty = trace == 0
        safe = torch.where(empty, 1, trace)
        loading = torch.where(empty, 1 / self.size, self.loading / safe)
        return Covariance(self.factor * safe.rsqrt()[..., None, None], loading)

    def apply(self, matrix: Complex[Tensor, "*batch N Q"]) -> Complex[Tensor, "*batch N Q"]:
        """R X."""
        return self.factor @ (self.factor.mH @ matrix) + self.loading[..., None, None] * matrix

    def quadratic(self, vectors: Complex[Tensor, "*batch N Q"]) -> Float[Tensor, "*batch Q"]:
        """a^H R a of each column a."""
        return energy(self.factor.mH @ vectors).sum(-2) + self.loading[..., None] * energy(vectors).sum(-2)

    def inverse_root(self) -> Complex[Tensor, "*batch N R"]:
        r"""V with :math:`I - V V^H = \epsilon R^{-1}` (Woodbury): :math:`V = F C^{-H}`.

        C is the Cholesky factor of :math:`\epsilon I + F^H F`. The loading must be positive.

        Raises:
            InputError: a loading that is zero, so that R has no inverse.
        """
        if not (self.loading > 0).all():
            raise InputError("covariance.loading", "a positive loading (R has no inverse)", "0")
        wide = self.factor.to(torch.complex128)
        gram = wide.mH @ wide
        identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        root = torch.linalg.cholesky(gram + self.loading.double()[..., None, None] * identity)
        solved = torch.linalg.solve_triangular(root, wide.mH, upper=False)
        return solved.mH.to(self.factor.dtype).resolve_conj()

    @torch.no_grad()
    def eigen(self, count: int) -> tuple[Float[Tensor, "*batch K"], Complex[Tensor, "*batch N K"]]:
        """The largest eigenvalues, descending, and their eigenvectors, through the small Gram matrix F^H F.

        Nothing differentiates through eigenvectors: where eigenvalues meet, their derivative does not exist.

        Args:
            count: K, at most the rank of the factor.

        Returns:
            Eigenvalues of R [..., K] (the loading included) and orthonormal eigenvectors [..., N, K]. Where
            the factor has fewer than K directions of its own, the rest of the eigenvectors are zero: any
            others would do as well.

        Raises:
            InputError: K below 1 or above the rank.
        """
        if not 1 <= count <= self.rank:
            raise InputError("sources", f"1 to {self.rank} (the rank of the covariance)", str(count))
        # In double precision: the Gram matrix squares the ratio of the singular values.
        wide = self.factor.to(torch.complex128)
        N, R = wide.shape[-2:]
        values, vectors = torch.linalg.eigh(wide.mH @ wide if R <= N else wide @ wide.mH)
        values = values[..., -count:].flip(-1).clamp_min(0)
        vectors = vectors[..., -count:].flip(-1)
        if R <= N:
            floor = 1e-14 * values[..., :1]
            scale = torch.where(values > floor, values, torch.inf).rsqrt()
            vectors = wide @ (vectors * scale[..., None, :])
        loaded = values + self.loading.double()[..., None]
        return loaded.to(self.loading.dtype), vectors.to(self.factor.dtype)

    def detach(self) -> Covariance:
        """The same covariance without its history of gradients."""
        return Covariance(self.factor.detach(), self.loading.detach())

    def to(self, target: torch.device | str) -> Covariance:
        """The same covariance on another device."""
        return Covariance(self.factor.to(target), self.loading.to(target))

    def __getitem__(self, scenes: slice | Tensor | int) -> Covariance:
        """The covariances of some scenes."""
        return Covariance(self.factor[scenes], self.loading[scenes])


def energy(values: Complex[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """|z|^2, without the square root that ``abs`` would take, whose derivative at 0 does not exist."""
    return values.real.square() + values.imag.square()
