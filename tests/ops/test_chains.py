"""Chain recursions against the sum over all paths, compiled and in torch."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ppgen.errors import DataError, ShapeError
from ppgen.ops import chains
from ppgen.testing.statistics import assert_close_to

SIZE, STEPS, STATES = 4, 5, 3
LENGTHS = torch.tensor([5, 1, 3, 4])


@pytest.fixture(params=["compiled", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(chains, "_library", lambda dtype: None)
    return str(request.param)


def potentials(*, changing: bool = False, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    unary = 2 * torch.randn(SIZE, STEPS, STATES, generator=generator, dtype=torch.float64)
    shape = (SIZE, STEPS - 1, STATES, STATES) if changing else (STATES, STATES)
    return unary, 2 * torch.randn(shape, generator=generator, dtype=torch.float64)


def all_paths(unary: Tensor, pairwise: Tensor, length: int, row: int) -> tuple[Tensor, Tensor]:
    """Every path of one sequence, (K^T, T), and its log weight."""
    paths = torch.tensor(list(itertools.product(range(STATES), repeat=length)))
    weight = unary[row, torch.arange(length), paths].sum(-1)
    for t in range(1, length):
        table = pairwise if pairwise.ndim == 2 else pairwise[row, t - 1]
        weight = weight + table[paths[:, t - 1], paths[:, t]]
    return paths, weight


@pytest.mark.parametrize("changing", [False, True])
def test_log_partition_and_marginals_sum_over_all_paths(way: str, changing: bool) -> None:
    unary, pairwise = potentials(changing=changing)
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
            edges[(row, t - 1, i, j) if changing else (i, j)] += mass
    torch.testing.assert_close(found.edges, edges)


@pytest.mark.parametrize("changing", [False, True])
def test_gradients(way: str, changing: bool) -> None:
    unary, pairwise = (p.requires_grad_() for p in potentials(changing=changing))
    weights = torch.arange(1.0, SIZE + 1, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda u, v: chains.log_partition(u, v, LENGTHS) * weights, (unary, pairwise)
    )


def test_the_scan_over_time_agrees() -> None:
    unary, pairwise = potentials()
    found = chains._scan(unary, pairwise, LENGTHS)
    torch.testing.assert_close(found, chains.log_partition(unary, pairwise, LENGTHS))


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
    with pytest.raises(DataError, match="sequence 1 has no possible path"):
        chains.sample_paths(unary, pairwise)


def test_linear_potentials_and_weights(way: str) -> None:
    unary, pairwise = potentials()
    weights = torch.tensor([1.0, 0.0, 2.5, 1.0], dtype=torch.float64)
    found = chains.forward_backward(unary.exp(), pairwise.exp(), LENGTHS, weights)
    expected = chains.expectations(unary, pairwise, LENGTHS, weights)
    if way == "torch":
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
    if way == "torch":
        assert quick is None
    else:
        assert quick is not None
        torch.testing.assert_close(quick, chains.log_partition(unary, pairwise, LENGTHS))


@pytest.mark.parametrize("num_states", [1, 8, 9, 24, 70])
def test_any_number_of_states(num_states: int) -> None:
    generator = torch.Generator().manual_seed(num_states)
    unary = torch.randn(3, 6, num_states, generator=generator, dtype=torch.float64).requires_grad_()
    pairwise = torch.randn(num_states, num_states, generator=generator, dtype=torch.float64).requires_grad_()
    lengths = torch.tensor([6, 2, 4])
    compiled = chains.log_partition(unary, pairwise, lengths)
    plain = chains._log_forward(unary, pairwise, lengths)[0]
    torch.testing.assert_close(compiled, plain)
    for mine, theirs in zip(
        torch.autograd.grad(compiled.sum(), (unary, pairwise)),
        torch.autograd.grad(plain.sum(), (unary, pairwise)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("changing", [False, True])
def test_viterbi_finds_the_heaviest_path(changing: bool) -> None:
    unary, pairwise = potentials(changing=changing)
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


@pytest.mark.parametrize("changing", [False, True])
def test_paths_are_drawn_by_their_weights(changing: bool) -> None:
    unary, pairwise = (0.3 * p for p in potentials(changing=changing))
    draw = torch.Generator().manual_seed(1)
    paths = chains.sample_paths(unary, pairwise, LENGTHS, num=40_000, generator=draw)
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
