"""The adversarial game against closed forms: losses, gradients, turns and resumption."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pyro.infer import SVI
from pyro.optim.optim import PyroOptim
from torch import Tensor, nn
from torch.func import functional_call, hessian

from ppgen.contract import GenerativeModel
from ppgen.errors import CapabilityError, ConfigError, ShapeError
from ppgen.inference.objectives.adversarial import Adversarial, AdversarialStepper, gradient_penalty
from ppgen.inference.objectives.base import Program, StepOptions
from ppgen.models.gan import GAN
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_close_to, assert_mean

LOSSES = ("non_saturating", "hinge", "wgan_gp")


def line_gan(shift: float = 0.7, slope: float = 1.0) -> GAN:
    """Build x = slope z + shift exactly: x ~ N(shift, slope^2); the critic is linear, D(x) = a x + c."""
    with forked_rng(0):
        gan = GAN((1,), latent_dim=1, hidden=()).double()
    weight, bias = gan.generator.parameters()
    nn.init.constant_(weight, slope)
    nn.init.constant_(bias, shift)
    return gan


def small_gan(**options: Any) -> GAN:
    with forked_rng(1):
        return GAN((2,), latent_dim=2, hidden=(8,), **options)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-2, betas=(0.5, 0.9))


def make_stepper(
    gan: GAN,
    objective: Adversarial,
    optimizer: Callable[[Any], torch.optim.Optimizer] = adam,
    clip_norm: float | None = None,
) -> AdversarialStepper:
    return objective.stepper(gan.model, gan.guide, StepOptions(list(gan.parameters()), optimizer, clip_norm))


def snapshot(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(before: list[Tensor], module: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


# -- values ----------------------------------------------------------------------------------


def linear_critic(weight: Tensor, bias: float = 0.0) -> Callable[[Tensor, Tensor | None], Tensor]:
    return lambda x, context: x.flatten(1) @ weight + bias


REAL = torch.tensor([[2.0], [-1.0]], dtype=torch.float64)
FAKE = torch.tensor([[0.5], [3.0]], dtype=torch.float64)
ONE = torch.ones(1, dtype=torch.float64)


def test_losses_on_logits_worked_by_hand() -> None:
    critic = linear_critic(ONE)

    def softplus(t: float) -> float:
        return math.log1p(math.exp(t))

    game = Adversarial("non_saturating")
    loss, figures = game.critic_loss(critic, REAL, FAKE)
    assert float(loss) == pytest.approx(
        (softplus(-2.0) + softplus(1.0)) / 2 + (softplus(0.5) + softplus(3.0)) / 2
    )
    assert float(game.generator_loss(critic, FAKE)) == pytest.approx((softplus(-0.5) + softplus(-3.0)) / 2)
    assert float(figures["critic_accuracy"]) == 0.25  # one of four: the datum at 2

    game = Adversarial("hinge")
    loss, _ = game.critic_loss(critic, REAL, FAKE)
    assert float(loss) == pytest.approx((0.0 + 2.0) / 2 + (1.5 + 4.0) / 2)
    assert float(game.generator_loss(critic, FAKE)) == pytest.approx(-1.75)

    game = Adversarial("wgan_gp")
    with forked_rng(0):
        loss, figures = game.critic_loss(critic, REAL, FAKE)
    assert float(loss) == pytest.approx(1.75 - 0.5)  # a slope of one costs no penalty
    assert float(figures["wasserstein"]) == pytest.approx(0.5 - 1.75)
    assert float(game.generator_loss(critic, FAKE)) == pytest.approx(-1.75)


@pytest.mark.parametrize("shape", [(5,), (1, 4, 4)])
def test_the_gradient_penalty_of_a_linear_critic_is_exact(shape: tuple[int, ...]) -> None:
    with forked_rng(0):
        x, fakes = torch.randn(2, 7, *shape, dtype=torch.float64)
        weight = torch.randn(x[0].numel(), dtype=torch.float64, requires_grad=True)
        penalty = gradient_penalty(linear_critic(weight), x, fakes)
    norm = weight.detach().norm()
    assert float(penalty.detach()) == pytest.approx(float((norm - 1) ** 2), rel=1e-12)
    (gradient,) = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close(gradient, 2 * (norm - 1) * weight.detach() / norm)


def test_the_penalty_is_weighted_and_added() -> None:
    with forked_rng(0):
        loss, figures = Adversarial("wgan_gp", penalty=3.0).critic_loss(linear_critic(4 * ONE), REAL, FAKE)
    assert float(figures["gradient_penalty"]) == pytest.approx(9.0)
    assert float(loss) == pytest.approx(4 * (1.75 - 0.5) + 3.0 * 9.0)


def test_the_penalty_looks_between_data_and_fakes() -> None:
    seen: list[Tensor] = []

    def critic(x: Tensor, context: Tensor | None) -> Tensor:
        seen.append(x.detach())
        return (x**2).sum(-1)

    x, fakes = torch.zeros(1000, 2, dtype=torch.float64), torch.tensor([[1.0, 2.0]]).double().expand(1000, 2)
    with forked_rng(0):
        gradient_penalty(critic, x, fakes)
    torch.testing.assert_close(seen[0][:, 1], 2 * seen[0][:, 0])  # on the line
    assert_mean(seen[0][:, 0], 0.5, "uniform along the line")
    assert_mean(seen[0][:, 0] ** 2, 1 / 3, "uniform along the line")


@pytest.mark.parametrize("loss", LOSSES)
def test_r1_adds_half_the_squared_slope_at_the_data(loss: Any) -> None:
    critic = linear_critic(4 * ONE)
    with forked_rng(0):
        plain, _ = Adversarial(loss).critic_loss(critic, REAL, FAKE)
    with forked_rng(0):
        regular, figures = Adversarial(loss, r1=0.5).critic_loss(critic, REAL, FAKE)
    assert float(regular - plain) == pytest.approx(0.25 * 16)
    assert float(figures["squared_slope"]) == pytest.approx(16)


def test_a_flat_critic_has_a_penalty_and_a_finite_gradient() -> None:
    weight = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    with forked_rng(0):
        penalty = gradient_penalty(
            linear_critic(weight), torch.randn(4, 3).double(), torch.zeros(4, 3).double()
        )
    (gradient,) = torch.autograd.grad(penalty, weight)
    assert float(penalty.detach()) == pytest.approx(1.0, abs=1e-5)
    assert bool(torch.isfinite(gradient).all())


# -- the optimal critic ------------------------------------------------------------------------


def check_optimal_critic(objective: Adversarial, shift: float = 0.7, count: int = 20_000) -> None:
    r"""Train the critic alone on N(0, 1) against a generator fixed at N(m, 1).

    The optimal D is log p/q = m^2/2 - m x. With a linear critic the game is logistic
    regression, whose standard errors are the inverse Hessian of the summed loss.
    """
    gan = line_gan(shift)
    with forked_rng(3), torch.no_grad():
        x, fakes = torch.randn(count, 1, dtype=torch.float64), gan.model(num=count)
    optimizer = torch.optim.LBFGS(gan.critic.parameters(), max_iter=100, tolerance_grad=1e-10)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss, _ = objective.critic_loss(gan.critic, x, fakes)
        loss.backward()
        return loss

    optimizer.step(closure)
    names = [name for name, _ in gan.critic.named_parameters()]
    fitted = torch.cat([p.detach().flatten() for p in gan.critic.parameters()])

    def total(flat: Tensor) -> Tensor:
        values = dict(zip(names, (flat[:1, None], flat[1:]), strict=True))

        def critic(x: Tensor, context: Tensor | None) -> Tensor:
            return functional_call(gan.critic, values, (x, context))

        return objective.critic_loss(critic, x, fakes)[0] * count

    covariance = torch.linalg.inv(hessian(total)(fitted))
    grid = torch.linspace(-3, 4, 15, dtype=torch.float64)
    design = torch.stack([grid, torch.ones_like(grid)], -1)
    std_error = ((design @ covariance) * design).sum(-1).sqrt()
    logits = gan.critic(grid[:, None]).detach()
    assert_close_to(logits, shift**2 / 2 - shift * grid, std_error, "logit of the optimal critic")
    p = torch.exp(-(grid**2) / 2)
    q = torch.exp(-((grid - shift) ** 2) / 2)
    assert_close_to(logits.sigmoid(), p / (p + q), std_error / 4, "D* = p / (p + q)")


def test_the_trained_critic_is_the_density_ratio() -> None:
    check_optimal_critic(Adversarial())


class _HalfTheFakes(Adversarial):
    """A planted defect: the fakes count half, so that D tends to log 2p/q."""

    def critic_loss(self, critic: Any, x: Tensor, fakes: Tensor, context: Tensor | None = None) -> Any:
        real, fake = critic(x, context), critic(fakes, context)
        loss = nn.functional.softplus(-real).mean() + 0.5 * nn.functional.softplus(fake).mean()
        return loss, {}


def test_a_critic_with_a_wrong_weight_is_caught() -> None:
    with pytest.raises(AssertionError, match="optimal critic"):
        check_optimal_critic(_HalfTheFakes())


def check_loss_at_the_optimum(objective: Adversarial, shift: float = 1.5) -> None:
    """At D* the critic's loss is 2 log 2 - 2 JSD(p, q), here by quadrature."""
    nodes = torch.linspace(-12, 14, 20_001, dtype=torch.float64)
    log_p, log_q = (-0.5 * (nodes - m) ** 2 - 0.5 * math.log(2 * math.pi) for m in (0.0, shift))
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    integrand = 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m))
    expected = 2 * math.log(2) - 2 * float(torch.trapezoid(integrand, nodes))

    def critic(x: Tensor, context: Tensor | None) -> Tensor:
        return (shift**2 / 2 - shift * x).squeeze(-1)

    with forked_rng(5):
        x = torch.randn(2000, 1, 1, dtype=torch.float64)
        fakes = torch.randn(2000, 1, 1, dtype=torch.float64) + shift
    draws = torch.stack([objective.critic_loss(critic, a, b)[0] for a, b in zip(x, fakes, strict=True)])
    assert_mean(draws, expected, "loss of the optimal critic")


def test_the_optimal_critics_loss_is_the_jensen_shannon_divergence() -> None:
    check_loss_at_the_optimum(Adversarial())


def test_a_wrong_loss_at_the_optimum_is_caught() -> None:
    with pytest.raises(AssertionError, match="loss of the optimal critic"):
        check_loss_at_the_optimum(_HalfTheFakes())


# -- each player's gradient ---------------------------------------------------------------------


def check_players(objective: Adversarial) -> None:
    """Gradients of the joint loss on linear players, derived by hand for the non-saturating game."""
    gan = line_gan(0.7, 1.3)
    a, c = (float(p.detach()) for p in gan.critic.parameters())
    with forked_rng(2):
        x = torch.randn(50, 1, dtype=torch.float64)
    with forked_rng(4), torch.no_grad():
        fakes = gan.model(num=50)
    with forked_rng(4):
        total = objective.loss(gan.model, gan.guide, x)
    total.backward()
    z = (fakes - 0.7) / 1.3
    found = {name: float(p.grad) / 50 for name, p in gan.named_parameters() if p.grad is not None}
    fooled = torch.sigmoid(-(a * fakes + c))
    expected = {
        "generator.network.0.weight": -(fooled * a * z).mean(),
        "generator.network.0.bias": -(fooled * a).mean(),
        "critic.head.0.weight": -(torch.sigmoid(-(a * x + c)) * x).mean() + ((1 - fooled) * fakes).mean(),
        "critic.head.0.bias": -torch.sigmoid(-(a * x + c)).mean() + (1 - fooled).mean(),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert abs(found[name] - float(value)) < 1e-12, f"{name}: {found[name]} is not {float(value)}"


def test_each_player_follows_its_own_gradient() -> None:
    check_players(Adversarial())


class _GeneratorNotDetached(Adversarial):
    """A planted defect: the critic's loss moves the generator."""

    def loss(
        self,
        model: Program,
        guide: Program,
        x: Tensor,
        context: Tensor | None = None,
        *,
        num: int | None = None,
    ) -> Tensor:
        family: Any = model.__self__  # type: ignore[attr-defined]
        fakes = model(num=len(x))
        frozen = {n: p.detach() for n, p in family.critic.named_parameters()}

        def held(x: Tensor, context: Tensor | None) -> Tensor:
            return functional_call(family.critic, frozen, (x, context))

        return (self.critic_loss(family.critic, x, fakes)[0] + self.generator_loss(held, fakes)) * len(x)


class _CriticNotHeld(Adversarial):
    """A planted defect: the generator's loss moves the critic."""

    def loss(
        self,
        model: Program,
        guide: Program,
        x: Tensor,
        context: Tensor | None = None,
        *,
        num: int | None = None,
    ) -> Tensor:
        family: Any = model.__self__  # type: ignore[attr-defined]
        fakes = model(num=len(x))
        own = self.critic_loss(family.critic, x, fakes.detach())[0]
        return (own + self.generator_loss(family.critic, fakes)) * len(x)


@pytest.mark.parametrize("defect", [_GeneratorNotDetached(), _CriticNotHeld()])
def test_a_player_that_leaks_into_the_other_is_caught(defect: Adversarial) -> None:
    with pytest.raises(AssertionError, match="is not"):
        check_players(defect)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_a_total_over_the_population(loss: Any) -> None:
    gan, x = small_gan(), torch.zeros(6, 2)
    game = Adversarial(loss)
    with forked_rng(0):
        batch = game(gan.model, gan.guide, x)
    with forked_rng(0):
        population = game(gan.model, gan.guide, x, num=60)
    torch.testing.assert_close(population, 10 * batch)
    assert batch.shape == ()
    with forked_rng(0), torch.no_grad():
        assert torch.equal(game.loss(gan.model, gan.guide, x), batch.detach())
    assert game.validation_loss(gan.model, gan.guide, x) is None


@pytest.mark.parametrize("loss", LOSSES)
def test_pyro_svi_trains_both_players(loss: Any) -> None:
    gan = small_gan()
    generator, critic = snapshot(gan.generator), snapshot(gan.critic)
    optimizer = PyroOptim(torch.optim.Adam, {"lr": 1e-2})
    svi = SVI(gan.model, gan.guide, optimizer, loss=Adversarial(loss, r1=0.1))
    with forked_rng(0):
        x = torch.randn(16, 2)
        assert all(math.isfinite(svi.step(x)) for _ in range(3))
        assert math.isfinite(svi.evaluate_loss(x))
    for before, player in ((generator, gan.generator), (critic, gan.critic)):
        for old, new in zip(before, player.parameters(), strict=True):
            # The critic's last bias drops out of a difference of scores.
            drops_out = loss != "non_saturating" and new.shape == (1,)
            assert drops_out or not torch.equal(old, new)


# -- turns ---------------------------------------------------------------------------------------


def test_the_generator_plays_after_every_few_turns_of_the_critic() -> None:
    gan = small_gan()
    stepper = make_stepper(gan, Adversarial("wgan_gp", critic_steps=3))
    moved: list[tuple[bool, bool]] = []
    losses = []
    with forked_rng(0):
        for _ in range(7):
            generator, critic = snapshot(gan.generator), snapshot(gan.critic)
            figures = stepper.step(torch.randn(8, 2))
            moved.append((not same(generator, gan.generator), not same(critic, gan.critic)))
            losses.append(float(figures["generator_loss"]))
    assert [g for g, _ in moved] == [True, False, False, True, False, False, True]
    assert all(c for _, c in moved)
    assert losses[0] == losses[1] == losses[2] != losses[3]


def test_five_turns_by_default_for_wgan_gp_and_one_for_the_others() -> None:
    assert [Adversarial(loss).critic_steps for loss in ("non_saturating", "hinge", "wgan_gp")] == [1, 1, 5]


@pytest.mark.parametrize("loss", LOSSES)
def test_figures_are_means_detached_and_complete(loss: Any) -> None:
    gan = small_gan(context_dim=3)
    stepper = make_stepper(gan, Adversarial(loss, r1=0.1))
    with forked_rng(0):
        figures = stepper.step(torch.randn(9, 2), context=torch.arange(9) % 3)
    own = {"wasserstein", "gradient_penalty"} if loss == "wgan_gp" else {"critic_accuracy"}
    assert figures.keys() == {"loss", "critic_loss", "generator_loss", "squared_slope"} | own
    assert all(f.shape == () and not f.requires_grad and bool(f.isfinite()) for f in figures.values())
    torch.testing.assert_close(figures["loss"], figures["critic_loss"] + figures["generator_loss"])


def test_a_turn_leaves_no_gradient_with_the_other_player() -> None:
    gan = small_gan()
    stepper = make_stepper(
        gan, Adversarial("non_saturating", critic_steps=2), lambda p: torch.optim.SGD(p, 0.1)
    )
    with forked_rng(0):
        stepper.step(torch.randn(8, 2))
        gan.zero_grad()
        stepper.step(torch.randn(8, 2))
    assert all(p.grad is None for p in gan.generator.parameters())
    assert all(p.grad is not None for p in gan.critic.parameters())


def test_each_players_gradient_is_clipped() -> None:
    gan = line_gan(50.0)
    before = snapshot(gan)
    stepper = make_stepper(gan, Adversarial("hinge"), lambda p: torch.optim.SGD(p, 1.0), clip_norm=0.01)
    with forked_rng(0):
        stepper.step(torch.randn(8, 1, dtype=torch.float64))
    moves = [new.detach() - old for old, new in zip(before, gan.parameters(), strict=True)]
    for player in (moves[:2], moves[2:]):
        length = torch.cat([m.flatten() for m in player]).norm()
        assert 0.009 < float(length) < 0.010001


def run_steps(stepper: AdversarialStepper, seed: int, count: int) -> None:
    with forked_rng(seed):
        for _ in range(count):
            stepper.step(torch.randn(8, 2))


def check_resumption(keys: set[str]) -> None:
    """Four steps and three more give the numbers of a run that was saved in between, bit by bit."""
    whole, resumed = small_gan(), small_gan()
    first = make_stepper(whole, Adversarial("wgan_gp", critic_steps=3))
    run_steps(first, 0, 4)
    resumed.load_state_dict(whole.state_dict())
    second = make_stepper(resumed, Adversarial("wgan_gp", critic_steps=3))
    fresh = second.state_dict()
    saved = {k: v if k in keys else fresh[k] for k, v in first.state_dict().items()}
    second.load_state_dict(copy.deepcopy(saved))  # a copy, as a checkpoint makes it
    run_steps(first, 1, 3)
    run_steps(second, 1, 3)
    assert same(snapshot(whole), resumed), "the parameters differ"
    assert torch.equal(first.last_generator_loss, second.last_generator_loss), "the last loss differs"


EVERYTHING = {"critic_optimizer", "generator_optimizer", "turns", "last_generator_loss"}


def test_a_saved_game_resumes_exactly() -> None:
    check_resumption(EVERYTHING)


@pytest.mark.parametrize("lost", ["critic_optimizer", "generator_optimizer", "turns"])
def test_a_lost_part_of_the_state_is_caught(lost: str) -> None:
    with pytest.raises(AssertionError, match="differ"):
        check_resumption(EVERYTHING - {lost})


def test_the_penalty_takes_the_plain_network() -> None:
    """A compiled network cannot be differentiated twice."""
    gan = small_gan()

    def compiled(*args: Any) -> Tensor:
        raise AssertionError("the compiled network was taken")

    gan.critic._compiled_call_impl = compiled
    with pytest.raises(AssertionError, match="the compiled network was taken"):
        gan.critic(torch.zeros(3, 2))
    with forked_rng(0):
        assert bool(gradient_penalty(gan.critic, torch.ones(3, 2), torch.zeros(3, 2)).isfinite())


# -- learning ------------------------------------------------------------------------------------


def check_learns_a_gaussian(objective: Adversarial, steps: int) -> None:
    """A linear generator reaches a correlated Gaussian; its law is read off its weights.

    The players end in a circle around the truth, whose width no theory gives. Over eight seeds
    ``non_saturating`` ends after 300 steps within 0.03 of the means and 0.2 of the covariances,
    which are 1, 0.6 and 0.52; the bounds are 0.15 and 0.4. The means start at a distance of about 1.
    """
    loc, mix = torch.tensor([1.0, -1.0]), torch.tensor([[1.0, 0.0], [0.6, 0.4]])
    with forked_rng(0):
        gan = GAN((2,), latent_dim=2, hidden=(), critic_hidden=(32,))
        stepper = make_stepper(gan, objective)
        for step in range(steps):
            for optimizer in (stepper.critic_optimizer, stepper.generator_optimizer):
                optimizer.param_groups[0]["lr"] = 2e-2 * (1 - step / steps)
            stepper.step(loc + torch.randn(128, 2) @ mix.T)
    weight, bias = (p.detach() for p in gan.generator.parameters())
    assert bool(((bias - loc).abs() < 0.15).all()), f"means {bias}"
    covariance = weight @ weight.T
    assert bool(((covariance - mix @ mix.T).abs() < 0.4).all()), f"covariance {covariance}"


def test_a_gaussian_is_learnt() -> None:
    check_learns_a_gaussian(Adversarial(r1=0.1), 300)


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective", [Adversarial("hinge", r1=0.1), Adversarial("wgan_gp", critic_steps=2, penalty=1.0)]
)
def test_a_gaussian_is_learnt_in_the_other_games(objective: Adversarial) -> None:
    check_learns_a_gaussian(objective, 1500)


class _GeneratorHelpsTheCritic(Adversarial):
    """A planted defect: the generator's loss with the wrong sign."""

    def generator_loss(self, critic: Any, fakes: Tensor, context: Tensor | None = None) -> Tensor:
        return -super().generator_loss(critic, fakes, context)


def test_a_generator_that_plays_for_the_other_side_is_caught() -> None:
    with pytest.raises(AssertionError, match="means"):
        check_learns_a_gaussian(_GeneratorHelpsTheCritic(r1=0.1), 100)


# -- diagnosis and errors ---------------------------------------------------------------------


def test_mode_collapse_is_told() -> None:
    with forked_rng(0):
        x = torch.randn(100, 1, dtype=torch.float64)
        good = Adversarial().diagnose(line_gan(0.0).model, line_gan(0.0).guide, x)
        collapsed = line_gan(0.1, 1e-4)
        notes = Adversarial().diagnose(collapsed.model, collapsed.guide, x)
        few = Adversarial().diagnose(collapsed.model, collapsed.guide, x[:10])
    assert good == []
    assert few == []
    assert len(notes) == 1
    assert "of the data: mode collapse" in notes[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "lsgan"}, "loss: expected one of non_saturating, hinge, wgan_gp, got 'lsgan'"),
        ({"critic_steps": 0}, "critic_steps: expected a positive integer, got 0"),
        ({"penalty": -1.0}, "penalty: expected a weight of 0 or more, got -1.0"),
        ({"r1": -1.0}, "r1: expected a weight of 0 or more, got -1.0"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Adversarial(**options)


class _NoCritic(GenerativeModel):
    def model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, num: int | None = None
    ) -> Tensor:
        return torch.zeros(num or 1, 2)


def test_what_has_no_critic_is_refused() -> None:
    model = _NoCritic((2,))
    with pytest.raises(
        CapabilityError, match=r"needs a model with a network critic\(x, context\), _NoCritic"
    ):
        Adversarial().loss(model.model, model.guide, torch.zeros(3, 2))
    with pytest.raises(ConfigError, match="Adversarial needs the model method of a ppgen GenerativeModel"):
        Adversarial().loss(lambda x: x, lambda x: None, torch.zeros(3, 2))


def test_data_of_another_shape_are_refused() -> None:
    gan = small_gan()
    with pytest.raises(ShapeError, match=r"x: GAN expects shape \(B, 2\)"):
        Adversarial().loss(gan.model, gan.guide, torch.zeros(3, 3))
    with pytest.raises(ShapeError, match=r"x: GAN expects shape \(B, 2\)"):
        make_stepper(gan, Adversarial()).step(torch.zeros(3, 3))


def test_a_game_with_one_player_is_refused() -> None:
    gan = small_gan()
    options = StepOptions(list(gan.generator.parameters()), adam)
    with pytest.raises(ConfigError, match="0 tensors of the critic"):
        Adversarial().stepper(gan.model, gan.guide, options)
