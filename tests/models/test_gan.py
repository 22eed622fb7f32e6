"""The GAN family: a legal pair, its capabilities, its networks, and digits that look like digits."""

from __future__ import annotations

import pickle
from typing import Any, get_args

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.optim.optim import PyroOptim
from torch import Tensor, nn

from ppgen.contract import HasDecoder, HasInitialiser, HasLogLikelihood
from ppgen.datasets.values import REAL, grid
from ppgen.distributions.implicit import Implicit
from ppgen.errors import CapabilityError, ConfigError, DataError, ShapeError
from ppgen.inference.objectives.adversarial import Loss
from ppgen.models.gan import FAMILY, GAN
from ppgen.ops.random import forked_rng
from ppgen.testing import check_contract
from ppgen.testing.statistics import assert_mean

IMAGES = [(1, 8, 8), (3, 32, 32), (1, 5, 7)]


def make(event_shape: tuple[int, ...] = (3,), **options: Any) -> GAN:
    with forked_rng(0):
        return GAN(event_shape, **{"latent_dim": 4, "hidden": (16,), "channels": 4, **options})


# -- the pair ----------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["mlp", "conv"])
@pytest.mark.parametrize("event_shape", IMAGES)
def test_the_pair_has_the_sites_of_its_story(architecture: Any, event_shape: tuple[int, ...]) -> None:
    gan = make(event_shape, architecture=architecture)
    with forked_rng(0), pyro.validation_enabled(True):
        trace: Any = poutine.trace(gan.model).get_trace(num=5)
        guide: Any = poutine.trace(gan.guide).get_trace(torch.zeros(5, *event_shape))
    assert trace.nodes["z"]["value"].shape == guide.nodes["z"]["value"].shape == (5, 4)
    assert isinstance(trace.nodes["x"]["fn"], Implicit)
    x = trace.nodes["x"]["value"]
    assert x.shape == (5, *event_shape)
    torch.testing.assert_close(gan.decode(trace.nodes["z"]["value"]), x)
    assert gan.critic(x).shape == (5,)


def test_observed_and_conditioned_sites_keep_their_values() -> None:
    gan = make()
    with forked_rng(0):
        x, z = torch.randn(6, 3), torch.randn(6, 4)
        trace: Any = poutine.trace(gan.model).get_trace(x)
        made = poutine.condition(gan.model, {"z": z})(num=6)
    assert trace.nodes["x"]["is_observed"]
    assert torch.equal(trace.nodes["_RETURN"]["value"], x)
    torch.testing.assert_close(made, gan.decode(z))


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_draws_from_the_pair(parallel: bool) -> None:
    gan = make((1, 8, 8), architecture="conv")
    with forked_rng(0):
        prior = Predictive(gan.model, num_samples=3, parallel=parallel)(num=5)
        guided = Predictive(gan.model, guide=gan.guide, num_samples=3, parallel=parallel)(num=5)
    for draws in (prior, guided):
        assert draws["x"].shape == (3, 5, 1, 8, 8)
    z, x = prior["z"].reshape(3, 5, 4), prior["x"]
    torch.testing.assert_close(gan.decode(z), x)


def test_sampling_repeats_with_a_seed_and_differs_without() -> None:
    gan = make()
    with forked_rng(0):
        assert torch.equal(gan.sample(4, seed=1), gan.sample(4, seed=1))
        assert not torch.equal(gan.sample(4), gan.sample(4))
    assert not gan.sample(2, seed=0).requires_grad


def check_linear_law(gan: GAN, loc: Tensor, covariance: Tensor) -> None:
    x = gan.sample(20_000, seed=3).double()
    assert_mean(x, loc.double(), "mean of the draws")
    centred = x - loc
    assert_mean(centred[:, :, None] * centred[:, None, :], covariance.double(), "covariance of the draws")


def linear_gan() -> tuple[GAN, Tensor, Tensor]:
    """A linear generator is exactly N(b, W W^T)."""
    gan = make((2,), hidden=()).double()
    linear: Any = gan.generator.network
    weight, bias = linear[0].weight.detach(), linear[0].bias.detach()
    return gan, bias, weight @ weight.T


def test_a_linear_generator_draws_its_gaussian() -> None:
    check_linear_law(*linear_gan())


def test_a_wrong_law_of_the_draws_is_caught() -> None:
    gan, loc, covariance = linear_gan()
    with pytest.raises(AssertionError, match="mean of the draws"):
        check_linear_law(gan, loc + 0.05, covariance)
    with pytest.raises(AssertionError, match="covariance of the draws"):
        check_linear_law(gan, loc, 1.2 * covariance)


# -- capabilities --------------------------------------------------------------------------------


def test_it_decodes_and_has_no_likelihood() -> None:
    gan = make()
    assert isinstance(gan, HasDecoder)
    assert isinstance(gan, HasInitialiser)
    assert not isinstance(gan, HasLogLikelihood)
    assert not hasattr(gan, "log_likelihood")
    assert gan.density is None
    svi = SVI(gan.model, gan.guide, PyroOptim(torch.optim.Adam, {"lr": 1e-3}), Trace_ELBO())
    with forked_rng(0), pytest.raises(CapabilityError, match="no density"):
        svi.step(torch.zeros(4, 3))


def test_the_default_objective_is_the_game_that_was_asked_for() -> None:
    game = make(loss="wgan_gp", r1=0.2).default_objective()
    assert (game.game, game.r1, game.critic_steps) == ("wgan_gp", 0.2, 5)


def test_a_sigmoid_output_stays_between_zero_and_one() -> None:
    gan = make((1, 8, 8), output="sigmoid")
    network: Any = gan.generator.network
    nn.init.constant_(network[-1].bias, 50.0)
    assert bool((gan.sample(10, seed=0) == 1).all())
    assert not bool((make((1, 8, 8)).sample(50, seed=0) >= 0).all())


def test_the_start_takes_up_the_scale_of_the_data() -> None:
    gan = make()
    with forked_rng(0):
        x = 1000 + 50 * torch.randn(500, 3)
    x[:, 2] = 7.0
    gan.initialise(x)
    assert bool(gan.initialised)
    draws = gan.sample(200, seed=0)
    assert bool((draws[:, :2].mean(0) - 1000).abs().max() < 100)
    assert bool((draws[:, 2] - 7).abs().max() < 5)
    assert float(gan.critic(x).detach().abs().max()) < 10


def test_the_start_leaves_a_sigmoid_alone() -> None:
    gan = make((1, 2, 2), output="sigmoid")
    before = gan.state_dict()
    with forked_rng(0):
        gan.initialise(torch.rand(9, 1, 2, 2))
    after = gan.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before if k != "initialised")
    torch.testing.assert_close(gan.critic.loc, torch.full((1, 2, 2), 0.5))


@pytest.mark.parametrize("architecture", ["mlp", "conv"])
def test_context_reaches_both_players(architecture: Any) -> None:
    gan = make((1, 8, 8), architecture=architecture, context_dim=3)
    labels = torch.arange(6) % 3
    z = torch.zeros(6, 4)
    made = gan.decode(z, labels)
    logits = gan.critic(torch.zeros(6, 1, 8, 8), labels)
    assert len(made[:3].flatten(1).unique(dim=0)) == 3
    assert len(logits[:3].unique()) == 3
    torch.testing.assert_close(made[3:], made[:3])
    assert gan.sample(6, context=labels, seed=0).shape == (6, 1, 8, 8)
    torch.testing.assert_close(gan.decode(z, nn.functional.one_hot(labels, 3).float()), made)


# -- the networks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spectral_norm", [False, True])
@pytest.mark.parametrize("architecture", ["mlp", "conv"])
@pytest.mark.parametrize("training", [False, True])
def test_the_critic_judges_each_datum_alone(architecture: Any, spectral_norm: bool, training: bool) -> None:
    gan = make((1, 8, 8), architecture=architecture, spectral_norm=spectral_norm).train(training).double()
    with forked_rng(0):
        x = torch.randn(6, 1, 8, 8, dtype=torch.float64)
    if spectral_norm:
        gan.eval()  # in training, each pass refines the singular vectors
    torch.testing.assert_close(gan.critic(x)[2:3], gan.critic(x[2:3]))


@pytest.mark.parametrize("architecture", ["mlp", "conv"])
def test_the_networks_take_more_leading_dimensions(architecture: Any) -> None:
    gan = make((1, 5, 7), architecture=architecture, context_dim=2)
    with forked_rng(0):
        z = torch.randn(3, 2, 4)
    labels = torch.tensor([0, 1])
    x = gan.generator(z, labels)
    assert x.shape == (3, 2, 1, 5, 7)
    torch.testing.assert_close(x[1], gan.decode(z[1], labels))
    torch.testing.assert_close(gan.critic(x, labels)[1], gan.critic(x[1], labels))


def test_spectral_norm_bounds_each_layer() -> None:
    gan = make((6,), hidden=(16, 16), spectral_norm=True)
    for _ in range(200):
        gan.critic(torch.zeros(2, 6))
    layers = [m for m in gan.critic.modules() if isinstance(m, nn.Linear)]
    for layer in layers:
        torch.testing.assert_close(torch.linalg.matrix_norm(layer.weight, 2), torch.tensor(1.0))
    with forked_rng(0):
        a, b = torch.randn(2, 500, 6)
    assert bool(((gan.critic(a) - gan.critic(b)).abs() <= (a - b).norm(dim=-1) * 1.001).all())


@pytest.mark.parametrize("architecture", ["mlp", "conv"])
@pytest.mark.parametrize("loss", ["non_saturating", "wgan_gp"])
def test_the_game_moves_every_parameter(architecture: Any, loss: Any) -> None:
    gan = make((1, 8, 8), architecture=architecture, loss=loss, r1=0.1, context_dim=2)
    with forked_rng(0):
        x = torch.rand(8, 1, 8, 8)
        gan.default_objective().loss(gan.model, gan.guide, x, context=torch.arange(8) % 2).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in gan.parameters())


@pytest.mark.parametrize("architecture", ["mlp", "conv"])
@pytest.mark.parametrize("loss", get_args(Loss))
def test_the_contract_holds_in_every_game(architecture: Any, loss: Any) -> None:
    options = {"architecture": architecture, "loss": loss, "latent_dim": 2, "hidden": (16,), "channels": 2}
    # While no score is beyond a margin, the constant of a hinge critic has slopes that cancel.
    check_contract(lambda: GAN((1, 5, 5), **options), skip=("gradients",) if loss == "hinge" else ())


@pytest.mark.parametrize("architecture", ["mlp", "conv"])
def test_float64_and_the_meta_device(architecture: Any) -> None:
    gan = make((1, 8, 8), architecture=architecture, context_dim=2).double()
    assert gan.sample(2, torch.arange(2), seed=0).dtype == torch.float64
    # Pyro's validation reads values, which meta tensors have not.
    with torch.device("meta"), pyro.validation_enabled(False):
        shadow = GAN((1, 8, 8), architecture=architecture, output="sigmoid", r1=0.1)
        loss = shadow.default_objective().loss(shadow.model, shadow.guide, torch.zeros(4, 1, 8, 8))
        assert shadow.sample(3).shape == (3, 1, 8, 8)
    assert loss.device.type == "meta"


@pytest.mark.cuda
def test_the_game_on_cuda() -> None:
    gan = make((1, 8, 8), architecture="conv", loss="wgan_gp").to("cuda")
    with forked_rng(0, "cuda"):
        loss = gan.default_objective().loss(gan.model, gan.guide, torch.zeros(4, 1, 8, 8, device="cuda"))
    loss.backward()
    assert gan.sample(3, seed=0).device.type == "cuda"
    assert all(p.grad is not None for p in gan.parameters())


def test_a_state_dict_and_a_pickle_carry_everything() -> None:
    gan, other = make(), make(latent_dim=4)
    with forked_rng(5):
        gan.initialise(3 + torch.randn(20, 3))
        for p in gan.parameters():
            p.data.add_(torch.randn_like(p))
    other.load_state_dict(gan.state_dict())
    copy = pickle.loads(pickle.dumps(gan))
    x = torch.zeros(2, 3)
    for twin in (other, copy):
        assert torch.equal(twin.sample(5, seed=0), gan.sample(5, seed=0))
        assert torch.equal(twin.critic(x), gan.critic(x))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"architecture": "cnn"}, ConfigError, "architecture: expected one of mlp, conv, got 'cnn'"),
        ({"output": "tanh"}, ConfigError, "output: expected one of identity, sigmoid, got 'tanh'"),
        ({"latent_dim": 0}, ConfigError, "latent_dim: expected an integer of 1 or more, got 0"),
        ({"context_dim": -1}, ConfigError, "context_dim: expected an integer of 0 or more, got -1"),
        ({"loss": "lsgan"}, ConfigError, "loss: expected one of"),
        ({"architecture": "conv"}, ShapeError, r"event_shape: convolutions expect \(C, H, W\)"),
    ],
)
def test_arguments_that_make_no_sense(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(**options)


def test_convolutions_need_a_layer_after_them() -> None:
    with pytest.raises(ConfigError, match="critic_hidden: convolutions need one width or more"):
        make((1, 8, 8), architecture="conv", critic_hidden=())


def test_inputs_that_do_not_fit() -> None:
    gan = make()
    with pytest.raises(ShapeError, match=r"z: expected shape \(N, 4\), got \(2, 3\)"):
        gan.decode(torch.zeros(2, 3))
    with pytest.raises(CapabilityError, match="this GAN is unconditional"):
        gan.decode(torch.zeros(2, 4), torch.zeros(2).long())
    with pytest.raises(ShapeError, match="x: GAN expects"):
        gan.initialise(torch.zeros(2, 4))
    with pytest.raises(DataError, match="x: "):
        gan.initialise(torch.full((2, 3), torch.nan))


# -- the registered family -------------------------------------------------------------------------


def test_the_family_builds_for_its_values() -> None:
    with forked_rng(0):
        digits = FAMILY.build(torch.Size((1, 8, 8)), grid(17), 1437)
        photos = FAMILY.build(torch.Size((3, 32, 32)), grid(256), 100)
        table = FAMILY.build(torch.Size((5,)), REAL, 100)
        assert FAMILY.conditional_example is not None
        assert FAMILY.conditional_example().context_dim == 3
    assert [m.config["architecture"] for m in (digits, photos, table)] == ["mlp", "conv", "mlp"]
    assert [m.config["output"] for m in (digits, photos, table)] == ["sigmoid", "sigmoid", "identity"]
    assert FAMILY.density is None
    pickle.dumps(FAMILY.fit_options)


def check_digits(x: Tensor, images: Tensor, labels: Any) -> None:
    """All ten classes, each at least 3%, told apart with confidence, and as varied as the data."""
    from sklearn.linear_model import LogisticRegression

    classifier = LogisticRegression(max_iter=2000).fit(images.flatten(1).numpy(), labels)
    probabilities = torch.as_tensor(classifier.predict_proba(x.flatten(1).numpy()))
    shares = probabilities.argmax(-1).bincount(minlength=10) / len(x)
    assert bool((shares > 0.03).all()), f"classes {shares}"
    assert float(probabilities.max(-1).values.mean()) > 0.7, "blurred"
    assert 0.8 < float(x.var(0).sum() / images.var(0).sum()) < 1.25, "as varied as the data"


@pytest.mark.slow
def test_it_learns_all_ten_digits() -> None:
    from sklearn.datasets import load_digits

    from ppgen.datasets.split import Split
    from ppgen.inference.svi import fit

    digits = load_digits()
    images = torch.tensor(digits.images[:1437] / 16, dtype=torch.float32)[:, None]
    with forked_rng(0):
        gan = FAMILY.build(torch.Size((1, 8, 8)), grid(17), 1437)
    with pytest.raises(AssertionError, match="classes"):
        check_digits(gan.sample(1437, seed=1), images, digits.target[:1437])
    result = fit(gan, Split(images, values=grid(17)), **FAMILY.fit_options, progress=False, device="cpu")
    assert result.ok, result.warnings
    assert {"critic_loss", "generator_loss", "critic_accuracy"} <= result.history[-1].keys()
    check_digits(gan.sample(1437, seed=1), images, digits.target[:1437])
