"""The promises of a generative model, each a check that can be run on any model.

.. code-block:: python

    from ppgen.testing import check_contract

    check_contract(lambda: MyModel((3,), hidden=(8,)))       # a tiny model, made anew by each call

or, one test a promise::

    @pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
    def test_contract(check):
        check(lambda: MyModel((3,), hidden=(8,)))

A check raises :class:`AssertionError` where the promise is broken. Statistical ones reject a
right model with probability :data:`~ppgen.testing.statistics.FALSE_ALARM_RATE`.
"""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.optim.optim import PyroOptim
from torch import Tensor

from ppgen.contract import GenerativeModel, HasDefaultObjective, HasLogLikelihood, Kind
from ppgen.errors import CapabilityError, ShapeError
from ppgen.inference.checkpoint import load_model, save_model
from ppgen.inference.objectives.elbo import ELBO
from ppgen.inference.svi import fit
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_close_to

Maker = Callable[[], GenerativeModel]
_BATCH = 12


def check_contract(make: Maker, *, skip: tuple[str, ...] = ()) -> None:
    """Run every check on models that ``make`` builds; see :data:`CHECKS`.

    Args:
        make: builds a tiny model; called several times, it must give models of one configuration.
        skip: names of checks to leave out.
    """
    for name, check in CHECKS.items():
        if name not in skip:
            check(make)


def legal_under_pyro(make: Maker) -> None:
    """Tracing, Predictive (both ways), Trace_ELBO and SVI run on the pair and leave no global state."""
    model, x, context = _start(make)
    with forked_rng(0), pyro.validation_enabled(True):
        trace: Any = poutine.trace(model.model).get_trace(None, context, num=_BATCH)
        _expect("x" in trace.nodes, "the model has no site 'x'")
        _expect(trace.nodes["x"]["value"].shape == x.shape, "generated x has another shape than data")
        for parallel in (False, True):
            drawn = Predictive(model.model, num_samples=5, parallel=parallel)(None, context, num=_BATCH)["x"]
            _expect(
                drawn.shape == (5, *x.shape), f"Predictive(parallel={parallel}) gives {tuple(drawn.shape)}"
            )
        if model.density is not None:
            vectorised = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
            for estimator in (Trace_ELBO(), vectorised):
                loss = estimator.loss(model.model, model.guide, x, context)
                _expect(math.isfinite(loss), "Trace_ELBO is not finite")
            before = _copy_of(model)
            svi = SVI(model.model, model.guide, _adam(), Trace_ELBO())
            for _ in range(3):
                svi.step(x, context)
            _expect(_changed(before, model), "pyro.infer.SVI changed no parameter")
    _expect(len(list(pyro.get_param_store().keys())) == 0, "Pyro's parameter store is no longer empty")


def shapes(make: Maker) -> None:
    """Samples have shape ``(num, *event_shape)``; x is observed in a plate of one dimension."""
    model, x, context = _start(make)
    with forked_rng(0):
        guide_trace: Any = poutine.trace(model.guide).get_trace(x, context)
        replayed = poutine.replay(model.model, trace=guide_trace)
        trace: Any = poutine.trace(replayed).get_trace(x, context)
    site = trace.nodes["x"]
    _expect(site["is_observed"], "given x, the site 'x' is not observed")
    _expect(torch.equal(site["value"], x), "given x, the site 'x' holds another value")
    _expect(site["fn"].event_shape == model.event_shape, "the event shape of 'x' is not the model's")
    _expect([f.name for f in site["cond_indep_stack"]] == ["data"], "'x' is not in the plate 'data' alone")
    try:
        model.model(x[:, None], context)
    except ShapeError:
        return
    _expect(False, "x of a wrong shape raised no ShapeError")


def batch_of_one(make: Maker) -> None:
    """One datum gives what it gives among others."""
    model, x, context = _start(make)
    one = None if context is None else context[:1]
    _expect(model.sample(1, one, seed=1).shape == (1, *model.event_shape), "one sample has another shape")
    if isinstance(model, HasLogLikelihood) and model.density in (Kind.EXACT, Kind.UNNORMALISED):
        alone = model.log_likelihood(x[:1], one).value
        among = model.log_likelihood(x, context).value[:1]
        _expect(torch.allclose(alone, among, rtol=1e-4, atol=1e-4), "a datum's density depends on its batch")


def context(make: Maker) -> None:
    """A conditional model wants context and uses it; an unconditional one refuses it."""
    model, x, context = _start(make)
    wrong = torch.zeros(len(x), 2) if context is None else None
    try:
        model.model(x, wrong)
    except (CapabilityError, ShapeError):
        pass
    else:
        _expect(False, "context given to an unconditional model, or missing from a conditional one, passes")
    if context is not None:
        _perturb(model)
        other = (context + 1) % model.context_dim
        same = torch.equal(model.sample(_BATCH, context, seed=3), model.sample(_BATCH, other, seed=3))
        _expect(not same, "samples do not depend on the context")


def seeds(make: Maker) -> None:
    """A seed repeats the draws and leaves the global generator as it was."""
    model, _, context = _start(make)
    with forked_rng(11):
        state = torch.get_rng_state()
        first, second = (model.sample(_BATCH, context, seed=5) for _ in range(2))
        _expect(torch.equal(first, second), "one seed gave two different samples")
        _expect(torch.equal(state, torch.get_rng_state()), "sample(seed=...) moved the global generator")


def state_round_trip(make: Maker) -> None:
    """``state_dict``, deepcopy, pickle, and save/load carry everything that is learnt."""
    model, x, context = _start(make)
    _perturb(model)
    if model.density is not None:
        with forked_rng(0):  # a pass under Pyro must not make the model unpicklable
            Trace_ELBO().loss(model.model, model.guide, x, context)
    with forked_rng(99):
        fresh = make().eval()
    fresh.load_state_dict(model.state_dict())
    copies = {"state_dict": fresh, "deepcopy": copy.deepcopy(model)}
    try:
        copies["pickle"] = pickle.loads(pickle.dumps(model))
    except (pickle.PicklingError, AttributeError):
        _expect(False, "the model cannot be pickled")
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder) / "model")
        copies["save/load"] = load_model(Path(folder) / "model").eval()
    expected = model.sample(_BATCH, context, seed=2)
    for name, other in copies.items():
        _expect(torch.equal(other.sample(_BATCH, context, seed=2), expected), f"{name} gives another model")


def instances_stay_apart(make: Maker) -> None:
    """Training one instance leaves another as it was."""
    model, x, context = _start(make)
    with forked_rng(1):
        other = make()
    before = _copy_of(other)
    loss = _objective(model)
    with forked_rng(0):
        first = SVI(model.model, model.guide, _adam(), loss=loss)
        second_model = _copy_of(model)
        first.step(x, context)
        _expect(_changed(second_model, model), "SVI with the default objective changed no parameter")
        _expect(not _changed(before, other), "training one instance changed another")
        second = SVI(other.model, other.guide, _adam(), loss=_objective(other))
        second.step(x, context)
        _expect(_changed(before, other), "the second instance in the process does not train")


def fresh_density_after_update(make: Maker) -> None:
    """The same tensor after a change of weights gives the density of the new weights."""
    model, x, context = _start(make)
    if not isinstance(model, HasLogLikelihood):
        return
    old = _seeded_likelihood(model, x, context)
    _perturb(model)
    new = _seeded_likelihood(model, x, context)
    fresh = copy.deepcopy(model)
    _expect(not torch.equal(old, new), "a stale density: it did not change with the weights")
    expected = _seeded_likelihood(fresh, x.clone(), context)
    _expect(torch.allclose(new, expected, rtol=1e-4, atol=1e-4), "the density is not that of the new weights")


def float64(make: Maker) -> None:
    """After ``.double()`` everything is float64, forwards and backwards."""
    model, x, context = _start(make)
    model.double()
    with forked_rng(0):
        drawn = model.sample(3, None if context is None else context[:3])
        _expect(drawn.dtype == torch.float64, f"samples are {drawn.dtype}")
        if isinstance(model, HasLogLikelihood):
            value = model.log_likelihood(x.double(), context).value
            _expect(value.dtype == torch.float64, f"log_likelihood is {value.dtype}")


def device_walk(make: Maker) -> None:
    """Everything moves with the model: to ``meta``, and to CUDA where there is one."""
    model, x, context = _start(make)
    if torch.cuda.is_available():
        _walk_to_cuda(copy.deepcopy(model), x, context)
    model.to("meta")
    elsewhere = None if context is None else context.to("meta")
    with pyro.validation_enabled(False):
        guide_trace: Any = poutine.trace(model.guide).get_trace(x.to("meta"), elsewhere)
        replayed = poutine.replay(model.model, trace=guide_trace)
        trace: Any = poutine.trace(replayed).get_trace(x.to("meta"), elsewhere)
        for name, site in trace.nodes.items():
            if site["type"] == "sample":
                _expect(
                    site["value"].device.type == "meta", f"site '{name}' stayed on {site['value'].device}"
                )
        if model.density is not None:
            log_prob = trace.nodes["x"]["fn"].log_prob(x.to("meta"))
            _expect(log_prob.device.type == "meta", "the density of x stayed on another device")


def subsampled_plate(make: Maker) -> None:
    """A batch of a population of num has its log-probability scaled by num / B, in model and guide."""
    model, x, context = _start(make)
    if model.density is None:
        return
    with torch.no_grad(), forked_rng(0):
        guide_trace: Any = poutine.trace(model.guide).get_trace(x, context)
        for program in (model.model, model.guide):
            sums = []
            for num in (None, 3 * len(x)):
                replayed = poutine.replay(program, trace=guide_trace)
                trace: Any = poutine.trace(replayed).get_trace(x, context, num=num)
                sums.append(float(trace.log_prob_sum()))
            _expect(
                math.isclose(sums[1], 3 * sums[0], rel_tol=1e-4, abs_tol=1e-3),
                f"a population of 3 batches has log-probability {sums[1]:.6g}, not 3 x {sums[0]:.6g}",
            )


def gradients(make: Maker) -> None:
    """The default objective's gradient reaches every parameter."""
    model, x, context = _start(make)
    _perturb(model)
    model.train()
    objective = _objective(model)
    reached: set[str] = set()
    with forked_rng(0):
        for _ in range(5):
            model.zero_grad()
            objective(model.model, model.guide, x, context).backward()
            reached |= {
                n for n, p in model.named_parameters() if p.grad is not None and bool((p.grad != 0).any())
            }
    missed = [n for n, p in model.named_parameters() if p.requires_grad and p.numel() and n not in reached]
    _expect(not missed, f"no gradient reaches {missed}")


def trains(make: Maker) -> None:
    """``ppgen.fit`` runs, gives finite figures, and leaves the global generator as it was."""
    model, x, context = _start(make)
    data = x if context is None else (x, context)
    with forked_rng(4):
        state = torch.get_rng_state()
        result = fit(model, data, epochs=2, batch_size=5, device="cpu", progress=False)
        _expect(torch.equal(state, torch.get_rng_state()), "fit moved the global generator")
    _expect(len(result.history) == 2, "two epochs gave another number of history rows")
    _expect(all(math.isfinite(row["loss"] or 0.0) for row in result.history), "a loss is not finite")


def sampling_agrees_with_density(make: Maker) -> None:
    """Exact densities: samples and density describe one distribution.

    On finite supports the frequency of each value meets its probability, and probabilities sum
    to one. On the reals, means of bounded functions under the samples meet the same means
    by importance sampling from a broad Student t, with the density as weight.
    """
    model, _, context = _start(make)
    if model.density is not Kind.EXACT or not isinstance(model, HasLogLikelihood):
        return
    num = 20_000
    options = _repeated(context, num)
    draws = model.sample(num, options, seed=7)
    levels = model.support.levels
    if levels is None:
        _compare_on_reals(model, draws, options)
    elif levels ** model.event_shape.numel() <= 4096:
        _compare_on_grid(model, draws, levels, context)


CHECKS: dict[str, Callable[[Maker], None]] = {
    check.__name__: check
    for check in (
        legal_under_pyro,
        shapes,
        batch_of_one,
        context,
        seeds,
        state_round_trip,
        instances_stay_apart,
        fresh_density_after_update,
        float64,
        device_walk,
        subsampled_plate,
        gradients,
        trains,
        sampling_agrees_with_density,
    )
}


# -- helpers ------------------------------------------------------------------------------


def _start(make: Maker) -> tuple[GenerativeModel, Tensor, Tensor | None]:
    """A model in evaluation mode, data that it can produce, and context where it wants one."""
    with forked_rng(0):
        model = make().eval()
    context = torch.arange(_BATCH) % model.context_dim if model.context_dim else None
    return model, model.sample(_BATCH, context, seed=0), context


def _adam() -> PyroOptim:
    return PyroOptim(torch.optim.Adam, {"lr": 1e-2})


def _expect(condition: bool, complaint: str) -> None:
    if not condition:
        raise AssertionError(complaint)


def _objective(model: GenerativeModel) -> Any:
    return model.default_objective() if isinstance(model, HasDefaultObjective) else ELBO()


def _copy_of(model: GenerativeModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _changed(before: dict[str, Tensor], model: GenerativeModel) -> bool:
    return any(not torch.equal(before[name], p) for name, p in model.named_parameters())


@torch.no_grad()
def _perturb(model: GenerativeModel) -> None:
    """Move every parameter a little, so that nothing is at a special start such as zero."""
    with forked_rng(123):
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))


def _seeded_likelihood(model: Any, x: Tensor, context: Tensor | None) -> Tensor:
    with torch.no_grad(), forked_rng(6):
        return model.log_likelihood(x, context).value


def _walk_to_cuda(model: GenerativeModel, x: Tensor, context: Tensor | None) -> None:
    exact = isinstance(model, HasLogLikelihood) and model.density in (Kind.EXACT, Kind.UNNORMALISED)
    here = _seeded_likelihood(model, x, context) if exact else None
    model.to("cuda")
    elsewhere = None if context is None else context.to("cuda")
    drawn = model.sample(len(x), elsewhere, seed=0)
    _expect(drawn.device.type == "cuda", f"samples of a model on CUDA are on {drawn.device}")
    if here is not None:
        there = _seeded_likelihood(model, x.to("cuda"), elsewhere).cpu()
        _expect(torch.allclose(here, there, rtol=1e-3, atol=1e-3), "CUDA and CPU give different densities")


def _compare_on_grid(model: Any, draws: Tensor, levels: int, context: Tensor | None) -> None:
    size = model.event_shape.numel()
    values = torch.linspace(0, 1, levels, dtype=draws.dtype)
    every = torch.tensor(list(itertools.product(values.tolist(), repeat=size)), dtype=draws.dtype)
    every = every.reshape(-1, *model.event_shape)
    options = _repeated(context, len(every))
    with torch.no_grad():
        probability = model.log_likelihood(every, options).value.double().exp()
    _expect(abs(float(probability.sum()) - 1) < 1e-4, f"probabilities sum to {float(probability.sum()):.6f}")
    weights = levels ** torch.arange(size - 1, -1, -1)
    codes = ((draws.flatten(1) * (levels - 1)).round().long() * weights).sum(-1)
    counts = torch.bincount(codes, minlength=len(every)).double()
    often = probability * len(draws) >= 10  # the normal approximation of a count
    error = (probability * (1 - probability) / len(draws)).sqrt()
    assert_close_to(counts[often] / len(draws), probability[often], error[often], "frequencies")


def _compare_on_reals(model: Any, draws: Tensor, options: Tensor | None) -> None:
    flat = draws.double().flatten(1)
    centre, spread = flat.mean(0), torch.cov(flat.T).reshape(flat.shape[1], -1)
    ridge = 1e-6 * torch.eye(len(spread), dtype=spread.dtype) * spread.diagonal().mean()
    factor = torch.linalg.cholesky(1.5 * spread + ridge)
    with forked_rng(8):
        normal = torch.randn(len(flat), flat.shape[1], dtype=torch.float64)
        shrink = (
            torch.distributions.Chi2(torch.tensor(4.0, dtype=torch.float64)).sample((len(flat), 1)) / 4
        ).sqrt()
    proposals = centre + (normal / shrink) @ factor.T
    log_q = _student_log_density(normal / shrink, 4.0) - factor.diagonal().log().sum()
    with torch.no_grad():
        log_p = model.log_likelihood(proposals.to(draws.dtype).reshape(draws.shape), options).value.double()
    weight = (log_p - log_q).exp()[:, None]

    def features(x: Tensor) -> Tensor:
        z = torch.linalg.solve_triangular(factor, (x - centre).T, upper=False).T
        return torch.cat([torch.ones_like(z[:, :1]), z.tanh(), (z**2).tanh(), (z[:, :1] * z).tanh()], dim=-1)

    ours, theirs = features(flat), weight * features(proposals)
    error = (ours.var(0) / len(ours) + theirs.var(0) / len(theirs)).sqrt()
    assert_close_to(theirs.mean(0), ours.mean(0), error, "means under density and samples")


def _repeated(context: Tensor | None, num: int) -> Tensor | None:
    """The first row of the context for each of ``num`` data."""
    return None if context is None else context[:1].expand(num, *context.shape[1:])


def _student_log_density(x: Tensor, freedom: float) -> Tensor:
    """Log density of the standard multivariate Student t at each row; nats."""
    size = x.shape[1]
    constant = math.lgamma((freedom + size) / 2) - math.lgamma(freedom / 2)
    constant -= size / 2 * math.log(freedom * math.pi)
    return constant - (freedom + size) / 2 * torch.log1p((x**2).sum(-1) / freedom)
