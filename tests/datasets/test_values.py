"""Values: what a coordinate can be, and the way to and from densities."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppgen.datasets.values import BINARY, REAL, Values, bridge, grid
from ppgen.errors import ConfigError, DataError
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_mean, assert_same_distribution

LEVELS = st.integers(2, 1024)
DTYPES = st.sampled_from([torch.float32, torch.float64])
SEEDS = st.integers(0, 2**31)


def some_levels(levels: int, seed: int, dtype: torch.dtype, num: int = 64) -> torch.Tensor:
    """Grid values drawn evenly, shape (num,)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(levels, (num,), generator=generator).to(dtype) / (levels - 1)


@given(LEVELS, SEEDS, DTYPES)
@settings(derandomize=True, max_examples=50, deadline=None)
def test_dequantised_values_fall_back_to_their_level(levels: int, seed: int, dtype: torch.dtype) -> None:
    """quantise(dequantise(x)) is x; the dequantised lie in their own cell of [0, 1)."""
    values = grid(levels)
    x = some_levels(levels, seed, dtype)
    y = values.dequantise(x, torch.Generator().manual_seed(seed))
    assert y.dtype == dtype
    assert bool(((y >= 0) & (y < 1)).all())
    assert torch.equal(values.indices(values.quantise(y)), values.indices(x))
    torch.testing.assert_close(values.quantise(y), x)


@given(LEVELS, SEEDS, DTYPES)
@settings(derandomize=True, max_examples=50, deadline=None)
def test_level_numbers_are_exact(levels: int, seed: int, dtype: torch.dtype) -> None:
    """Level numbers undo k / (L - 1), and the values pass their own check."""
    k = torch.randint(levels, (64,), generator=torch.Generator().manual_seed(seed))
    x = k.to(dtype) / (levels - 1)
    grid(levels).check(x)
    assert torch.equal(grid(levels).indices(x), k)


def test_the_rarest_noise_stays_in_its_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest and the largest number that a float32 generator gives: no level moves."""
    for levels, edge in itertools.product([2, 17, 49, 256, 1000], [0.0, 1 - 2**-24]):
        noise = torch.full((levels,), edge, dtype=torch.float32)
        monkeypatch.setattr(torch, "rand", lambda shape, noise=noise, **options: noise.clone())
        k = torch.arange(levels)
        y = grid(levels).dequantise(k.float() / (levels - 1))
        assert bool((y < 1).all())
        assert torch.equal(grid(levels).indices(grid(levels).quantise(y)), k)


def test_dequantisation_noise_is_uniform() -> None:
    """L y - k is U[0, 1): mean, variance and distribution; the twin with half the noise is caught."""
    x = some_levels(16, 0, torch.float64, 20_000)
    y = grid(16).dequantise(x, torch.Generator().manual_seed(1))
    noise = y * 16 - grid(16).indices(x)
    assert_mean(noise, 0.5, "noise")
    assert_mean((noise - 0.5) ** 2, 1 / 12, "variance of the noise")
    with forked_rng(2):
        uniform = torch.rand(20_000, 1, dtype=torch.float64)
    assert_same_distribution(noise[:, None], uniform)
    with pytest.raises(AssertionError, match="noise"):
        assert_mean(noise / 2, 0.5, "noise")
    with pytest.raises(AssertionError):
        assert_same_distribution(noise[:, None] / 2, uniform)


def test_the_generator_argument_repeats_and_spares_the_global_one() -> None:
    """One seed, one noise; the global generator is not drawn from."""
    before = torch.get_rng_state()
    x = some_levels(17, 0, torch.float32)
    first, second = (grid(17).dequantise(x, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


def test_cell_volume() -> None:
    """-D log L nats; a uniform density on [0, 1]^D gives each level the mass L^-D."""
    assert grid(17).log_cell_volume(64) == pytest.approx(-64 * math.log(17))
    assert BINARY.log_cell_volume(3) == pytest.approx(-3 * math.log(2))
    assert REAL.log_cell_volume(64) == 0.0


def test_real_values_pass_through() -> None:
    """Real values have no levels: nothing is added, nothing rounded."""
    x = torch.tensor([[0.3, -4.0]])
    assert REAL.dequantise(x) is x
    assert REAL.quantise(x) is x
    assert not REAL.discrete
    with pytest.raises(ConfigError, match="real values have no level numbers"):
        REAL.indices(x)


def test_names_and_equality() -> None:
    """Two levels are binary; grids compare by levels."""
    assert grid(2) == BINARY
    assert grid(17) == Values("grid", 17) != grid(16)
    assert [str(v) for v in (REAL, BINARY, grid(17))] == ["real", "binary", "grid of 17 levels"]
    assert BINARY.discrete
    assert BINARY.levels == 2


@pytest.mark.parametrize(
    ("kind", "levels"),
    [("grid", None), ("grid", 1), ("real", 4), ("binary", 3), ("count", 9), ("ordinal", 3)],
)
def test_values_that_make_no_sense(kind: Any, levels: int | None) -> None:
    """The message names the argument."""
    with pytest.raises(ConfigError, match="kind" if kind == "ordinal" else "levels"):
        Values(kind, levels)


@pytest.mark.parametrize(
    ("values", "x", "message"),
    [
        (REAL, [0.0, math.nan, math.inf], r"pixels: expected finite numbers, got 2 NaN or infinite of 3"),
        (BINARY, [0.0, 0.5], r"pixels: expected values of the binary .* 1 of 2 are not.*levels="),
        (grid(17), [0.0, 17 / 16], r"range is \[0, 1.062\]"),
        (grid(17), [-1 / 16, 0.5], r"1 of 2 are not"),
    ],
)
def test_check_names_what_is_wrong(values: Values, x: list[float], message: str) -> None:
    """Count and range are in the message, and what to do."""
    with pytest.raises(DataError, match=message):
        values.check(torch.tensor(x), "pixels")


def test_bridge_names_the_data() -> None:
    with pytest.raises(DataError, match="validation: the model is for binary values, the data are real"):
        bridge(REAL, BINARY, "validation")


def test_bridge() -> None:
    """Identity where both agree, dequantisation towards the reals, an error otherwise."""
    x = some_levels(17, 0, torch.float32)
    assert bridge(grid(17), grid(17))(x) is x
    with forked_rng(0):
        y = bridge(grid(17), REAL)(x)
    torch.testing.assert_close(grid(17).quantise(y), x)
    with pytest.raises(DataError, match="binarise the data"):
        bridge(grid(17), BINARY)
    with pytest.raises(DataError, match="declare the data on that grid"):
        bridge(REAL, grid(17))


def test_counts() -> None:
    counts = Values("count")
    x = torch.tensor([[0.0, 3.0], [70.0, 1.0]])
    counts.check(x)
    assert counts.discrete
    assert counts.points(2) is None
    y = counts.dequantise(x, torch.Generator().manual_seed(0))
    assert torch.equal(counts.quantise(y), x)
    assert counts.log_cell_volume(2) == 0
    for bad in (x - 1, x + 0.5):
        with pytest.raises(DataError, match="expected counts 0, 1, 2"):
            counts.check(bad)


def test_missing_values() -> None:
    nan = float("nan")
    for values, x in (
        (Values("real", missing=True), [[0.3, nan]]),
        (Values("binary", missing=True), [[1.0, nan]]),
        (Values("grid", 5, missing=True), [[0.25, nan]]),
        (Values("count", missing=True), [[7.0, nan]]),
        (Values("table", cardinalities=(3, 0), missing=True), [[2.0, nan]]),
    ):
        values.check(torch.tensor(x))
        assert "missing" in str(values)
        with pytest.raises(DataError, match="infinite"):
            values.check(torch.tensor(x) / 0)
    assert BINARY.within(Values("binary", missing=True))
    assert not Values("binary", missing=True).within(BINARY)
    assert bridge(BINARY, Values("binary", missing=True))(torch.ones(2)).tolist() == [1, 1]
    with pytest.raises(DataError, match=r"missing values \(NaN\), which this model cannot sum out"):
        bridge(Values("real", missing=True), REAL)
    with pytest.raises(DataError, match="3"):
        Values("table", cardinalities=(3, 0), missing=True).check(torch.tensor([[3.0, nan]]))
