"""Diagnostics of draws, against ArviZ and against what is known of simulated chains."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppgen.errors import ConfigError, ShapeError
from ppgen.inference.mcmc import diagnostics


def arviz_numbers(draws: Tensor, function: str, method: str | None = None) -> NDArray[np.float64]:
    """ArviZ's answer for draws (C, S, K), coordinate by coordinate."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz

        compute = getattr(arviz, function)
        options = {} if method is None else {"method": method}
        array = draws.double().numpy()
        return np.array([float(compute(array[..., k], **options)) for k in range(array.shape[-1])])


def autoregressive(
    num_chains: int, num_draws: int, rho: list[float], *, shift: float = 0.0, seed: int = 0
) -> Tensor:
    """Stationary chains (C, S, K) with the autocorrelations rho; chain c has the mean ``c * shift``."""
    generator = torch.Generator().manual_seed(seed)
    coefficient = torch.tensor(rho, dtype=torch.float64)
    noise = torch.randn(num_chains, num_draws, len(rho), generator=generator, dtype=torch.float64)
    x = noise.clone()
    for s in range(1, num_draws):
        x[:, s] = coefficient * x[:, s - 1] + (1 - coefficient**2).sqrt() * noise[:, s]
    return x + shift * torch.arange(num_chains, dtype=torch.float64)[:, None, None]


RHOS = [-0.9, -0.3, 0.0, 0.5, 0.9, 0.99]

CASES: dict[str, Callable[[], Tensor]] = {
    "four_chains": lambda: autoregressive(4, 500, RHOS),
    "one_chain": lambda: autoregressive(1, 400, RHOS, seed=1),
    "odd": lambda: autoregressive(3, 101, RHOS, seed=2),
    "four_draws": lambda: autoregressive(3, 4, RHOS, seed=3),
    "five_draws": lambda: autoregressive(5, 5, RHOS, seed=4),
    "eleven_draws": lambda: autoregressive(2, 11, RHOS, seed=5),
    "many_chains": lambda: autoregressive(64, 40, RHOS, seed=6),
    "apart": lambda: autoregressive(4, 200, RHOS, shift=0.5, seed=7),
    "ties": lambda: autoregressive(4, 200, RHOS, seed=8).mul(2).round(),
    "rejections": lambda: autoregressive(4, 100, RHOS, seed=9).repeat_interleave(3, dim=1),
    "heavy_tails": lambda: autoregressive(4, 300, RHOS, seed=10).pow(5),
    "small_numbers": lambda: 1e-9 * autoregressive(4, 300, RHOS, seed=11),
    "float32": lambda: autoregressive(4, 300, RHOS, seed=12).float(),
}
FUNCTIONS: dict[str, tuple[str, str | None, Callable[[Tensor], Tensor]]] = {
    "rhat": ("rhat", None, diagnostics.rhat),
    "ess_bulk": ("ess", "bulk", diagnostics.ess),
    "ess_tail": ("ess", "tail", lambda x: diagnostics.ess(x, "tail")),
    "ess_mean": ("ess", "mean", lambda x: diagnostics.ess(x, "mean")),
    "ess_sd": ("ess", "sd", lambda x: diagnostics.ess(x, "sd")),
    "mcse_mean": ("mcse", "mean", diagnostics.mcse),
    "mcse_sd": ("mcse", "sd", lambda x: diagnostics.mcse(x, "sd")),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("case", CASES)
def test_numbers_are_those_of_arviz(case: str, function: str) -> None:
    draws = CASES[case]()
    name, method, compute = FUNCTIONS[function]
    expected = arviz_numbers(draws, name, method)
    np.testing.assert_allclose(compute(draws).numpy(), expected, rtol=1e-8)


def test_bfmi_is_that_of_arviz() -> None:
    energy = autoregressive(4, 200, [0.7])[..., 0] * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz

        expected = arviz.bfmi(energy.numpy())
    np.testing.assert_allclose(diagnostics.bfmi(energy).numpy(), expected, rtol=1e-10)


def test_description_is_that_of_its_parts() -> None:
    draws = autoregressive(4, 201, RHOS, seed=13)
    found = diagnostics.describe(draws, prob=0.8)
    flat = draws.flatten(0, 1).numpy()
    np.testing.assert_allclose(found["mean"], flat.mean(0), rtol=1e-10)
    np.testing.assert_allclose(found["sd"], flat.std(0, ddof=1), rtol=1e-10)
    np.testing.assert_allclose(found["median"], np.median(flat, 0), rtol=1e-10)
    assert torch.equal(found["r_hat"], diagnostics.rhat(draws))
    assert torch.equal(found["ess_bulk"], diagnostics.ess(draws))
    assert torch.equal(found["ess_tail"], diagnostics.ess(draws, "tail"))
    assert torch.equal(found["mcse_mean"], diagnostics.mcse(draws))
    ordered = np.sort(flat, 0)
    width = int(0.8 * len(flat))
    widths = ordered[width:] - ordered[: len(flat) - width]
    np.testing.assert_allclose(found["high"] - found["low"], widths.min(0), rtol=1e-12)


def test_coordinates_do_not_touch_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = autoregressive(4, 60, RHOS, seed=14)
    together = diagnostics.describe(draws)
    shaped = diagnostics.describe(draws.reshape(4, 60, 2, 3))
    monkeypatch.setattr(diagnostics, "_CHUNK", 1)
    alone = diagnostics.describe(draws)
    for name, value in together.items():
        torch.testing.assert_close(alone[name], value, rtol=1e-12, atol=0.0)
        assert torch.equal(shaped[name], value.reshape(2, 3, *value.shape[1:]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_draws_that_are_not_finite_spoil_their_own_coordinate_only(value: float) -> None:
    draws = autoregressive(4, 60, RHOS, seed=15)
    clean = diagnostics.describe(draws)
    draws[2, 7, 1] = value
    found = diagnostics.describe(draws)
    for name in ("r_hat", "ess_bulk", "ess_tail", "mcse_mean", "median", "low", "high"):
        assert found[name][1].isnan()
        rest = [0, 2, 3, 4, 5]
        torch.testing.assert_close(found[name][rest], clean[name][rest], rtol=1e-12, atol=0.0)


def test_constants_are_known_without_error() -> None:
    draws = torch.ones(4, 100, 1)
    assert diagnostics.ess(draws).item() == 400
    assert diagnostics.mcse(draws).item() == 0
    assert diagnostics.rhat(draws).isnan().all()
    assert diagnostics.bfmi(draws[..., 0]).isnan().all()


def test_stuck_chains_are_worth_one_draw_each() -> None:
    draws = torch.arange(4.0)[:, None, None].expand(4, 100, 1)
    assert diagnostics.ess(draws).item() < 10
    assert diagnostics.rhat(draws).item() > 100


def test_one_chain_has_no_rhat_and_few_draws_have_nothing() -> None:
    assert diagnostics.rhat(torch.randn(1, 100, 2, generator=torch.Generator().manual_seed(0))).isnan().all()
    three = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    assert diagnostics.rhat(three).isnan().all()
    assert diagnostics.ess(three).isnan().all()
    assert diagnostics.describe(three)["mean"].isfinite().all()
    assert diagnostics.describe(three[:, :1])["median"].isfinite().all()
    assert diagnostics.bfmi(three[:, :1, 0]).isnan().all()
    assert diagnostics.describe(torch.zeros(4, 10, 0))["r_hat"].shape == (0,)


def test_whole_numbers_and_truth_values_are_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(0, 3, (4, 100), generator=generator)
    assert diagnostics.ess(draws).isfinite()
    assert diagnostics.ess(draws > 1).isfinite()


def test_wrong_arguments_are_named() -> None:
    draws = torch.zeros(2, 10)
    with pytest.raises(ConfigError, match="method: .*'bulk'"):
        diagnostics.ess(draws, "median")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="method: .*'mean'"):
        diagnostics.mcse(draws, "bulk")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="prob: "):
        diagnostics.describe(draws, 1.0)
    with pytest.raises(ShapeError, match="draws: .*\\(10,\\)"):
        diagnostics.rhat(torch.zeros(10))
    with pytest.raises(ShapeError, match="at least one"):
        diagnostics.rhat(torch.zeros(2, 0))
