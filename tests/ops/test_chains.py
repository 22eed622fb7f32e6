"""Chain recursions against the sum over all paths: compiled, in a loop over time, and by scans."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ppgen.errors import DataError, ShapeError
from ppgen.ops import chain_scans, chains, compiled_chains
from ppgen.testing.statistics import assert_close_to

SIZE, STEPS, STATES = 4, 5, 3
LENGTHS = torch.tensor([5, 1, 3, 4])


#: one matrix for all, one a sequence, one a step
KINDS = {"shared": (), "each": (SIZE, 1), "changing": (SIZE, STEPS - 1)}


def go(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take one of the three ways: compiled code, a loop over time, scans as on CUDA."""
    if way != "compiled":
        monkeypatch.setattr(compiled_chains, "library", lambda dtype: None)
    monkeypatch.setattr(chain_scans, "in_parallel", lambda unary: way == "scans")


@pytest.fixture(params=["compiled", "loop", "scans"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    go(request.param, monkeypatch)
    return str(request.param)


def potentials(*, kind: str = "shared", seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    unary = 2 * torch.randn(SIZE, STEPS, STATES, generator=generator, dtype=torch.float64)
    shape = (*KINDS[kind], STATES, STATES)
    return unary, 2 * torch.randn(shape, generator=generator, dtype=torch.float64)


def all_paths(unary: Tensor, pairwise: Tensor, length: int, row: int) -> tuple[Tensor, Tensor]:
    """Every path of one sequence, (K^T, T), and its log weight."""
    paths = torch.tensor(list(itertools.product(range(STATES), repeat=length)))
    weight = unary[row, torch.arange(length), paths].sum(-1)
    for t in range(1, length):
        table = pairwise if pairwise.ndim == 2 else pairwise[row].expand(STEPS - 1, -1, -1)[t - 1]
        weight = weight + table[paths[:, t - 1], paths[:, t]]
    return paths, weight


@pytest.mark.parametrize("kind", KINDS)
def test_log_partition_and_marginals_sum_over_all_paths(way: str, kind: str) -> None:
    unary, pairwise = potentials(kind=kind)
    unary[2, 1, 0] = -torch.inf
    pairwise[..., 0, 1] = -torch.inf
    found = chains.expectations(unary, pairwise, LENGTHS)
    edges = torch.zeros_like(pairwise)
    for row, length in enumerate(LENGTHS.tolist()):
        paths, weight = all_paths(unary, pairwise, length, row)
        torch.testing.assert_close(found.log_z[row], weight.logsumexp(0))
        p = weight.softmax(0)
        for t, k in itertools.product(range(STEPS), range(STATES)):
            expected = p[paths[:, t] == k].sum() if t < length else torch.zeros(())
            torch.testing.assert_close(found.nodes[row, t, k], expected.double())
        for t, i, j in itertools.product(range(1, length), range(STATES), range(STATES)):
            mass = p[(paths[:, t - 1] == i) & (paths[:, t] == j)].sum()
            where = {"shared": (i, j), "each": (row, 0, i, j), "changing": (row, t - 1, i, j)}
            edges[where[kind]] += mass
    torch.testing.assert_close(found.edges, edges)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(way: str, kind: str) -> None:
    unary, pairwise = (p.requires_grad_() for p in potentials(kind=kind))
    weights = torch.arange(1.0, SIZE + 1, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda u, v: chains.log_partition(u, v, LENGTHS) * weights, (unary, pairwise)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_long_sequences_agree_on_all_ways(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths that are no power of two; in float32 all ways stay near the sums in float64."""
    steps, lengths = 203, torch.tensor([203, 64, 1, 130])
    generator = torch.Generator().manual_seed(7)
    unary = 3 * torch.randn(SIZE, steps, STATES, generator=generator, dtype=torch.float64)
    shape = {"shared": (), "each": (SIZE, 1), "changing": (SIZE, steps - 1)}[kind]
    pairwise = torch.randn(*shape, STATES, STATES, generator=generator, dtype=torch.float64)
    pairwise[..., 0, 2] = -torch.inf
    go("loop", monkeypatch)
    exact = chains.expectations(unary, pairwise, lengths)
    filtered, (path, weight) = (
        chains.filtered(unary, pairwise, lengths),
        chains.viterbi(unary, pairwise, lengths),
    )
    rtol, atol = (1e-5, 2e-5) if dtype == torch.float32 else (1e-9, 1e-9)
    for way in ("compiled", "loop", "scans"):
        with monkeypatch.context() as patch:
            go(way, patch)
            chain = unary.to(dtype), pairwise.to(dtype), lengths
            found = chains.expectations(*chain)
            assert found.log_z.dtype == dtype
            for name in ("log_z", "nodes", "edges"):
                torch.testing.assert_close(
                    getattr(found, name).double(),
                    getattr(exact, name),
                    msg=f"{way}: {name}",
                    rtol=rtol,
                    atol=atol,
                )
            torch.testing.assert_close(chains.filtered(*chain).double(), filtered, rtol=rtol, atol=atol)
            best, value = chains.viterbi(*chain)
            torch.testing.assert_close(value.double(), weight, rtol=1e-5, atol=0)
            if dtype == torch.float64:
                assert torch.equal(best, path), way


def test_of_equal_paths_all_ways_take_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole numbers from a few, so that most sequences have several heaviest paths, equal to the last bit."""
    generator = torch.Generator().manual_seed(3)
    unary = torch.randint(0, 2, (40, 11, STATES), generator=generator).double()
    pairwise = torch.randint(0, 2, (STATES, STATES), generator=generator).double()
    lengths = torch.randint(1, 12, (40,), generator=generator)
    found = []
    for way in ("compiled", "loop", "scans"):
        with monkeypatch.context() as patch:
            go(way, patch)
            found.append(chains.viterbi(unary, pairwise, lengths)[0])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    backwards = found[0].where(found[0] < 0, STATES - 1 - found[0])
    other = chains.viterbi(unary.flip(-1), pairwise.flip(0, 1), lengths)[0]
    assert not torch.equal(other, backwards)  # the states' order decides, so there are ties


def test_a_state_that_is_faint_for_a_while_still_counts(way: str) -> None:
    """Left to right: staying behind is 120 nats worse at one step, and right in the end.

    A scaled recursion in float32 forgets the first state there, and finds a likelihood that is wrong.
    """
    steps = 40
    unary = torch.zeros(2, steps, 2)
    unary[:, 0, 1] = -torch.inf
    unary[:, 5, 0] = torch.tensor([-120.0, 0.0])
    unary[:, 6:, 1] = -30.0
    pairwise = torch.tensor([[0.5, 0.5], [0.0, 1.0]]).log()
    exact = chains.expectations(unary.double(), pairwise.double())
    assert float(exact.log_z[0]) == pytest.approx(-120 - 39 * math.log(2), rel=1e-6)
    found = chains.expectations(unary, pairwise)
    torch.testing.assert_close(found.log_z.double(), exact.log_z)
    torch.testing.assert_close(found.nodes.double(), exact.nodes)
    torch.testing.assert_close(found.edges.double(), exact.edges)
    assert not bool(chains.viterbi(unary, pairwise)[0].any())
    u = unary.clone().requires_grad_()
    chains.log_partition(u, pairwise).sum().backward()
    assert u.grad is not None
    torch.testing.assert_close(u.grad.double(), exact.nodes)
    draw = torch.Generator().manual_seed(0)
    assert not bool(chains.sample_paths(unary, pairwise, num=50, generator=draw)[:, 0].any())
    every = torch.full((2,), steps)
    assert chains.forward_sum(unary.exp(), pairwise.exp(), every) is None
    assert chains.forward_backward(unary.exp(), pairwise.exp(), every) is None


def test_forbidden_states_are_no_reason_to_leave_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros of a chain from left to right do not count as lost."""
    unary, pairwise = potentials()
    pairwise = pairwise.masked_fill(torch.ones(STATES, STATES).tril(-1) > 0, -torch.inf)
    expected = chains.expectations(unary, pairwise, LENGTHS)
    monkeypatch.setattr(chain_scans, "messages", None)
    torch.testing.assert_close(vars(chains.expectations(unary, pairwise, LENGTHS)), vars(expected))
    assert chains.forward_backward(unary.exp(), pairwise.exp(), LENGTHS) is not None


def test_what_underflows_is_worked_out_in_logarithms(way: str) -> None:
    """The only possible path is a thousand nats below the best state of each step."""
    unary, pairwise = potentials()
    unary[0, :, 1:] += 1000
    pairwise = pairwise.fill_(-torch.inf).fill_diagonal_(0.0)
    unary[0, 0, 1:] = -torch.inf
    u, v = unary.clone().requires_grad_(), pairwise.clone().requires_grad_()
    log_z = chains.log_partition(u, v)
    torch.testing.assert_close(log_z[0], unary[0, :, 0].sum())
    log_z.sum().backward()
    assert u.grad is not None
    torch.testing.assert_close(u.grad[0, :, 0], torch.ones(STEPS, dtype=torch.float64))
    assert chains.forward_backward(unary.exp(), pairwise.exp(), torch.full((SIZE,), STEPS)) is None


def test_an_impossible_sequence(way: str) -> None:
    unary, pairwise = potentials()
    unary[1, 2] = -torch.inf
    found = chains.expectations(unary, pairwise)
    assert found.log_z[1] == -torch.inf
    assert not bool(found.nodes[1].any())
    torch.testing.assert_close(found.edges, chains.expectations(unary[[0, 2, 3]], pairwise).edges)
    with pytest.raises(DataError, match="sequence 1 has probability 0"):
        chains.sample_paths(unary, pairwise)


def test_linear_potentials_and_weights(way: str) -> None:
    unary, pairwise = potentials()
    weights = torch.tensor([1.0, 0.0, 2.5, 1.0], dtype=torch.float64)
    found = chains.forward_backward(unary.exp(), pairwise.exp(), LENGTHS, weights)
    expected = chains.expectations(unary, pairwise, LENGTHS, weights)
    if way != "compiled":
        assert found is None
        return
    assert found is not None
    torch.testing.assert_close(vars(found), vars(expected))


def test_mixed_types_are_promoted(way: str) -> None:
    unary, pairwise = potentials()
    found = chains.log_partition(unary, pairwise.float())
    torch.testing.assert_close(found, chains.log_partition(unary, pairwise.float().double()))
    assert chains.forward_backward(unary.exp(), pairwise.float().exp(), LENGTHS) is None


def test_vmap_and_tracers_see_the_operations() -> None:
    unary, pairwise = potentials()
    stacked = torch.stack([pairwise, 2 * pairwise, -pairwise])
    found = torch.func.vmap(lambda v: chains.log_partition(unary, v, LENGTHS))(stacked)
    for row, v in zip(found, stacked, strict=True):
        torch.testing.assert_close(row, chains.log_partition(unary, v, LENGTHS))
    traced = make_fx(lambda v: chains.log_partition(unary, v, LENGTHS))(pairwise)
    torch.testing.assert_close(traced(2 * pairwise), found[1])


def test_filtering_and_the_forward_sum(way: str) -> None:
    unary, pairwise = potentials()
    filtered = chains.filtered(unary, pairwise, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        for t in range(length):
            paths, weight = all_paths(unary, pairwise, t + 1, row)
            mass = torch.stack([weight.softmax(0)[paths[:, -1] == k].sum() for k in range(STATES)])
            torch.testing.assert_close(filtered[row, t], mass)
        assert not bool(filtered[row, length:].any())
    quick = chains.forward_sum(unary.exp(), pairwise.exp(), LENGTHS)
    if way != "compiled":
        assert quick is None
    else:
        assert quick is not None
        torch.testing.assert_close(quick, chains.log_partition(unary, pairwise, LENGTHS))


@pytest.mark.parametrize("num_states", [1, 8, 9, 24, 70])
def test_any_number_of_states(num_states: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(num_states)
    unary = torch.randn(3, 6, num_states, generator=generator, dtype=torch.float64).requires_grad_()
    pairwise = torch.randn(num_states, num_states, generator=generator, dtype=torch.float64).requires_grad_()
    lengths = torch.tensor([6, 2, 4])
    compiled = chains.log_partition(unary, pairwise, lengths)
    go("loop", monkeypatch)
    plain = chains.log_partition(unary, pairwise, lengths)
    torch.testing.assert_close(compiled, plain)
    for mine, theirs in zip(
        torch.autograd.grad(compiled.sum(), (unary, pairwise)),
        torch.autograd.grad(plain.sum(), (unary, pairwise)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_viterbi_finds_the_heaviest_path(way: str, kind: str) -> None:
    unary, pairwise = potentials(kind=kind)
    path, weight = chains.viterbi(unary, pairwise, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        paths, weights = all_paths(unary, pairwise, length, row)
        torch.testing.assert_close(weight[row], weights.max())
        assert path[row].tolist() == paths[weights.argmax()].tolist() + [-1] * (STEPS - length)


def _assert_drawn_from(unary: Tensor, pairwise: Tensor, paths: Tensor) -> None:
    for row, length in enumerate(LENGTHS.tolist()):
        every, weight = all_paths(unary, pairwise, length, row)
        p = weight.softmax(0)
        base = STATES ** torch.arange(length - 1, -1, -1)
        assert bool((paths[:, row, length:] == -1).all())
        counts = torch.bincount((paths[:, row, :length] * base).sum(-1), minlength=len(every))
        seen = p > 1e-3  # where the normal approximation holds
        error = (p * (1 - p) / len(paths)).sqrt()
        assert_close_to((counts / len(paths))[seen], p[seen], error[seen], f"paths of sequence {row}")


@pytest.mark.parametrize("kind", KINDS)
def test_paths_are_drawn_by_their_weights(way: str, kind: str) -> None:
    unary, pairwise = (0.3 * p for p in potentials(kind=kind))
    draw = torch.Generator().manual_seed(1)
    paths = chains.sample_paths(unary, pairwise, LENGTHS, num=10_000, generator=draw)
    _assert_drawn_from(unary, pairwise, paths)


def test_paths_from_marginals_alone_are_rejected() -> None:
    """The twin: states drawn each from its own marginal."""
    unary, pairwise = (0.3 * p for p in potentials())
    nodes = chains.expectations(unary, pairwise, LENGTHS).nodes
    live = torch.arange(STEPS) < LENGTHS[:, None]
    draws = torch.distributions.Categorical(nodes.where(live[..., None], 1.0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        paths = draws.sample((40_000,)).where(live, -1)
    with pytest.raises(AssertionError, match="paths of sequence"):
        _assert_drawn_from(unary, pairwise, paths)


def test_bad_input() -> None:
    unary, pairwise = potentials()
    with pytest.raises(ShapeError, match=r"unary: expected shape \(B, T, K\)"):
        chains.log_partition(unary[0], pairwise)
    with pytest.raises(ShapeError, match="pairwise: expected shape"):
        chains.viterbi(unary, pairwise[:2])
    with pytest.raises(ShapeError, match="lengths: expected one number a sequence"):
        chains.log_partition(unary, pairwise, LENGTHS[:2])
    with pytest.raises(DataError, match=r"lengths: .* from 1 to 5, got a range of 0\.\.6"):
        chains.log_partition(unary, pairwise, torch.tensor([0, 6, 1, 1]))
