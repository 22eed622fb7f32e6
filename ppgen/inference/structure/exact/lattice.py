r"""Sums over the lattice of subsets: zeta and Möbius transforms, and recursions by the size of a set.

A function on subsets of m elements is a tensor whose last dimension has :math:`2^m` entries, the entry
of a set being the number whose bits are its members. A transform treats one bit at a time (Yates 1937):
:math:`m 2^{m-1}` operations for all sets at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ppgen.inference.structure.families import members

# Elements of a temporary: within the second-level cache of a core, or enough to fill an accelerator.
_CHUNK = {"cpu": 2**16, "cuda": 2**23}
# Bits of the low part of an index that is transposed, so that no inner loop is shorter than this power.
_LOW_BITS = 5
# Nats; e^600 times the number of sets is far from overflow, and e^-700 next to nothing beside e^-600.
_HALF_RANGE = 600.0
_LOG_NOTHING = -700.0

Step = Callable[[Tensor, Tensor], None]


def chunk_size(device: torch.device) -> int:
    """Elements that temporaries should have on a device."""
    return _CHUNK.get(device.type, _CHUNK["cpu"])


# --------------------------------------------------------------------------------------
# Transforms, in place
# --------------------------------------------------------------------------------------


def _log_into_supersets(low: Tensor, high: Tensor) -> None:
    torch.logaddexp(high, low, out=high)


def _log_into_subsets(low: Tensor, high: Tensor) -> None:
    torch.logaddexp(low, high, out=low)


def _into_supersets(low: Tensor, high: Tensor) -> None:
    high += low


def _into_subsets(low: Tensor, high: Tensor) -> None:
    low += high


def _max_into_supersets(low: Tensor, high: Tensor) -> None:
    torch.maximum(high, low, out=high)


def _each_bit(row: Tensor, step: Step) -> None:
    """``step(without, with)`` for each bit of a contiguous row of shape (2^m,)."""
    num_bits = row.numel().bit_length() - 1
    short = min(_LOW_BITS, num_bits)
    for bit in range(short, num_bits):
        pairs = row.view(-1, 2, 1 << bit)
        step(pairs[:, 0], pairs[:, 1])
    if not short:
        return
    # The lowest bits come last in memory, where loops over one, two, four entries would be slow.
    columns = row.view(-1, 1 << short).T.contiguous()
    for bit in range(short):
        pairs = columns.view(-1, 2, 1 << bit, columns.shape[1])
        step(pairs[:, 0], pairs[:, 1])
    row.view(-1, 1 << short).copy_(columns.T)


def _log_sums(row: Tensor, least: Tensor, log_step: Step, step: Step) -> None:
    """Sums of exponentials along the bits; ``least``, an entry of the row, is a term of all of them.

    Where the largest entry is within e^1200 of that one, all sums fit into the range of a double, terms that
    do not are nothing beside them, and plain additions do, several times as fast.
    """
    top = float(row.max())
    span = top - float(least)
    if not span <= 2 * _HALF_RANGE:  # or not a number
        _each_bit(row, log_step)
        return
    shift = top - max(0.0, span - _HALF_RANGE)
    row.sub_(shift).clamp_min_(_LOG_NOTHING).exp_()
    _each_bit(row, step)
    row.log_().add_(shift)


def subset_logsumexp_(rows: Tensor) -> Tensor:
    r""":math:`f(S) \leftarrow \log \sum_{P \subseteq S} \exp f(P)` for rows (K, 2^m), in place."""
    for row in rows:
        _log_sums(row, row[0], _log_into_supersets, _into_supersets)
    return rows


def subset_max_(rows: Tensor) -> Tensor:
    r""":math:`f(S) \leftarrow \max_{P \subseteq S} f(P)` for each row of a tensor (K, 2^m), in place."""
    for row in rows:
        _each_bit(row, _max_into_supersets)
    return rows


def superset_logsumexp_(row: Tensor) -> Tensor:
    r""":math:`f(P) \leftarrow \log \sum_{S \supseteq P} \exp f(S)` for a tensor (2^m,), in place."""
    _log_sums(row, row[-1], _log_into_subsets, _into_subsets)
    return row


def superset_moebius_(values: Tensor) -> Tensor:
    r""":math:`f(T) \leftarrow \sum_{U \supseteq T} (-1)^{|U \setminus T|} f(U)`, shape (2^m, K), in place.

    If f(U) is the probability that a random set contains U, the result is the probability that it is T.
    """
    num_sets, num_columns = values.shape
    for bit in range(num_sets.bit_length() - 1):
        pairs = values.view(-1, 2, 1 << bit, num_columns)
        pairs[:, 0] -= pairs[:, 1]
    return values


def sums_by_member(values: Tensor) -> Tensor:
    r""":math:`\sum_{S \ni j} f(S)` for each element j of m.

    Args:
        values: shape (2^m, ...).

    Returns:
        Shape (m, ...). Halving as it goes, it costs :math:`2^{m+1}` additions in all.
    """
    num_bits = values.shape[0].bit_length() - 1
    sums = values.new_empty(num_bits, *values.shape[1:])
    for bit in reversed(range(num_bits)):
        without, within = values[: 1 << bit], values[1 << bit :]
        torch.sum(within, 0, out=sums[bit])
        values = without + within
    return sums


def sums_over_subsets(terms: Tensor) -> Tensor:
    r""":math:`\sum_{j \in S} t_j` for every set S of m elements; ``terms`` (m, ...) gives (2^m, ...)."""
    sums = terms.new_zeros(1 << terms.shape[0], *terms.shape[1:])
    for bit, term in enumerate(terms):
        torch.add(sums[: 1 << bit], term, out=sums[1 << bit : 2 << bit])
    return sums


def signs(num_bits: int, like: Tensor) -> Tensor:
    r""":math:`(-1)^{|T| + 1}` for every set T of ``num_bits`` elements, shape (2^m,)."""
    sign = like.new_full((1 << num_bits,), -1.0)
    for bit in range(num_bits):
        torch.neg(sign[: 1 << bit], out=sign[1 << bit : 2 << bit])
    return sign


# --------------------------------------------------------------------------------------
# By size
# --------------------------------------------------------------------------------------


class Layers:
    """The sets of n nodes by their size.

    Attributes:
        num_nodes: n.
        sizes: number of members of every set, shape (2^n,), uint8.
    """

    def __init__(self, num_nodes: int, device: torch.device) -> None:
        self.num_nodes = num_nodes
        self.sizes = torch.zeros(1 << num_nodes, dtype=torch.uint8, device=device)
        for bit in range(num_nodes):
            torch.add(self.sizes[: 1 << bit], 1, out=self.sizes[1 << bit : 2 << bit])

    def chunks(self, size: int, rows: int) -> Iterator[Tensor]:
        """Sets of ``size`` members by their bits, int64, at most ``rows`` at a time."""
        yield from (self.sizes == size).nonzero().squeeze(1).split(max(1, rows))

    def inside(self, sets: Tensor, size: int) -> Tensor:
        """Members of sets of ``size`` members, in increasing order: shape (size, rows)."""
        return members(sets, self.num_nodes).nonzero()[:, 1].view(len(sets), size).T.contiguous()

    def outside(self, sets: Tensor, size: int) -> Tensor:
        """Nodes that are not in sets of ``size`` members, in increasing order: shape (n - size, rows)."""
        absent = ~members(sets, self.num_nodes)
        return absent.nonzero()[:, 1].view(len(sets), self.num_nodes - size).T.contiguous()


def family_index(nodes: Tensor, sets: Tensor, num_nodes: int) -> Tensor:
    """Places in a flattened table (n, 2^(n-1)) of nodes and sets without them (bits), broadcast together."""
    low = (1 << nodes) - 1
    return (nodes << (num_nodes - 1)) + ((sets & low) | ((sets >> 1) & ~low))


def family_values(table: Tensor, nodes: Tensor, sets: Tensor) -> Tensor:
    """Entries of a table (n, 2^(n-1)) for nodes and sets without them (bits), broadcast together."""
    places = family_index(nodes, sets, len(table))
    return table.view(-1).index_select(0, places.flatten()).view(places.shape)


def forward(table: Tensor, combine: Callable[[Tensor], Tensor]) -> Tensor:
    r"""L(S), the combination over v in S of :math:`t_v(S \setminus v) + L(S \setminus v)`; 0 at no nodes.

    Args:
        table: shape (n, 2^(n-1)), as in :class:`~ppgen.inference.structure.families.DenseScores`.
        combine: over the first dimension: logsumexp, or the maximum.

    Returns:
        Shape (2^n,).
    """
    num_nodes = len(table)
    layers = Layers(num_nodes, table.device)
    result = table.new_zeros(1 << num_nodes)
    for size in range(1, num_nodes + 1):
        for sets in layers.chunks(size, chunk_size(table.device) // size):
            last = layers.inside(sets, size)
            rest = sets ^ (1 << last)
            result[sets] = combine(family_values(table, last, rest).add_(result.take(rest)))
    return result


def backward(table: Tensor, combine: Callable[[Tensor], Tensor]) -> Tensor:
    r"""R(S), the combination over v outside S of :math:`t_v(S) + R(S \cup v)`; 0 at the set of all nodes.

    Arguments and shapes as for :func:`forward`.
    """
    num_nodes = len(table)
    layers = Layers(num_nodes, table.device)
    result = table.new_zeros(1 << num_nodes)
    for size in reversed(range(num_nodes)):
        for sets in layers.chunks(size, chunk_size(table.device) // (num_nodes - size)):
            following = layers.outside(sets, size)
            after = result.take(sets | (1 << following))
            result[sets] = combine(family_values(table, following, sets).add_(after))
    return result
