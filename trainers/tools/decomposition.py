"""The best low-rank factors of a matrix, and how many of them are worth keeping. Pure functions of tensors."""
from dataclasses import dataclass

import torch
from torch import Tensor

DEPTH = 5
"""Blocks of the sketch. Half of the rank five times leaves a residual at most a quarter of a percent above the best, over a
floor of noise on 1280 × 1280, which is the hardest case; all of it three times as much, in more time."""
EXACT_UP_TO = 256
"""Short side up to which a matrix is decomposed exactly: sketching would save nothing."""


@dataclass(frozen=True)
class Factors:
    """left [m, r] · diag(values [r]) · right [r, n], values falling; `energy` is the squared Frobenius norm of the whole
    matrix, so what is left out is known even when only the first values are."""

    left: Tensor
    values: Tensor
    right: Tensor
    energy: float

    def first(self, rank: int) -> "Factors":
        return Factors(self.left[:, :rank], self.values[:rank], self.right[:rank], self.energy)

    @property
    def kept(self) -> float:
        """Fraction of the energy that the factors hold."""
        return float((self.values.double() ** 2).sum()) / self.energy if self.energy else 1.0


def decompose(matrix: Tensor, rank: int, exact: bool = False, seed: int = 0) -> Factors:
    """The first `rank` singular triplets of a float32 matrix [m, n].

    Large ones by randomized block Krylov iteration (Musco & Musco 2015, arXiv:1504.05477, algorithm 2): of the spaces that
    (A Aᵀ)ⁱ A x spans for random blocks x of half of `rank` columns, the best factors are taken. A is the matrix with its
    short side first, where orthogonal columns cost least; what Aᵀ makes of them is kept, so that A is applied twice a block.
    """
    rank = min(rank, *matrix.shape)
    energy = squared_norm(matrix)
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    block = max(8, -(-rank // 2))
    if exact or len(wide) <= max(EXACT_UP_TO, DEPTH * block):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return Factors(left[:, :rank], values[:rank], right[:rank], energy)
    start = torch.randn((wide.shape[1], block), generator=torch.Generator().manual_seed(seed)).to(wide)
    newest = basis = torch.linalg.qr(wide @ start).Q
    inner = [(wide.T @ newest).T]  # this way round in half of the time
    while len(inner) < DEPTH:
        newest = wide @ inner[-1].T
        for _ in range(3):  # once leaves parts of the old in what is nearly within it, twice in what is rounding alone
            newest = torch.linalg.qr(newest - basis @ (basis.T @ newest)).Q
        basis = torch.cat([basis, newest], dim=1)
        inner.append((wide.T @ newest).T)
    inner = torch.cat(inner)
    # The Gram matrix is small; in float64 its square roots are as exact as float32 singular values.
    vectors = torch.linalg.eigh(inner.double() @ inner.double().T).eigenvectors.flip(1)[:, :rank].to(wide)
    left = basis @ vectors
    right = vectors.T @ inner
    values = right.norm(dim=1)
    right = right / values.clamp(min=torch.finfo(values.dtype).tiny)[:, None]
    return Factors(left, values, right, energy) if wide is matrix else Factors(right.T, values, left.T, energy)


def squared_norm(matrix: Tensor) -> float:
    """Squared Frobenius norm, whose rows are summed in float64."""
    return float(matrix.norm(dim=1).double().square().sum())


def rank_by_energy(factors: Factors, fraction: float) -> int:
    """The smallest rank that keeps `fraction` of the squared Frobenius norm."""
    kept = torch.cumsum(factors.values.double() ** 2, dim=0)
    enough = torch.nonzero(kept >= fraction * factors.energy * (1 - 1e-9))
    return int(enough[0]) + 1 if len(enough) else len(factors.values)


def rank_by_ratio(factors: Factors, ratio: float) -> int:
    """The number of singular values that are at least 1 / `ratio` of the largest."""
    return max(1, int((factors.values >= factors.values[0] / ratio).sum()))


def rank_by_knee(factors: Factors) -> int:
    """Where the curve of singular values bends most: the point farthest below the line from its first to its last
    (Satopää et al. 2011, "Finding a Kneedle in a Haystack")."""
    values = factors.values.double()
    if len(values) < 3 or values[0] <= 0:
        return len(values)
    height = (values - values[-1]) / max(float(values[0] - values[-1]), 1e-300)
    line = 1 - torch.arange(len(values), dtype=torch.float64) / (len(values) - 1)
    return max(1, int(torch.argmax(line - height)))
