"""Hidden Markov models: likelihood and EM iteration against hmmlearn, and the likelihood against Pyro.

32 sequences of 200 symbols out of 20, 8 states, float32 on our side; hmmlearn works in float64, with its
scaled recursion, which is its quick one. Our EM iteration is the family's ``em_step``, hmmlearn's is ``fit``
with one iteration, of both chain and emissions. Pyro's are ``TraceEnum_ELBO`` on the program that has each
state as a site, and the ``DiscreteHMM`` distribution. A chain of vectors, 4 latent and 2 observed
coordinates, 2000 steps, stands beside Pyro's ``GaussianHMM``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import interleaved

_CASE = "K=8 V=20, 32x200"
_STATES, _SYMBOLS, _STEPS, _SEQUENCES = 8, 20, 200, 32


def run() -> list[dict[str, Any]]:
    """Milliseconds a call, the median over rounds, on one thread."""
    from pyro.infer import TraceEnum_ELBO
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, x = _model()
            peer, symbols = _hmmlearn(model, x)
            lengths = [_STEPS] * _SEQUENCES

            def likelihood() -> Tensor:
                with torch.no_grad():
                    value: Tensor = model.log_likelihood(x).value
                return value

            _agree(float(likelihood().sum()), peer.score(symbols, lengths), "hmmlearn")
            discrete, indices = _discrete_hmm(model, x)
            elbo = TraceEnum_ELBO(max_plate_nesting=1)

            def enumerated() -> float:
                with torch.no_grad():
                    return float(elbo.loss(model.path_model, _no_guide, x))

            _agree(float(likelihood().sum()), -enumerated(), "TraceEnum_ELBO")
            _agree(float(likelihood().sum()), float(discrete(indices)), "DiscreteHMM")

            def scored() -> float:
                return float(peer.score(symbols, lengths))

            def refitted() -> Any:
                return peer.fit(symbols, lengths)

            return [
                _row("forward", likelihood, scored, "hmmlearn", 1.0, 10),
                _row("EM iteration", lambda: model.em_step(x), refitted, "hmmlearn", 1.0, 5),
                _row("forward", likelihood, enumerated, "pyro TraceEnum_ELBO", 1 / 100, 1),
                _row("forward", likelihood, lambda: discrete(indices), "pyro DiscreteHMM", None, 3),
                _kalman(),
            ]
    finally:
        torch.set_num_threads(threads)


def _model() -> tuple[Any, Tensor]:
    from ppgen.models import HiddenMarkov

    model = HiddenMarkov(
        (_STEPS,), num_states=_STATES, emission="categorical", levels=_SYMBOLS, smoothing=0.0
    )
    return model, model.sample(_SEQUENCES, seed=0)


def _kalman() -> dict[str, Any]:
    from ppgen.models import LinearGaussianStateSpace

    model = LinearGaussianStateSpace((2000, 2), latent_dim=4).requires_grad_(False)
    x = model.sample(1, seed=0)
    peer = model.gaussian_hmm()
    _agree(float(model.log_likelihood(x).value), float(peer.log_prob(x)), "GaussianHMM")
    return _row(
        "likelihood",
        lambda: model.log_likelihood(x),
        lambda: peer.log_prob(x),
        "pyro GaussianHMM",
        None,
        1,
        case="Kalman L=4 D=2, 1x2000",
    )


def _hmmlearn(model: Any, x: Tensor) -> tuple[Any, Any]:
    from hmmlearn.hmm import CategoricalHMM

    logging.getLogger("hmmlearn").setLevel(logging.ERROR)  # it remarks on one iteration only
    peer = CategoricalHMM(_STATES, n_iter=1, init_params="", implementation="scaling")
    peer.n_features = _SYMBOLS
    tables = (p.detach().double() for p in (model.initial, model.transitions, model.emission.probs[:, 0]))
    peer.startprob_, peer.transmat_, peer.emissionprob_ = (
        (p / p.sum(-1, keepdim=True)).numpy() for p in tables
    )
    return peer, model.support.indices(x).reshape(-1, 1).numpy()


def _discrete_hmm(model: Any, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Pyro's class has a transition before the first step: ours goes to the initial state from anywhere."""
    import pyro.distributions as dist

    symbols = dist.Categorical(logits=model.emission.logits.detach()[:, 0])
    first = model.initial_logits.detach().expand(1, _STATES, _STATES)
    onward = model.transition_logits.detach().expand(_STEPS - 1, -1, -1)
    peer = dist.DiscreteHMM(torch.zeros(_STATES), torch.cat([first, onward]), symbols)
    return lambda indices: peer.log_prob(indices).sum(), model.support.indices(x)


def _no_guide(*args: Any) -> None:
    """Nothing is guessed: all states are summed out."""


def _agree(ours: float, theirs: float, peer: str) -> None:
    if not abs(ours - theirs) < 1e-4 * abs(theirs):
        raise ValueError(f"ours is {ours}, that of {peer} {theirs}: not the same number is measured")


def _row(
    name: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    peer: str,
    target: float | None,
    inner: int,
    *,
    case: str = _CASE,
) -> dict[str, Any]:
    ours_ms, peer_ms = interleaved(ours, theirs, inner=inner)
    return {
        "benchmark": "hmm",
        "case": f"{name}, {case}",
        "ours_ms": ours_ms,
        "peer_ms": peer_ms,
        "peer": peer,
        "ratio": ours_ms / peer_ms,
        "target": target,
    }
