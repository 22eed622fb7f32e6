"""The VAE: a linear one is probabilistic PCA, whose density is known."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    SVI,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.optim.optim import PyroOptim
from torch import Tensor

from ppgen.contract import Kind
from ppgen.datasets.values import BINARY, REAL, grid
from ppgen.errors import ConfigError, DataError, ShapeError
from ppgen.inference.annealing.likelihood import simulated_bounds
from ppgen.inference.annealing.per_datum import PerDatum
from ppgen.inference.svi import fit
from ppgen.models import VAE
from ppgen.models.vae import FAMILY
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_close_to, assert_mean


@pytest.fixture(autouse=True)
def _rng() -> Iterator[None]:
    with forked_rng(0):
        yield


def linear_vae(num_dims: int = 4, latent_dim: int = 2) -> VAE:
    """Model x = W z + b + noise of one scale a coordinate, in float64."""
    return VAE((num_dims,), latent_dim=latent_dim, hidden=()).double()


def exact_density(vae: VAE, x: Tensor) -> Tensor:
    """Density log N(x; b, W W^T + S), the density of a linear VAE."""
    layer: Any = vae.decoder[-1] if isinstance(vae.decoder, torch.nn.Sequential) else vae.decoder
    scale = vae.log_scale.exp() + vae.min_scale
    covariance = layer.weight @ layer.weight.T + torch.diag(scale**2)
    return torch.distributions.MultivariateNormal(layer.bias, covariance).log_prob(x).detach()


def exact_guide(vae: VAE) -> None:
    """Set the encoder of a linear VAE to the posterior, whose covariance must be diagonal."""
    decoder: Any = vae.decoder
    encoder: Any = vae.encoder
    noise = (vae.log_scale.exp() + vae.min_scale) ** 2
    with torch.no_grad():
        # Orthogonal columns in the noise's metric make the posterior's coordinates independent.
        q, _ = torch.linalg.qr(decoder[-1].weight / noise.sqrt()[:, None])
        decoder[-1].weight.copy_(q * torch.tensor([2.0, 0.7], dtype=q.dtype) * noise.sqrt()[:, None])
        weight = decoder[-1].weight
        precision = 1 + (weight**2 / noise[:, None]).sum(0)
        mean_map = (weight / noise[:, None]).T / precision[:, None]
        encoder[-1].weight.zero_()
        encoder[-1].weight[:2] = mean_map
        encoder[-1].bias[:2] = -mean_map @ decoder[-1].bias
        encoder[-1].bias[2:] = torch.log(torch.expm1(precision.rsqrt() - 1e-4))


def test_with_the_exact_posterior_every_draw_gives_the_exact_density() -> None:
    vae = linear_vae()
    exact_guide(vae)
    x = vae.sample(50, seed=1)
    for particles in (1, 7):
        estimate = vae.log_likelihood(x, num_particles=particles)
        assert estimate.kind is Kind.LOWER_BOUND
        assert torch.allclose(estimate.value, exact_density(vae, x), atol=1e-8)


def mean_of_weights(vae: VAE, x: Tensor, shift: float = 0.0) -> None:
    """Importance weights average to p(x) / p(x) = 1, whatever the guide."""
    log_weights = torch.stack([vae.log_likelihood(x, num_particles=1).value for _ in range(4000)])
    assert_mean((log_weights + shift - exact_density(vae, x)).exp(), 1.0)


def test_importance_weights_are_unbiased_for_the_density() -> None:
    vae = linear_vae()
    exact_guide(vae)
    with torch.no_grad():
        vae.encoder[-1].bias[:2] += 0.2  # a guide that is off
    mean_of_weights(vae, vae.sample(3, seed=1))


def test_a_planted_error_in_the_weights_is_caught() -> None:
    vae = linear_vae()
    exact_guide(vae)
    with pytest.raises(AssertionError):
        mean_of_weights(vae, vae.sample(3, seed=1), shift=0.05)


def test_the_bound_tightens_with_particles_and_its_error_is_calibrated() -> None:
    vae = linear_vae()
    exact_guide(vae)
    with torch.no_grad():
        vae.encoder[-1].bias[:2] += 0.5
    x = vae.sample(200, seed=1)
    exact = exact_density(vae, x).mean()
    gaps = [float(exact - vae.log_likelihood(x, num_particles=p).value.mean()) for p in (1, 10, 1000)]
    assert gaps[0] > gaps[1] > gaps[2] > -0.02
    estimate = vae.log_likelihood(x, num_particles=4000)
    assert_close_to(estimate.value, exact_density(vae, x), estimate.std_error)


def test_training_a_linear_vae_reaches_the_likelihood_of_pca() -> None:
    # Equal noise in all coordinates: maximum likelihood is probabilistic PCA (Tipping & Bishop 1999).
    mixing = torch.randn(4, 2, dtype=torch.float64)
    x = torch.randn(400, 2, dtype=torch.float64) @ mixing.T + 0.5 * torch.randn(400, 4, dtype=torch.float64)
    spectrum = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    noise = spectrum[2:].mean()
    best = -0.5 * (4 * math.log(2 * math.pi) + spectrum[:2].log().sum() + 2 * noise.log() + 4)
    vae = linear_vae()
    options: dict[str, Any] = {"epochs": 6000, "batch_size": None, "device": "cpu", "progress": False}
    fit(vae, x, learning_rate=0.02, schedule="cosine", **options)
    reached = exact_density(vae, x).mean()
    # A free scale a coordinate fits a little better than the common one of PCA: by 3 / (2 N) on
    # average (Wilks), and hardly by more than 0.05.
    assert best - 0.005 < reached < best + 0.05


@pytest.mark.parametrize("architecture", ["mlp", "conv"])
@pytest.mark.parametrize(
    ("likelihood", "levels"),
    [("bernoulli", None), ("gaussian", None), ("discretised_logistic", 5), ("categorical", 5)],
)
def test_every_likelihood_and_architecture(likelihood: Any, levels: int | None, architecture: Any) -> None:
    vae = VAE(
        (2, 5, 6),
        latent_dim=3,
        likelihood=likelihood,
        levels=levels,
        architecture=architecture,
        hidden=(16,),
        channels=4,
        context_dim=2,
    )
    context = torch.tensor([0, 1, 1])
    x = vae.sample(3, context, seed=1)
    assert x.shape == (3, 2, 5, 6)
    vae.support.check(x)
    estimate = vae.log_likelihood(x, context, num_particles=5)
    assert estimate.value.shape == estimate.std_error.shape == (3,)
    assert bool(torch.isfinite(estimate.value).all())
    z = vae.encode(x, context)
    assert z.shape == (3, 3)
    assert vae.decode(z, context).shape == x.shape


def test_small_binary_vaes_sum_to_one() -> None:
    vae = VAE((3,), latent_dim=1, likelihood="bernoulli", hidden=(4,)).double()
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
    estimate = vae.log_likelihood(every, num_particles=20_000)
    probability = estimate.value.exp()
    assert_close_to(probability.sum(), 1.0, (probability * estimate.std_error).norm())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"latent_dim": 0}, "latent_dim"),
        ({"likelihood": "poisson"}, "likelihood"),
        ({"likelihood": "categorical"}, "levels"),
        ({"likelihood": "gaussian", "levels": 3}, "levels"),
        ({"architecture": "transformer"}, "architecture"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        VAE((2,), **options)


def test_bad_shapes_are_named() -> None:
    vae = VAE((2,), latent_dim=3, hidden=(4,))
    with pytest.raises(ShapeError, match=r"\(B, 2\), got \(5, 4\)"):
        vae.log_likelihood(torch.zeros(5, 4))
    with pytest.raises(ShapeError, match=r"z: expected shape \(N, 3\)"):
        vae.decode(torch.zeros(5, 2))
    with pytest.raises(ShapeError, match="event_shape"):
        VAE((2, 2), architecture="conv")
    with pytest.raises(DataError, match="labels in 0..2"):
        VAE((2,), context_dim=3).sample(1, torch.tensor([3]))


def test_a_collapsed_posterior_is_reported() -> None:
    vae = VAE((2,), latent_dim=2, hidden=(4,))
    with torch.no_grad():
        encoder: Any = vae.encoder
        encoder[-1].weight.zero_()
        encoder[-1].bias[:2] = 0.0
        encoder[-1].bias[2:] = math.log(math.expm1(1 - 1e-4))
    x = torch.randn(500, 2)
    notes = vae.default_objective().diagnose(vae.model, vae.guide, x)
    assert len(notes) == 1
    assert "collapse" in notes[0]
    exact = linear_vae()
    exact_guide(exact)
    assert not exact.default_objective().diagnose(exact.model, exact.guide, exact.sample(500, seed=3))


def test_pyros_mean_field_estimator_takes_the_divergence_in_closed_form() -> None:
    """With an encoder that has no say and a decoder that has none, every draw gives one number."""
    vae = VAE((2,), latent_dim=2, hidden=())
    network: Any = vae.decoder
    with torch.no_grad():
        network[-1].weight.zero_()
    x = torch.randn(6, 2)
    with forked_rng(1):
        first, second = (TraceMeanField_ELBO().loss(vae.model, vae.guide, x) for _ in range(2))
    assert first == pytest.approx(second, rel=1e-6)
    with forked_rng(1):  # the planted defect: a divergence by Monte Carlo differs from draw to draw
        first, second = (Trace_ELBO().loss(vae.model, vae.guide, x) for _ in range(2))
    assert first != pytest.approx(second, rel=1e-6)


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
@pytest.mark.parametrize(
    "estimator",
    [
        TraceEnum_ELBO(max_plate_nesting=1),
        TraceGraph_ELBO(),
        RenyiELBO(alpha=0.5, num_particles=3),
        ReweightedWakeSleep(num_particles=3, vectorize_particles=False),
    ],
    ids=lambda e: type(e).__name__,
)
def test_pyros_other_estimators_train_the_pair(estimator: Any) -> None:
    vae = VAE((3,), latent_dim=2, hidden=(8,))
    before = [p.detach().clone() for p in vae.parameters()]
    svi = SVI(vae.model, vae.guide, PyroOptim(torch.optim.Adam, {"lr": 1e-2}), estimator)
    svi.step(torch.randn(8, 3))
    assert all(not torch.equal(p, old) for p, old in zip(vae.parameters(), before, strict=True))
    assert not list(pyro.get_param_store().keys())


def test_a_plate_outside_repeats_the_pair() -> None:
    vae = VAE((3,), latent_dim=2, hidden=(8,))
    x = torch.randn(5, 3)
    with pyro.validation_enabled(True), pyro.plate("outer", 4, dim=-2):
        guide: Any = poutine.trace(vae.guide).get_trace(x)
        trace: Any = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(x)
        assert vae.model(num=6).shape == (4, 6, 3)
    trace.compute_log_prob()
    assert guide.nodes["z"]["value"].shape == (4, 5, 2)
    assert trace.nodes["x"]["log_prob"].shape == (4, 5)


def test_the_likelihood_follows_the_number_of_levels() -> None:
    for values, likelihood in (
        (BINARY, "bernoulli"),
        (grid(17), "categorical"),
        (grid(256), "discretised_logistic"),
        (REAL, "gaussian"),
    ):
        built: Any = FAMILY.build(torch.Size((1, 4, 4)), values, 100)
        assert built.likelihood == likelihood


# -- annealing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["guide", "prior"])
def test_annealed_density_of_a_linear_vae_is_that_of_pca(start: Any) -> None:
    vae = linear_vae()
    x = vae.sample(40, seed=1)
    estimate = vae.log_likelihood(x, method="ais", start=start, num_particles=32, seed=0)
    assert estimate.kind is Kind.LOWER_BOUND
    exact = exact_density(vae, x)
    assert_close_to(estimate.value, exact, estimate.std_error)
    assert float(estimate.std_error.mean()) < 0.3
    with pytest.raises(AssertionError, match="off by"):  # data that fell out of step with their particles
        assert_close_to(estimate.value, exact.roll(1), estimate.std_error)


def test_annealed_chunks_cover_all_data() -> None:
    vae = linear_vae()
    x = vae.sample(10, seed=1)
    estimate = vae.log_likelihood(x, method="ais", chunk_size=48, num_particles=16, seed=0)
    assert estimate.value.shape == (10,)
    assert_close_to(estimate.value, exact_density(vae, x), estimate.std_error)


def by_quadrature(vae: VAE, x: Tensor) -> Tensor:
    """Log p(x) of a VAE with one latent, on a grid."""
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    with torch.no_grad():
        logits = vae.decoder(z[:, None])
    log_x = -torch.nn.functional.binary_cross_entropy_with_logits(
        logits.expand(len(x), -1, -1), x[:, None].expand(-1, len(z), -1), reduction="none"
    ).sum(-1)
    log_joint = log_x + torch.distributions.Normal(0.0, 1.0).log_prob(z)
    return torch.trapezoid(log_joint.exp(), z).log()


def test_the_three_bounds_are_in_order_and_the_last_is_the_density() -> None:
    vae = VAE((12,), latent_dim=1, likelihood="bernoulli", hidden=(8,)).double()
    with torch.no_grad():
        for p in vae.decoder.parameters():
            p.mul_(4)
    x = vae.sample(40, seed=1)
    truth = by_quadrature(vae, x)
    elbo, iwae = (vae.log_likelihood(x, method=m, num_particles=10) for m in ("elbo", "iwae"))
    ais = vae.log_likelihood(x, method="ais", num_particles=32, seed=0)
    assert_close_to(ais.value, truth, ais.std_error)
    assert elbo.kind is iwae.kind is ais.kind is Kind.LOWER_BOUND
    assert float(elbo.value.mean()) < float(iwae.value.mean()) < float(truth.mean())
    error = float(ais.std_error.norm()) / len(x)
    assert float(iwae.value.mean()) < float(ais.value.mean()) + 5 * error


def test_annealing_a_conditional_vae_and_every_seed() -> None:
    vae = VAE((4,), latent_dim=2, hidden=(4,), context_dim=2)
    context = torch.tensor([0, 1, 1])
    x = vae.sample(3, context, seed=1)
    options: dict[str, Any] = {"method": "ais", "num_temperatures": 5, "num_particles": 4}
    before = torch.get_rng_state()
    first, again = (vae.log_likelihood(x, context, seed=3, **options).value for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(ConfigError, match="method"):
        vae.log_likelihood(x, context, method="exact")


def test_simulated_bounds_hold_the_density_between_them() -> None:
    vae = linear_vae()
    coarse, fine = (
        simulated_bounds(vae, 60, from_prior=True, num_particles=4, num_temperatures=t, seed=2)
        for t in (3, 60)
    )
    assert coarse.lower.value.shape == coarse.upper.value.shape == (60,)
    assert float(coarse.gap.value) > 3 * float(coarse.gap.std_error)
    assert float(fine.gap.value) < float(coarse.gap.value) / 3
    assert coarse.gap.kind is coarse.upper.kind is Kind.UPPER_BOUND


def test_chunks_are_halved_where_memory_runs_out_and_end_at_an_interrupt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vae = linear_vae()
    x = vae.sample(10, seed=1)
    parts, rows = PerDatum.parts, []

    def cramped(self: PerDatum, z: Tensor) -> tuple[Tensor, Tensor]:
        rows.append(len(z))
        if len(z) > 70:
            raise torch.OutOfMemoryError("planted")
        return parts(self, z)

    options: dict[str, Any] = {"method": "ais", "num_particles": 16, "num_temperatures": 30, "seed": 0}
    with monkeypatch.context() as patch:
        patch.setattr(PerDatum, "parts", cramped)
        estimate = vae.log_likelihood(x, **options)
    assert {160, 80, 48} <= set(rows)
    assert estimate.value.shape == (10,)
    assert_close_to(estimate.value, exact_density(vae, x), estimate.std_error)

    def interrupted(self: PerDatum, z: Tensor) -> tuple[Tensor, Tensor]:
        signal.raise_signal(signal.SIGINT)
        return parts(self, z)

    monkeypatch.setattr(PerDatum, "parts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        vae.log_likelihood(x, chunk_size=32, **options)
