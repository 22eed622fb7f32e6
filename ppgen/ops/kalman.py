r"""Linear-Gaussian chains: Kalman filter, Rauch-Tung-Striebel smoother, draws of paths; NaN is missing.

.. math::

    z_1 \sim N(m_0, P_0), \quad z_t = A z_{t-1} + N(0, Q), \quad x_t = C z_t + d + N(0, \mathrm{diag}(r))

for N sequences of T steps. All steps are worked out at once, in O(log T) rounds of batched products of small
matrices, for the recursions are products of associative elements (Särkkä & García-Fernández):

* covariances of the filter: an element *updates* with what some steps say of the state before them,
  information :math:`J`, and *moves* it with :math:`A` and noise :math:`C`; one step has
  :math:`J_t = C' \mathrm{diag}(1 / r) C`, without the coordinates that are missing;
* means, smoothed means, and draws: affine maps, whose matrices are known by then;
* smoothed covariances: :math:`P \mapsto G P G' + D`.

All is in float64, whatever the dtype of the input: information grows with the ratio of signal to noise
variance, and its relative error of 1e-16 times that ratio is what states that the data hardly show suffer.
Covariances are sums of squares (Joseph's form), so rounding leaves them positive definite. Where nothing is
missing, they do not depend on the data and are worked out once for all sequences: their first dimension M is
1, else N. Where many sequences have covariances of their own, one step after another is work enough for each
operation, and what the products of elements cost (about four times as much) buys nothing: then the same
elements are applied in turn.

Cost: O(M T (L^3 + D L^2) + N T L (L + D)).

References: Kalman 1960; Rauch, Tung & Striebel 1965; Anderson & Moore, *Optimal filtering*, 1979; Särkkä &
García-Fernández, IEEE Transactions on Automatic Control 66, 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppgen.ops.chain_scans import carried

# Numbers in the covariances of those sequences that are worked out together.
_MAX_COVARIANCES = 2**23
# Work a step, in M L^3, above which a loop over the steps waits less for each operation than products of
# elements compute.
_BUSY_CPU, _BUSY_GPU = 2**9, 2**22


@dataclass(frozen=True)
class LinearGaussian:
    """Parameters of a chain of L latent and D observed coordinates.

    Attributes:
        initial_loc: m_0, (L,).
        initial_tril: lower Cholesky factor of P_0, (L, L).
        transition: A, (L, L).
        transition_tril: lower Cholesky factor of Q, (L, L).
        loading: C, (D, L).
        offset: d, (D,).
        noise_scale: square roots of r, (D,).
    """

    initial_loc: Tensor
    initial_tril: Tensor
    transition: Tensor
    transition_tril: Tensor
    loading: Tensor
    offset: Tensor
    noise_scale: Tensor

    @property
    def initial_covariance(self) -> Tensor:
        """P_0, (L, L)."""
        return self.initial_tril @ self.initial_tril.T

    @property
    def transition_covariance(self) -> Tensor:
        """Q, (L, L)."""
        return self.transition_tril @ self.transition_tril.T

    def double(self) -> LinearGaussian:
        """The same in float64."""
        return LinearGaussian(*(value.double() for value in vars(self).values()))


@dataclass(frozen=True)
class Filtered:
    """What the past says of each state; float64.

    Attributes:
        log_prob: log density of the sequences, (N,), in nats.
        means: of z_t given x_1..x_t, (N, T, L).
        covariances: their covariances, (M, T, L, L).
        predicted_means: of z_t given x_1..x_(t-1), (N, T, L).
        predicted_covariances: theirs, (M, T, L, L).
    """

    log_prob: Tensor
    means: Tensor
    covariances: Tensor
    predicted_means: Tensor
    predicted_covariances: Tensor


@dataclass(frozen=True)
class Smoothed:
    """What all of x says of each state; float64.

    Attributes:
        means: of z_t given x, (N, T, L).
        covariances: theirs, (M, T, L, L).
        lagged: Cov(z_(t+1), z_t given x), (M, T - 1, L, L).
    """

    means: Tensor
    covariances: Tensor
    lagged: Tensor


def kalman_filter(x: Tensor, chain: LinearGaussian) -> Filtered:
    """Filter sequences (N, T, D); differentiable in the parameters and in x.

    All is NaN where a covariance has no Cholesky factor in float64.
    """
    chain, x = chain.double(), x.double()
    if x.is_meta or not bool(x.isnan().any()):
        return _filter(x, x.new_ones(1, *x.shape[1:]), chain)
    rows = _rows(x.shape[1], len(chain.initial_loc))
    parts = [_filter(part, (~part.isnan()).to(part), chain) for part in x.split(rows)]
    return Filtered(*(torch.cat(each) for each in zip(*(vars(p).values() for p in parts), strict=True)))


def smooth(found: Filtered, chain: LinearGaussian) -> Smoothed:
    """Go back over what the filter found."""
    back = _Back(found, chain)
    means = _affine(found.means[:, -1], back.gains, back.shifts, reverse=True)
    last = found.covariances[:, -1]
    steps = torch.cat([back.gains, back.spreads], -1).flip(1)
    before = _carried(last, steps, _then, _moved).flip(1)
    covariances = torch.cat([before, last[:, None]], 1)
    return Smoothed(
        torch.cat([means, found.means[:, -1:]], 1), covariances, covariances[:, 1:] @ back.gains.mT
    )


def sample_paths(found: Filtered, chain: LinearGaussian, num: int) -> Tensor:
    """Independent draws of z given x, (num, N, T, L), from torch's global generator."""
    back = _Back(found, chain)
    noise = torch.randn(num, *found.means.shape, dtype=found.means.dtype, device=found.means.device)
    factors = _cholesky(torch.cat([back.spreads, found.covariances[:, -1:]], 1))
    noise = _times(factors, noise)
    last = found.means[:, -1] + noise[:, :, -1]
    before = _affine(last, back.gains, back.shifts + noise[:, :, :-1], reverse=True)
    return torch.cat([before, last[:, :, None]], 2)


# -- private -----------------------------------------------------------------------------------


def _filter(x: Tensor, known: Tensor, chain: LinearGaussian) -> Filtered:
    dim, weights = len(chain.initial_loc), known / chain.noise_scale.square()
    loading, residuals = chain.loading, torch.where(known > 0, x - chain.offset, 0.0)
    squares = (loading[:, :, None] * loading[:, None, :]).flatten(1)
    information = (weights @ squares).view(*weights.shape[:2], dim, dim)
    predicted = _predicted_covariances(information, chain)
    root, factor = _updated(predicted, information)
    covariances = root.mT @ root
    # m_(t+1 | t) = A (I - P_t J_t) m_(t | t-1) + A P_t C' R^-1 x_t
    moves = (chain.transition @ (torch.eye(dim).to(x) - covariances @ information))[:, :-1]
    pulls = _times(chain.transition @ covariances, (weights * residuals) @ loading)[:, :-1]
    first = chain.initial_loc.expand(len(x), -1)
    onward = _affine(first, moves, pulls)
    predicted_means = torch.cat([first[:, None], onward], 1)
    surprise = residuals - predicted_means @ loading.T
    whitened = _times(root, (weights * surprise) @ loading)
    change = _times(root.mT, whitened)
    # -2 log N(x_t; C m, C P C' + R), with no differences of large numbers: what the update leaves of the
    # surprise, and how far it goes, in units of the prediction's error.
    left = (weights * (surprise - change @ loading.T).square()).sum((1, 2))
    gone = _times(factor.mT, whitened, _divided).square().sum((1, 2))
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum((1, 2))
    log_det = log_det + (known * (math.log(2 * math.pi) + 2 * chain.noise_scale.log())).sum((1, 2))
    log_prob = -0.5 * (left + gone + log_det)
    return Filtered(log_prob, predicted_means + change, covariances, predicted_means, predicted)


def _predicted_covariances(information: Tensor, chain: LinearGaussian) -> Tensor:
    """Of z_t given x_1..x_(t-1), (M, T, L, L), from the information J_t of each step."""
    size, num, dim, _ = information.shape
    first = chain.initial_covariance.expand(size, dim, dim)
    fixed = torch.cat([chain.transition, chain.transition_covariance], -1)
    steps = torch.cat([fixed.expand(size, num - 1, dim, 2 * dim), information[:, :-1]], -1)

    def product(left: Tensor, right: Tensor) -> Tensor:
        (move, noise, told), (onward, added, tells) = left.split(dim, -1), right.split(dim, -1)
        root, factor = _updated(noise, tells)
        heard = root @ tells
        kept, spread = torch.eye(dim).to(noise) - root.mT @ heard, onward @ root.mT
        # (J^-1 + noise)^-1 in Joseph's form: a plain difference loses digits where data are nearly exact.
        whitened = _divided(factor.mT, heard)
        tells = move.mT @ (kept.mT @ tells @ kept + whitened.mT @ whitened) @ move + told
        return torch.cat([onward @ kept @ move, spread @ spread.mT + added, tells], -1)

    def apply(covariance: Tensor, step: Tensor) -> Tensor:
        onward, added, tells = step.split(dim, -1)
        spread = onward @ _updated(covariance, tells)[0].mT
        return spread @ spread.mT + added

    return torch.cat([first[:, None], _carried(first, steps, product, apply)], 1)


def _updated(covariance: Tensor, information: Tensor) -> tuple[Tensor, Tensor]:
    """W with W'W = (P^-1 + J)^-1, and the factor of I + S'J S that it is S' divided by, for P = S S'."""
    scale = _cholesky(covariance)
    inner = scale.mT @ information @ scale
    factor = _cholesky(torch.eye(inner.shape[-1]).to(inner) + inner)
    return torch.linalg.solve_triangular(factor, scale.mT, upper=False), factor


class _Back:
    """z_t given z_(t+1) and the past is N(G_t z_(t+1) + s_t, D_t), for t < T.

    Attributes:
        gains: G, (M, T - 1, L, L).
        shifts: s, (N, T - 1, L).
        spreads: D, (M, T - 1, L, L).
    """

    def __init__(self, found: Filtered, chain: LinearGaussian) -> None:
        chain, now = chain.double(), found.covariances[:, :-1]
        factor = _cholesky(found.predicted_covariances[:, 1:])
        self.gains = torch.cholesky_solve(chain.transition @ now, factor).mT
        self.shifts = found.means[:, :-1] - _times(self.gains, found.predicted_means[:, 1:])
        left = torch.eye(now.shape[-1]).to(now) - self.gains @ chain.transition
        noise = self.gains @ chain.transition_tril
        self.spreads = left @ now @ left.mT + noise @ noise.mT


def _then(left: Tensor, right: Tensor) -> Tensor:
    """Moves [G | D] of covariances one after the other."""
    dim = left.shape[-2]
    return torch.cat([right[..., :dim] @ left[..., :dim], _moved(left[..., dim:], right)], -1)


def _moved(covariance: Tensor, step: Tensor) -> Tensor:
    dim = step.shape[-2]
    gain = step[..., :dim]
    return gain @ covariance @ gain.mT + step[..., dim:]


def _affine(start: Tensor, matrices: Tensor, shifts: Tensor, *, reverse: bool = False) -> Tensor:
    """States y_s = F_s y_(s-1) + g_s from ``start`` (..., N, L), with F (M, S, L, L): (..., N, S, L), as g.

    With ``reverse`` from the last step to the first.
    """
    dim = start.shape[-1]
    columns = _columns(torch.cat([start[..., None, :], shifts.flip(-2) if reverse else shifts], -2), matrices)
    steps = torch.cat([matrices.flip(1) if reverse else matrices, columns[:, 1:]], -1)

    def apply(state: Tensor, step: Tensor) -> Tensor:
        return step[..., :dim] @ state + step[..., dim:]

    def product(left: Tensor, right: Tensor) -> Tensor:
        return torch.cat([right[..., :dim] @ left[..., :dim], apply(left[..., dim:], right)], -1)

    found = _from_columns(_carried(columns[:, 0], steps, product, apply), shifts.shape)
    return found.flip(-2) if reverse else found


def _times(
    matrices: Tensor, vectors: Tensor, product: Callable[[Tensor, Tensor], Tensor] = torch.matmul
) -> Tensor:
    """Products of (M, T, L, L) and (..., N, T, L)."""
    return _from_columns(product(matrices, _columns(vectors, matrices)), vectors.shape)


def _divided(factor: Tensor, vectors: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(factor, vectors, upper=True)


def _columns(vectors: Tensor, matrices: Tensor) -> Tensor:
    """Vectors (..., N, T, L) side by side if they have a matrix (M, ...) in common: (M, T, L, columns)."""
    found = vectors[None].flatten(0, -4)
    return found.permute(2, 3, 0, 1).flatten(2)[None] if len(matrices) == 1 else found.permute(1, 2, 3, 0)


def _from_columns(columns: Tensor, shape: torch.Size) -> Tensor:
    return columns.permute(3, 0, 1, 2).reshape(shape)


def _carried(
    start: Tensor,
    steps: Tensor,
    product: Callable[[Tensor, Tensor], Tensor],
    apply: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """:func:`~ppgen.ops.chain_scans.carried`, or one step after another where each is work enough."""
    busy = len(steps) * steps.shape[-2] ** 3
    if busy < (_BUSY_GPU if steps.is_cuda else _BUSY_CPU) or not steps.shape[1]:
        return carried(start, steps, product, apply)
    states = [start[:, None]]
    for step in steps.split(1, 1):
        states.append(apply(states[-1], step))
    return torch.cat(states[1:], 1)


def _cholesky(covariance: Tensor) -> Tensor:
    """Lower factors; NaN where there is none (an exception would be a wait for the GPU)."""
    factor, info = torch.linalg.cholesky_ex(covariance)
    return factor.where((info == 0)[..., None, None], torch.nan)


def _rows(steps: int, dim: int) -> int:
    return max(1, _MAX_COVARIANCES // (steps * dim**2))
