"""Chunked distances against double loops and scipy."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial.distance import cdist

from ppgen.errors import ConfigError, ShapeError
from ppgen.ops.distances import distance_chunks, neighbour_distances


def _points(num: int, dims: int, seed: int) -> torch.Tensor:
    return torch.randn(num, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("num", "other"), [(13, 7), (700, 400)])
def test_chunks_are_the_distance_matrix(num: int, other: int) -> None:
    x, y = _points(num, 3, 0), _points(other, 3, 1)
    parts = list(distance_chunks(x, y))
    assert (len(parts) > 1) == (num == 700)
    assert [i for rows, _ in parts for i in range(rows.start, rows.stop)] == list(range(num))
    expected = torch.from_numpy(cdist(x.numpy(), y.numpy()))
    assert torch.allclose(torch.cat([part for _, part in parts]), expected, rtol=1e-12, atol=0)


def test_equal_points_far_from_the_origin_are_at_distance_zero() -> None:
    x = _points(50, 8, 2) + 1e6
    ((_, distances),) = distance_chunks(x, x.clone())
    assert torch.equal(distances.diagonal(), torch.zeros(50, dtype=torch.float64))


@pytest.mark.parametrize("k", [1, 3, 9])
def test_neighbours_by_double_loop(k: int) -> None:
    x = _points(10, 2, 3)
    expected = [
        sorted(float((a - b).norm()) for j, b in enumerate(x) if j != i)[k - 1] for i, a in enumerate(x)
    ]
    found = neighbour_distances(x, k)
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12)


def test_a_point_with_copies_has_them_as_neighbours() -> None:
    x = torch.tensor([[0.0], [0.0], [5.0]])
    assert neighbour_distances(x, 1).tolist() == [0.0, 0.0, 5.0]
    assert neighbour_distances(x, 2).tolist() == [5.0, 5.0, 5.0]


@pytest.mark.parametrize("k", [0, 4])
def test_refuses_a_neighbour_that_does_not_exist(k: int) -> None:
    with pytest.raises(ConfigError, match=rf"4 points have neighbours 1 to 3, got k={k}"):
        neighbour_distances(torch.zeros(4, 2), k)


def test_refuses_other_widths() -> None:
    with pytest.raises(ShapeError, match=r"\(4, 2\) and \(4, 3\)"):
        list(distance_chunks(torch.zeros(4, 2), torch.zeros(4, 3)))
