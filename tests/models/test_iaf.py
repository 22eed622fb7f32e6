"""Inverse autoregressive flows: as posteriors under Pyro, by both ways to a density."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule
from pyro.optim import PyroOptim
from torch import Tensor, nn

from ppgen.distributions.flow import FlowDistribution
from ppgen.distributions.flow_layers import Inverted
from ppgen.models.iaf import IAF
from ppgen.nn.masked import AutoregressiveMLP
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_mean, critical_z

# A posterior that no mean-field normal fits: z ~ N(0, I), and its sum and product are seen with noise.
SEEN, NOISE = (0.8, 1.0), 0.4


def likelihood(z: Tensor) -> dist.TorchDistribution:
    return dist.Normal(torch.stack([z.sum(-1), z.prod(-1)], -1), NOISE).to_event(1)


def prior() -> dist.TorchDistribution:
    return dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)


def model(num: int) -> None:
    """``num`` copies of the story, side by side."""
    with pyro.plate("copies", num):
        z = pyro.sample("z", prior())
        pyro.sample("x", likelihood(z), obs=torch.tensor(SEEN, dtype=z.dtype).expand(num, 2))


def log_joint(z: Tensor) -> Tensor:
    return prior().log_prob(z) + likelihood(z).log_prob(torch.tensor(SEEN, dtype=z.dtype))


def log_evidence() -> float:
    """Log p(x) by the trapezoidal rule."""
    t = torch.linspace(-7, 7, 601, dtype=torch.float64)
    return float(log_joint(torch.cartesian_prod(t, t)).logsumexp(0) + 2 * math.log(14 / 600))


class Posterior(PyroModule):
    """A guide whose z is a draw of an inverse autoregressive flow.

    Args:
        transformed: by ``TransformedDistribution``, whose density inverts the draw; else by the flow's
            own pair of draw and density, one pass.
    """

    def __init__(self, transformed: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(IAF((2,), num_layers=4, hidden=(16, 16)).double().layers[1:])
        self.transformed = transformed

    def forward(self, num: int) -> Tensor:
        with pyro.plate("copies", num):
            if self.transformed:
                # Pyro's order is from the noise to the data.
                q = dist.TransformedDistribution(prior(), list(reversed(self.layers)))
                return pyro.sample("z", q)
            z, log_q = self.draw(num)
            return pyro.sample("z", dist.Delta(z, log_density=log_q, event_dim=1))

    def draw(self, num: int) -> tuple[Tensor, Tensor]:
        layers = [layer for layer in self.layers if isinstance(layer, Inverted)]
        q = FlowDistribution(layers, torch.zeros(2, dtype=torch.float64), (2,))
        return q.rsample_with_log_prob((num,))


GUIDES = pytest.mark.parametrize("transformed", [False, True], ids=["one-pass", "transformed"])


def test_both_guides_give_one_loss_and_one_gradient() -> None:
    losses, gradients = [], []
    for transformed in (False, True):
        with forked_rng(0), pyro.get_param_store().scope():
            guide = Posterior(transformed)
            loss = Trace_ELBO().differentiable_loss(model, guide, 5)
            losses.append(loss.detach())
            gradients.append(torch.autograd.grad(loss, list(guide.parameters())))
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])
    assert all(bool((g != 0).any()) for g in gradients[0][1::2])


@GUIDES
def test_svi_finds_a_bent_posterior(transformed: bool) -> None:
    num = 32
    with forked_rng(0), pyro.get_param_store().scope():
        guide = Posterior(transformed)
        svi = SVI(model, guide, PyroOptim(torch.optim.Adam, {"lr": 1e-2}), Trace_ELBO())
        losses = [svi.step(num) / num for _ in range(120)]
        with torch.no_grad():
            z, log_q = guide.draw(20_000)
    log_weights = log_joint(z) - log_q
    # Importance weights are unbiased whatever the guide; a good guide leaves them near one.
    assert_mean(log_weights.exp(), math.exp(log_evidence()), "evidence")
    gap = log_evidence() - float(log_weights.mean())
    assert gap < 0.1 * (losses[0] + log_evidence())
    with pytest.raises(AssertionError):  # twin: a density that forgets the layers
        assert_mean((log_joint(z) - prior().log_prob(z)).exp(), math.exp(log_evidence()))


# An autoencoder's story: z ~ N(0, I), x = w z + noise. Its posterior has correlated coordinates.
WEIGHTS, SPREAD = torch.tensor([[1.0], [0.9]]), 0.5


def decoder(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ WEIGHTS, SPREAD).to_event(1), obs=x)


class Amortised(PyroModule):
    """A guide for every datum at once: what an encoder makes of it is the flow's context."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(1, 8), nn.Tanh())
        self.flow = IAF((2,), num_layers=2, hidden=(16,), context_dim=8)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z, log_q = self.flow.distribution(self.encoder(x)).rsample_with_log_prob()
            pyro.sample("z", dist.Delta(z, log_density=log_q, event_dim=1))


def test_as_an_encoder_s_posterior_it_beats_every_posterior_of_independent_coordinates() -> None:
    evidence = dist.Normal(torch.zeros(1), (WEIGHTS.square().sum() + SPREAD**2).sqrt()).to_event(1)
    precision = torch.eye(2) + WEIGHTS @ WEIGHTS.T / SPREAD**2
    independent = 0.5 * float(precision.diagonal().log().sum() - precision.logdet())  # what those lose
    with forked_rng(0), pyro.get_param_store().scope():
        guide = Amortised()
        svi = SVI(decoder, guide, PyroOptim(torch.optim.Adam, {"lr": 2e-2}), Trace_ELBO())
        for _ in range(150):
            svi.step(evidence.sample((64,)))
        x = evidence.sample((4000,))
        with torch.no_grad():
            guessed = pyro.poutine.trace(guide).get_trace(x)
            story = pyro.poutine.trace(pyro.poutine.replay(decoder, guessed)).get_trace(x)
            guessed.compute_log_prob()
            story.compute_log_prob()
            bound = sum(story.nodes[site]["log_prob"] for site in ("z", "x")) - guessed.nodes["z"]["log_prob"]
            lost = evidence.log_prob(x) - bound
    std_error = float(lost.std()) / math.sqrt(len(lost))
    assert float(lost.mean()) > -critical_z() * std_error  # a bound
    assert float(lost.mean()) + critical_z() * std_error < 0.5 * independent


def test_draws_cost_no_sequential_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    with forked_rng(0):
        flow = IAF((5,), num_layers=3, hidden=(8,))

    def refuse(*_: object, **__: object) -> Tensor:
        raise AssertionError("went through the coordinates one by one")

    with monkeypatch.context() as patch:
        patch.setattr(AutoregressiveMLP, "unroll", refuse)
        with forked_rng(0):
            x, log_density = flow.distribution().rsample_with_log_prob((4,))
        assert flow.sample(4, seed=0).shape == (4, 5)
        with pytest.raises(AssertionError, match="one by one"):
            flow.log_likelihood(x)
    torch.testing.assert_close(flow.log_likelihood(x).value, log_density, rtol=1e-4, atol=1e-4)
