"""All steps at once against one step after another, in float64, and in cases that are hard on rounding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ppgen.ops import kalman
from ppgen.ops.kalman import Filtered, LinearGaussian, Smoothed, kalman_filter, sample_paths, smooth
from ppgen.ops.random import forked_rng

Found = tuple[Filtered, Smoothed]


def chain_of(dim: int = 3, observed: int = 2, *, seed: int = 0, decay: float = 0.97) -> LinearGaussian:
    """Parameters at random: a rotation that decays, with noise of full covariance."""
    with forked_rng(seed):
        matrix = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64)).Q
        return LinearGaussian(
            torch.randn(dim, dtype=torch.float64),
            torch.randn(dim, dim, dtype=torch.float64).tril(-1) + torch.eye(dim),
            decay * matrix,
            0.3 * torch.randn(dim, dim, dtype=torch.float64).tril(-1) + 0.5 * torch.eye(dim),
            torch.randn(observed, dim, dtype=torch.float64),
            torch.randn(observed, dtype=torch.float64),
            torch.rand(observed, dtype=torch.float64) + 0.5,
        )


def draws(chain: LinearGaussian, size: int, steps: int, *, holes: bool = False, seed: int = 1) -> Tensor:
    with forked_rng(seed):
        state = chain.initial_loc + torch.randn(size, len(chain.initial_loc)).double() @ chain.initial_tril.T
        found = []
        for _ in range(steps):
            mean = state @ chain.loading.T + chain.offset
            found.append(mean + chain.noise_scale * torch.randn_like(mean))
            state = state @ chain.transition.T + torch.randn_like(state) @ chain.transition_tril.T
        x = torch.stack(found, 1)
        return x.masked_fill(torch.rand_like(x) < 0.3, torch.nan) if holes else x


def one_by_one(x: Tensor, chain: LinearGaussian) -> Found:
    """The textbook's recursions, each sequence and step on its own, in Joseph's form."""
    a, q, noise = chain.transition, chain.transition_covariance, chain.noise_scale.square()
    eye, rows = torch.eye(len(a)).to(a), []
    for row in x:
        mean, covariance = chain.initial_loc, chain.initial_covariance
        log_prob = mean.new_zeros(())
        m, p, pm, pp = [], [], [], []
        for t, value in enumerate(row):
            if t:
                mean, covariance = a @ mean, a @ covariance @ a.T + q
            pm.append(mean)
            pp.append(covariance)
            known = ~value.isnan()
            if known.any():
                c, r = chain.loading[known], torch.diag(noise[known])
                inner = c @ covariance @ c.T + r
                error = value[known] - c @ mean - chain.offset[known]
                gain = torch.linalg.solve(inner, c @ covariance).T
                quadratic = error @ torch.linalg.solve(inner, error)
                log_prob = log_prob - 0.5 * (torch.logdet(2 * math.pi * inner) + quadratic)
                mean = mean + gain @ error
                left = eye - gain @ c
                covariance = left @ covariance @ left.T + gain @ r @ gain.T
            m.append(mean)
            p.append(covariance)
        sm, sp, lagged = [m[-1]], [p[-1]], []
        for t in range(len(row) - 2, -1, -1):
            gain = torch.linalg.solve(pp[t + 1], a @ p[t]).T
            lagged.append(sp[-1] @ gain.T)
            left = eye - gain @ a
            sm.append(m[t] + gain @ (sm[-1] - pm[t + 1]))
            sp.append(gain @ sp[-1] @ gain.T + left @ p[t] @ left.T + gain @ q @ gain.T)
        none = mean.new_zeros(0, *eye.shape)
        back = torch.stack(lagged[::-1]) if lagged else none
        parts = (log_prob, *(torch.stack(s) for s in (m, p, pm, pp, sm[::-1], sp[::-1])), back)
        rows.append(parts)
    found = [torch.stack(each) for each in zip(*rows, strict=True)]
    return Filtered(*found[:5]), Smoothed(*found[5:])


def assert_same(found: Found, expected: Found, tolerance: float = 1e-9) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        for name, value in vars(theirs).items():
            assert_near(getattr(ours, name).expand(value.shape), value, name, tolerance)


def assert_near(found: Tensor, expected: Tensor, name: str, tolerance: float) -> None:
    def named(text: str) -> str:
        return f"{name}: {text}"

    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, msg=named)


def both(x: Tensor, chain: LinearGaussian) -> Found:
    found = kalman_filter(x, chain)
    return found, smooth(found, chain)


@pytest.fixture(params=["products", "loop"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both orders of work, whatever the sizes."""
    monkeypatch.setattr(kalman, "_BUSY_CPU", 2**62 if request.param == "products" else 0)
    return str(request.param)


@pytest.mark.parametrize("holes", [False, True], ids=["complete", "missing"])
@pytest.mark.parametrize(("dim", "observed", "steps"), [(1, 1, 1), (3, 2, 2), (3, 2, 23), (2, 5, 8)])
def test_they_are_the_recursions(way: str, dim: int, observed: int, steps: int, holes: bool) -> None:
    chain = chain_of(dim, observed)
    x = draws(chain, 3, steps, holes=holes)
    assert_same(both(x, chain), one_by_one(x, chain))


def test_sequences_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = chain_of()
    x = draws(chain, 7, 9, holes=True)
    expected = both(x, chain)
    monkeypatch.setattr(kalman, "_MAX_COVARIANCES", 9 * 9 * 2)
    assert_same(both(x, chain), expected)


@pytest.mark.parametrize("holes", [False, True], ids=["complete", "missing"])
def test_gradients_are_those_of_the_recursions(way: str, holes: bool) -> None:
    chain, names = chain_of(), list(LinearGaussian.__dataclass_fields__)
    x = draws(chain, 2, 11, holes=holes).requires_grad_()
    leaves = [getattr(chain, name).clone().requires_grad_() for name in names]
    free = LinearGaussian(*leaves)
    ours = torch.autograd.grad(kalman_filter(x, free).log_prob.sum(), [x, *leaves])
    theirs = torch.autograd.grad(one_by_one(x, free)[0].log_prob.sum(), [x, *leaves])
    for name, a, b in zip(["x", *names], ours, theirs, strict=True):
        assert_near(a.nan_to_num(), b.nan_to_num(), name, 1e-8)


def test_second_derivatives_too() -> None:
    chain = chain_of(2, 1)
    x = draws(chain, 1, 3)

    def log_prob(matrix: Tensor, scale: Tensor) -> Tensor:
        return kalman_filter(x, replace(chain, transition=matrix, noise_scale=scale)).log_prob

    leaves = tuple(v.clone().requires_grad_() for v in (chain.transition, chain.noise_scale))
    with forked_rng(0):
        assert torch.autograd.gradgradcheck(log_prob, leaves)


def test_paths_follow_the_textbooks_recursion(way: str) -> None:
    chain = chain_of()
    x = draws(chain, 2, 12, holes=True)
    found = kalman_filter(x, chain)
    with forked_rng(5):
        paths = sample_paths(found, chain, 3)
    with forked_rng(5):
        noise = torch.randn(3, 2, 12, 3, dtype=torch.float64)
    a, q = chain.transition, chain.transition_covariance
    for r in range(3):
        for n in range(2):
            p, pp = found.covariances[n], found.predicted_covariances[n]
            state = found.means[n, -1] + torch.linalg.cholesky(p[-1]) @ noise[r, n, -1]
            torch.testing.assert_close(paths[r, n, -1], state)
            for t in range(10, -1, -1):
                gain = torch.linalg.solve(pp[t + 1], a @ p[t]).T
                mean = found.means[n, t] + gain @ (state - found.predicted_means[n, t + 1])
                left = torch.eye(3).double() - gain @ a
                spread = left @ p[t] @ left.T + gain @ q @ gain.T
                state = mean + torch.linalg.cholesky((spread + spread.T) / 2) @ noise[r, n, t]
                torch.testing.assert_close(paths[r, n, t], state)


@pytest.mark.parametrize("holes", [False, True], ids=["complete", "missing"])
def test_long_sequences_in_float32(holes: bool) -> None:
    chain = chain_of(4, 2, decay=0.999)
    rough = LinearGaussian(*(v.float() for v in vars(chain).values()))
    x = draws(chain, 1, 2000, holes=holes).float()
    # The reference takes the same numbers; what is left is the rounding of the recursion.
    assert_same(both(x, rough), one_by_one(x.double(), rough.double()))


def hard_cases() -> Iterator[Any]:
    chain = chain_of()
    yield "nearly exact data", replace(chain, noise_scale=torch.full((2,), 1e-4).double()), 1e-6
    wide = chain_of(2, 6)
    yield "more coordinates than states", replace(wide, noise_scale=1e-5 * wide.noise_scale), 1e-6
    still = torch.diag(torch.tensor([1.0, 1e-7, 1e-7]).double())
    yield "states that hardly move", replace(chain, transition_tril=still), 1e-7
    yield "known where it begins", replace(chain, initial_tril=1e-7 * chain.initial_tril), 1e-8
    lone = torch.diag(torch.tensor([0.9, 1.0, 0.5]).double())
    unseen = chain.loading * torch.tensor([1.0, 0.0, 1.0])
    yield "a random walk that is not seen", replace(chain, transition=lone, loading=unseen), 1e-9
    yield "growth", replace(chain, transition=1.08 * chain.transition), 1e-8
    yield (
        "singular dynamics",
        replace(chain, transition=chain.transition[:, :1] * torch.ones(1, 3) * 0.5),
        1e-9,
    )


@pytest.mark.parametrize(("name", "chain", "tolerance"), [pytest.param(*c, id=c[0]) for c in hard_cases()])
@pytest.mark.parametrize("holes", [False, True], ids=["complete", "missing"])
def test_hard_cases(name: str, chain: LinearGaussian, tolerance: float, holes: bool) -> None:
    x = draws(chain, 2, 150, holes=holes)
    assert_same(both(x, chain), one_by_one(x, chain), tolerance)


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def test_operations_grow_with_the_logarithm_of_the_steps() -> None:
    chain, calls = chain_of(), []
    for steps in (16, 256):
        x = draws(chain, 1, steps)
        with forked_rng(0), _Count() as counter:
            found, _ = both(x, chain)
            sample_paths(found, chain, 1)
        calls.append(counter.calls)
    assert calls[1] < 2.1 * calls[0]  # 8 rounds for 4


def test_what_has_no_factor_is_nan() -> None:
    chain = chain_of()
    x = draws(chain, 2, 4)
    flat = replace(chain, transition_tril=torch.zeros(3, 3).double(), transition=chain.transition * 0)
    assert bool(kalman_filter(x, flat).log_prob.isnan().all())
