"""Restricted Boltzmann machines against sums over all states, and chains against the joint."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ppgen.distributions.boltzmann import BoltzmannMarginal, Harmonium
from ppgen.errors import CapabilityError, ConfigError, ShapeError, TrainingWarning
from ppgen.ops.binary import binary_states, sample_bernoulli, state_chunks
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_mean, assert_same_distribution


def machine(d: int, h: int, *, gaussian: bool = False, seed: int = 0, spread: float = 0.8) -> Harmonium:
    with forked_rng(seed):
        draw = [spread * torch.randn(s, dtype=torch.float64) for s in ((d, h), (d,), (h,), (d,))]
    return Harmonium(draw[0], draw[1], draw[2], (0.3 * draw[3]).exp() if gaussian else None)


def every_state(num: int) -> Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=num)), dtype=torch.float64)


def joint_log_weights(m: Harmonium) -> Tensor:
    """-E(v, h) over all v (rows) and h (columns), by the defining double sum."""
    v, h = every_state(m.num_visible), every_state(m.num_hidden)
    return (v @ m.visible_bias)[:, None] + h @ m.hidden_bias + torch.einsum("vd,dk,hk->vh", v, m.weight, h)


def mixture_log_density(m: Harmonium, v: Tensor) -> Tensor:
    """Log-density of a Gaussian machine as the mixture of 2^H Gaussians that it is."""
    assert m.scale is not None
    h = every_state(m.num_hidden)
    drive = h @ m.weight.mT
    log_weights = (h @ m.hidden_bias + drive.square().sum(-1) / 2).log_softmax(0)
    components = torch.distributions.Normal(m.visible_bias + m.scale * drive, m.scale)
    return torch.logsumexp(log_weights + components.log_prob(v[:, None]).sum(-1), -1)


# -- states ---------------------------------------------------------------------------------


def test_states_count_in_binary_with_the_lowest_bit_first() -> None:
    assert binary_states(3, 3, 6).tolist() == [[1, 1, 0], [0, 0, 1], [1, 0, 1]]
    assert len({tuple(row) for row in binary_states(6).tolist()}) == 64


def test_chunks_are_the_states_in_order_and_small() -> None:
    like = torch.zeros(1, dtype=torch.float64)
    chunks = list(state_chunks(12, 1000, like))
    assert max(map(len, chunks)) * 1000 <= 2**18
    assert torch.equal(torch.cat(chunks), binary_states(12, dtype=torch.float64))


@pytest.mark.parametrize(("num", "start", "stop"), [(63, 0, None), (3, 0, 9), (3, 5, 4)])
def test_states_that_do_not_exist(num: int, start: int, stop: int | None) -> None:
    with pytest.raises(ConfigError, match="expected"):
        binary_states(num, start, stop)


def test_sample_bernoulli_has_its_probabilities() -> None:
    probs = torch.tensor([0.0, 1e-3, 0.3, 1.0]).expand(20_000, 4)
    with forked_rng(0):
        draws = sample_bernoulli(probs)
    assert_mean(draws[:, 1:3], probs[0, 1:3])
    assert draws[:, 0].sum() == 0
    assert draws[:, 3].sum() == 20_000


# -- sums over states -------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "h"), [(3, 2), (2, 4), (5, 5), (1, 3)])
def test_log_partition_is_the_sum_over_all_states(d: int, h: int) -> None:
    m = machine(d, h)
    torch.testing.assert_close(m.log_partition(), joint_log_weights(m).flatten().logsumexp(0))
    other_side = Harmonium(m.weight.mT, m.hidden_bias, m.visible_bias)
    torch.testing.assert_close(other_side.log_partition(), m.log_partition())


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize(("d", "h"), [(3, 2), (2, 4), (40, 13)])
def test_gradient_of_log_partition(d: int, h: int, gaussian: bool) -> None:
    m = machine(d, h, gaussian=gaussian, spread=0.3)
    parameters = [m.weight, m.visible_bias, m.hidden_bias] + ([m.scale] if m.scale is not None else [])
    leaves = [p.clone().requires_grad_() for p in parameters]
    copy = Harmonium(*leaves)
    moments = torch.autograd.grad(copy.log_partition(), leaves, allow_unused=True)
    h_states = binary_states(h, dtype=torch.float64)
    by_graph = torch.logsumexp(-copy.hidden_free_energy(h_states), 0)
    expected = torch.autograd.grad(by_graph, leaves, allow_unused=True)
    for found, want in zip(moments, expected, strict=True):
        torch.testing.assert_close(
            torch.zeros(()) if found is None else found, torch.zeros(()) if want is None else want
        )


def test_log_partition_in_chunks_and_single_precision() -> None:
    m = machine(60, 14, spread=0.3)
    whole = torch.logsumexp(-m.hidden_free_energy(binary_states(14, dtype=torch.float64)), 0)
    torch.testing.assert_close(m.log_partition(), whole)
    single = Harmonium(m.weight.float(), m.visible_bias.float(), m.hidden_bias.float())
    assert abs(float(single.log_partition()) - float(whole)) < 1e-4


def test_energies_with_large_activations_stay_exact() -> None:
    # log(1 + e^22) - 22 is 3e-10: seen in float64, lost where softplus turns linear at 20.
    m = Harmonium(torch.full((1, 1), 22.0, dtype=torch.float64), *torch.zeros(2, 1, dtype=torch.float64))
    excess = -m.free_energy(torch.ones(1, 1, dtype=torch.float64)) - 22.0
    assert math.isclose(float(excess), math.exp(-22.0), rel_tol=1e-4)


def test_published_toy_machine(data_dir: Path) -> None:
    path = data_dir / "rbm_pylearn2" / "mnist_rbm.npz"
    if not path.exists():
        pytest.skip(f"{path.name} is not there")
    with np.load(path) as file:
        weight, visible, hidden = (torch.as_tensor(file[n]) for n in ("vishid", "visbiases", "hidbiases"))
    m = Harmonium(weight.double(), visible.double().flatten(), hidden.double().flatten())
    assert abs(float(m.log_partition()) - 215.138406) < 1e-6
    single = Harmonium(m.weight.float(), m.visible_bias.float(), m.hidden_bias.float())
    assert abs(float(single.log_partition()) - 215.138406) < 1e-3


@pytest.mark.parametrize(("d", "h"), [(3, 4), (5, 2)])
def test_marginals_sum_the_joint(d: int, h: int) -> None:
    m = machine(d, h)
    joint = joint_log_weights(m)
    torch.testing.assert_close(-m.free_energy(every_state(d)), joint.logsumexp(1))
    torch.testing.assert_close(-m.hidden_free_energy(every_state(h)), joint.logsumexp(0))
    energies = m.energy(every_state(d)[:, None], every_state(h))
    torch.testing.assert_close(-energies, joint)
    total = BoltzmannMarginal(m).log_prob(every_state(h)).exp().sum()
    torch.testing.assert_close(total, torch.ones_like(total))


def test_gaussian_machine_is_a_mixture_of_gaussians() -> None:
    m = machine(3, 4, gaussian=True)
    with forked_rng(1):
        v = 2 * torch.randn(50, 3, dtype=torch.float64)
    torch.testing.assert_close(-m.free_energy(v) - m.log_partition(), mixture_log_density(m, v))


def test_pseudo_log_likelihood_is_the_sum_of_all_conditionals() -> None:
    m = machine(4, 3)
    log_joint = joint_log_weights(m).logsumexp(1).log_softmax(0).view(2, 2, 2, 2)
    expected = torch.zeros(16, dtype=torch.float64)
    for d in range(4):
        expected += (log_joint - log_joint.logsumexp(d, keepdim=True)).flatten()
    torch.testing.assert_close(m.pseudo_log_likelihood(every_state(4)), expected)


# -- draws --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "h"), [(6, 3), (2, 5)])
def test_exact_draws_have_the_enumerated_marginal(d: int, h: int) -> None:
    m = machine(d, h)
    with forked_rng(0):
        draws = m.sample_exact(50_000)
    check_frequencies(draws, BoltzmannMarginal(m).log_prob(every_state(h)).exp())


def test_chains_reach_the_enumerated_marginal() -> None:
    m = machine(4, 3, spread=0.5)
    distribution = BoltzmannMarginal(m, num_steps=60)
    with forked_rng(0):
        draws = distribution.sample((20_000,))
    check_frequencies(draws, distribution.log_prob(every_state(3)).exp())


def check_frequencies(draws: Tensor, probs: Tensor) -> None:
    places = 2 ** torch.arange(draws.shape[1] - 1, -1, -1)
    index = (draws.long() * places).sum(-1)
    common = probs * len(draws) > 50  # the normal approximation needs counts
    hits = torch.nn.functional.one_hot(index, len(probs))
    assert_mean(hits[:, common].double(), probs[common])


def joint_draws(m: Harmonium, num: int) -> tuple[Tensor, Tensor]:
    """Exact draws of (v, h) from the enumerated joint."""
    probs = joint_log_weights(m).flatten().softmax(0)
    index = torch.multinomial(probs, num, replacement=True)
    states = 2**m.num_hidden
    return every_state(m.num_visible)[index // states], every_state(m.num_hidden)[index % states]


class ForgetsTheHiddenBias(Harmonium):
    def hidden_logits(self, v: Tensor) -> Tensor:
        return v @ self.weight


def stationarity(m: Harmonium, kernel: Harmonium) -> None:
    """Five sweeps from exact draws give draws of the same joint."""
    with forked_rng(0):
        v, h = joint_draws(m, 4000)
        moved = torch.cat(kernel.gibbs(joint_draws(m, 4000)[1], 5), -1)
    assert_same_distribution(torch.cat([v, h], -1), moved)


def test_block_gibbs_leaves_the_joint_invariant() -> None:
    m = machine(4, 3)
    stationarity(m, m)


def test_stationarity_test_sees_a_forgotten_bias() -> None:
    m = replace(machine(4, 3), hidden_bias=torch.tensor([0.6, -0.6, 0.6], dtype=torch.float64))
    wrong = ForgetsTheHiddenBias(m.weight, m.visible_bias, m.hidden_bias)
    with pytest.raises(AssertionError, match="Kolmogorov"):
        stationarity(m, wrong)


def gaussian_stationarity(m: Harmonium, kernel: Harmonium) -> None:
    with forked_rng(0):
        h, other = m.sample_exact(4000), m.sample_exact(4000)
        v = m.sample_visible(h)
        moved = torch.cat(kernel.gibbs(other, 5), -1)
    assert_same_distribution(torch.cat([v, h], -1), moved)


def test_gaussian_block_gibbs_leaves_the_joint_invariant() -> None:
    m = machine(3, 3, gaussian=True)
    gaussian_stationarity(m, m)


def test_gaussian_stationarity_test_sees_a_wrong_scale() -> None:
    m = machine(3, 3, gaussian=True)
    assert m.scale is not None
    with pytest.raises(AssertionError, match="Kolmogorov"):
        gaussian_stationarity(m, replace(m, scale=1.3 * m.scale))


def test_clamped_units_stay() -> None:
    m = machine(5, 3)
    mask = torch.tensor([True, False, True, False, False])
    with forked_rng(0):
        v, _ = m.gibbs(every_state(3), 7, clamped=torch.ones(5, dtype=torch.float64), mask=mask)
    assert bool((v[:, mask] == 1).all())


# -- the distribution ----------------------------------------------------------------------------


def test_marginal_expands_and_broadcasts() -> None:
    marginal = BoltzmannMarginal(machine(3, 2)).expand((4,))
    with forked_rng(0):
        draws = marginal.sample((5,))
    assert draws.shape == (5, 4, 2)
    assert marginal.log_prob(draws).shape == (5, 4)
    assert marginal.log_prob(draws[0, 0]).shape == (4,)
    with pytest.raises(ValueError, match="support"):
        BoltzmannMarginal(machine(3, 2), validate_args=True).log_prob(torch.full((2,), 0.5))


def test_beyond_enumeration() -> None:
    m = machine(21, 22)
    marginal = BoltzmannMarginal(m, num_steps=2)
    assert not marginal.normalised
    with forked_rng(0):
        h = marginal.sample((3,))
    torch.testing.assert_close(marginal.log_prob(h), -m.hidden_free_energy(h))
    for ask in (m.log_partition, lambda: m.sample_exact(1)):
        with pytest.raises(CapabilityError, match=r"too many units for enumeration \(limit 20\)"):
            ask()
    assert machine(30, 20).enumerable
    assert machine(20, 30).enumerable
    assert not machine(2, 21, gaussian=True).enumerable


def test_a_gradient_without_log_z_is_warned_of() -> None:
    weight = torch.zeros(21, 22, requires_grad=True)
    for size, warned in ((21, True), (2, False)):
        harmonium = Harmonium(weight[:size], torch.zeros(size), torch.zeros(22))
        marginal = BoltzmannMarginal(harmonium, num_steps=1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with torch.no_grad():
                marginal.log_prob(torch.zeros(3, 22))
            assert not caught
            marginal.log_prob(torch.zeros(3, 22))
        assert [w.category for w in caught] == [TrainingWarning] * warned
        assert not warned or "ContrastiveDivergence" in str(caught[0].message)


def test_shapes_and_numbers_are_checked() -> None:
    m = machine(3, 2)
    with pytest.raises(ShapeError, match="hidden_bias"):
        replace(m, hidden_bias=m.visible_bias)
    with pytest.raises(ConfigError, match="num_steps"):
        m.gibbs(every_state(2), 0)
    with pytest.raises(ConfigError, match="num_steps"):
        BoltzmannMarginal(m, num_steps=0)
    with pytest.raises(CapabilityError, match="pseudo"):
        machine(3, 2, gaussian=True).pseudo_log_likelihood(torch.zeros(1, 3))
