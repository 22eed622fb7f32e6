"""Linear-chain CRFs: all label paths, feature expectations, autograd, ragged lengths, noisy digits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import ppgen
from ppgen import datasets
from ppgen.contract import GenerativeModel
from ppgen.datasets.split import Split
from ppgen.distributions.linear_chain import LinearChain
from ppgen.errors import CapabilityError, ConfigError, DataError, ShapeError
from ppgen.inference import PenalisedLikelihood
from ppgen.models.hidden_markov import HiddenMarkov
from ppgen.models.linear_chain_crf import LinearChainCRF
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_mean

T, K, F = 4, 3, 2


@pytest.fixture(autouse=True)
def _rng() -> Iterator[None]:
    with forked_rng(0):
        yield


def crf(network: bool = False) -> LinearChainCRF:
    """A float64 model with weights at random."""
    net = nn.Sequential(nn.Linear(F, 5), nn.Tanh(), nn.Linear(5, K)) if network else None
    model = LinearChainCRF((T,), num_labels=K, num_features=F, network=net).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def features(num: int = 3) -> Tensor:
    return torch.randn(num, T, F, dtype=torch.float64)


def paths(length: int = T) -> Tensor:
    """All label sequences, (K^length, T), NaN beyond the end."""
    every = torch.tensor(list(itertools.product(range(K), repeat=length)), dtype=torch.float64)
    return torch.cat([every, every.new_full((len(every), T - length), math.nan)], 1)


def weight(model: LinearChainCRF, labels: Tensor, f: Tensor) -> float:
    """The exponent of one label sequence, term by term."""
    y = [int(v) for v in labels if not math.isnan(float(v))]
    u = model.network(f) if model.network is not None else f @ model.weights.T + model.biases
    total = float(model.first[y[0]] + model.last[y[-1]])
    total += sum(float(u[t, k]) for t, k in enumerate(y))
    return total + sum(float(model.transitions[i, j]) for i, j in itertools.pairwise(y))


def enumerated(model: LinearChainCRF, f: Tensor, length: int = T) -> Tensor:
    """Log-probabilities of all paths."""
    with torch.no_grad():
        weights = [weight(model, path, f[:length]) for path in paths(length)]
    return torch.tensor(weights, dtype=torch.float64).log_softmax(0)


@pytest.mark.parametrize("network", [False, True])
@pytest.mark.parametrize("length", [1, 3, T])
def test_all_label_paths(network: bool, length: int) -> None:
    model, f = crf(network), features(1)[0]
    f[length:] = math.nan
    every = paths(length)
    expected = enumerated(model, f, length)
    found = model.log_likelihood(every, f.expand(len(every), T, F)).value.detach()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert float(found.exp().sum()) == pytest.approx(1, abs=1e-9)

    best, value = model.viterbi(f[None])
    assert torch.equal(best[0], every[expected.argmax()].nan_to_num(-1).long())
    assert float(value) == pytest.approx(float(expected.max()), abs=1e-9)

    marginals = model.marginals(f[None])[0]
    indicators = (every[..., None] == torch.arange(K)).double()
    torch.testing.assert_close(marginals, (expected.exp()[:, None, None] * indicators).sum(0))

    draws = model.sample(20_000, f.expand(20_000, T, F), seed=1)
    same = (draws.nan_to_num(-1)[:, None] == every.nan_to_num(-1)).all(-1).double()
    often = expected.exp() > 1e-3
    assert_mean(same[:, often], expected.exp()[often])
    with torch.no_grad():
        model.last.add_(torch.tensor([2.0, 0.0, -2.0], dtype=torch.float64))
    with pytest.raises(AssertionError):
        assert_mean(same[:, often], enumerated(model, f, length).exp()[often])


def test_the_gradient_is_observed_minus_expected_features() -> None:
    model, f = crf(), features()
    labels = paths()[[5, 40, 77]]
    value = model.log_likelihood(labels, f).value.sum()
    gradient = torch.autograd.grad(value, [model.weights, model.transitions, model.first])
    observed = (labels[..., None] == torch.arange(K)).double()
    expected = model.marginals(f)
    torch.testing.assert_close(gradient[0], torch.einsum("ntk,ntf->kf", observed - expected, f))
    torch.testing.assert_close(gradient[2], (observed - expected)[:, 0].sum(0))
    steps = torch.zeros(K, K, dtype=torch.float64)
    for n in range(3):
        chances = enumerated(model, f[n]).exp()
        for path, chance in zip([labels[n], *paths()], [1.0, *(-chances).tolist()], strict=True):
            for i, j in itertools.pairwise(path.long().tolist()):
                steps[i, j] += chance
    torch.testing.assert_close(gradient[1], steps)


def test_the_gradient_is_that_of_the_enumeration() -> None:
    model, f, label = crf(network=True), features(1), 17

    def by_enumeration() -> Tensor:
        assert model.network is not None
        u, every = model.network(f[0]), paths().long()
        weights = u[torch.arange(T), every].sum(-1) + model.first[every[:, 0]] + model.last[every[:, -1]]
        weights = weights + model.transitions[every[:, :-1], every[:, 1:]].sum(-1)
        return weights.log_softmax(0)[label]

    parameters = list(model.parameters())
    ours = torch.autograd.grad(model.log_likelihood(paths()[[label]], f).value.sum(), parameters)
    for found, expected in zip(ours, torch.autograd.grad(by_enumeration(), parameters), strict=True):
        torch.testing.assert_close(found, expected)


def test_unknown_labels_are_summed_out_and_drawn() -> None:
    model, f = crf(), features(1)
    partial = torch.tensor([[2.0, math.nan, 0.0, math.nan]], dtype=torch.float64)
    every, chances = paths(), enumerated(model, f[0])
    agree = (every[:, 0] == 2) & (every[:, 2] == 0)
    value = model.log_likelihood(partial, f).value.detach()
    torch.testing.assert_close(value[0], chances[agree].logsumexp(0))
    drawn = model.condition(partial, ~partial.isnan(), 20_000, context=f, seed=2)[:, 0]
    same = (drawn[:, None] == every[agree]).all(-1).double()
    assert_mean(same, chances[agree].softmax(0))
    with pytest.raises(AssertionError):
        assert_mean(same, chances[agree].softmax(0).flip(0))


def test_features_come_in_many_forms() -> None:
    model = crf()
    symbols = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1]])
    one_hot = nn.functional.one_hot(symbols, F).double()
    labels = paths()[[3, 50]]
    expected = model.log_likelihood(labels, one_hot).value
    assert torch.equal(model.log_likelihood(labels, symbols).value, expected)
    assert torch.equal(model.log_likelihood(labels[1:], torch.tensor([1])).value, expected[1:])
    assert torch.equal(model.log_likelihood(labels[1:], one_hot[1:, 0]).value, expected[1:])


def test_the_posterior_of_a_hidden_markov_model_is_such_a_chain() -> None:
    hmm = HiddenMarkov((T, 2), num_states=K, emission="gaussian").double()
    x = torch.randn(2, T, 2, dtype=torch.float64)
    x[1, 3:] = math.nan
    posterior = LinearChain(*hmm.distribution().potentials(x))
    torch.testing.assert_close(posterior.marginals(), hmm.smooth(x))
    torch.testing.assert_close(posterior.log_partition(), hmm.log_likelihood(x).value)
    path, joint = hmm.viterbi(x)
    best, value = posterior.likeliest()
    assert torch.equal(path, best)
    torch.testing.assert_close(value, joint - hmm.log_likelihood(x).value)
    torch.testing.assert_close(posterior.log_prob(best.double().masked_fill(best < 0, math.nan)), value)


def test_transitions_that_change_with_time() -> None:
    unary, pairwise = torch.randn(2, T, K).double(), torch.randn(2, T - 1, K, K).double()
    chain = LinearChain(unary, pairwise)
    every = paths()[:, None].expand(-1, 2, -1)
    log_prob = chain.log_prob(every)
    torch.testing.assert_close(log_prob.logsumexp(0), torch.zeros(2).double(), atol=1e-10, rtol=0)
    y = every[:, 1].long()
    scores = unary[1][torch.arange(T), y].sum(-1) + pairwise[1][torch.arange(T - 1), y[:, :-1], y[:, 1:]].sum(
        -1
    )
    torch.testing.assert_close(log_prob[:, 1], scores.log_softmax(0))


def test_fit_ends_at_the_maximum() -> None:
    truth, f = crf(), features(300)
    f[::3, 2:] = math.nan
    labels = truth.sample(300, f, seed=3)
    model = LinearChainCRF((T,), num_labels=K, num_features=F, penalty=0.5).double()
    result = ppgen.fit(model, (labels, f), progress=False, device="cpu")
    assert result.ok
    assert result.stopped == "finished"
    assert result.epochs < 100  # of 200: it ends where nothing is left to gain
    loss = PenalisedLikelihood().loss(model.model, model.guide, labels, f)
    for gradient in torch.autograd.grad(loss, list(model.parameters())):
        assert float(gradient.abs().max()) < 1e-4
    with torch.no_grad():
        assert float(loss) < float(PenalisedLikelihood().loss(truth.model, truth.guide, labels, f))
    shrunk = LinearChainCRF((T,), num_labels=K, num_features=F, penalty=50.0).double()
    ppgen.fit(shrunk, (labels, f), progress=False, device="cpu", epochs=30)
    assert float(shrunk.log_prior().detach()) / 50 > float(model.log_prior().detach()) / 0.5


def noisy_digits(split: Split) -> tuple[Tensor, Tensor]:
    """Which pixels are ink, row by row, and what is seen of them: a noisy grey value, and its square."""
    ink = (split.x[:, 0] >= 0.5).to(split.x.dtype).flatten(0, 1)
    with forked_rng(4):
        grey = ink + 0.8 * torch.randn(ink.shape)
    return ink, torch.stack([grey, grey.square()], -1)


def test_digits_are_segmented_from_noise() -> None:
    digits = datasets.load("digits")
    (labels, seen), (test_labels, test_seen) = (
        noisy_digits(split) for split in (digits.train.take(slice(0, 200)), digits.test)
    )
    wrong, bits = {}, {}
    for name, frozen in (("chain", False), ("independent", True)):
        model = LinearChainCRF((8,), num_labels=2, num_features=2)
        if frozen:  # a logistic regression: no label knows of its neighbours
            model.transitions.requires_grad_(False)
        ppgen.fit(model, (labels, seen), progress=False, device="cpu", epochs=60)
        found = model.marginals(test_seen).argmax(-1)
        wrong[name] = float((found != test_labels).double().mean())
        bits[name] = -float(model.log_likelihood(test_labels, test_seen).value.detach().mean()) / 8
    assert wrong["chain"] < 0.9 * wrong["independent"]
    assert bits["chain"] < bits["independent"]


def test_a_tagger_of_ragged_sequences() -> None:
    """Labels and features of each sequence's own length go in as two lists."""
    with forked_rng(1):
        seen = [torch.randn(3 + n % 6, 2) for n in range(80)]
    tags = [(each[:, 0] > 0).long() for each in seen]
    data = datasets.sequences(tags, seen, levels=2, validation=10, test=20)
    model = LinearChainCRF(data.event_shape, num_labels=2, num_features=2, on_grid=True, penalty=0.1)
    ppgen.fit(model, data.train, validation=data.validation, progress=False, device="cpu")
    assert data.test.y is not None
    path, _ = model.viterbi(data.test.y)
    there = path >= 0
    assert torch.equal(there, ~data.test.x.isnan())
    assert float((path[there] == data.test.x[there]).float().mean()) > 0.9
    assert torch.equal(model.marginals(data.test.y).sum(-1) > 0.5, there)


def test_bad_input() -> None:
    for name, options in (
        ("num_labels", {"num_labels": 1, "num_features": 2}),
        ("num_features", {"num_labels": 2, "num_features": 0}),
        ("penalty", {"num_labels": 2, "num_features": 2, "penalty": -1.0}),
        ("penalty", {"num_labels": 2, "num_features": 2, "penalty": 1.0, "network": nn.Linear(2, 2)}),
    ):
        with pytest.raises(ConfigError, match=name):
            LinearChainCRF((T,), **options)
    model, f = crf(), features()
    labels = paths()[:3]
    with pytest.raises(ShapeError, match="context"):
        model.log_likelihood(labels)
    for wrong in (f[:, :2], f[..., :1], torch.zeros(3, T + 1, dtype=torch.int64)):
        with pytest.raises(ShapeError, match="takes features"):
            model.viterbi(wrong)
    with pytest.raises(DataError, match="labels in"):
        model.viterbi(torch.full((3, T), F))
    with pytest.raises(DataError, match="level numbers 0 to 2"):
        model.log_likelihood(labels + 1, f)
    with pytest.raises(ShapeError, match="for each of 3"):
        model.log_likelihood(labels, f[:2])
    gap = f.clone()
    gap[1, 1] = math.nan
    with pytest.raises(DataError, match="sequence 1 are NaN at step 1"):
        model.marginals(gap)
    gap[1, 1] = math.inf
    with pytest.raises(DataError, match="sequence 1 are infinite at step 1"):
        model.viterbi(gap)
    ended = f.clone()
    ended[2, 3:] = math.nan
    with pytest.raises(DataError, match="sequence 2 has labels after step 3"):
        model.log_likelihood(labels, ended)
    unfit = LinearChainCRF((T,), num_labels=K, num_features=F, network=nn.Linear(F, K + 1)).double()
    with pytest.raises(ShapeError, match="network"):
        unfit.viterbi(f)


def test_the_objective_wants_a_likelihood_with_a_prior() -> None:
    class Bare(GenerativeModel):
        pass

    with pytest.raises(CapabilityError, match="PenalisedLikelihood"):
        PenalisedLikelihood().loss(Bare((2,)).model, lambda: None, torch.zeros(1, 2))
