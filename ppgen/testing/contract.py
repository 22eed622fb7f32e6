"""The promises of a generative model, each a check that can be run on any model.

.. code-block:: python

    from ppgen.testing import check_contract

    check_contract(lambda: MyModel((3,), hidden=(8,)))       # a tiny model, made anew by each call

or, one test a promise::

    @pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
    def test_contract(check):
        check(lambda: MyModel((3,), hidden=(8,)))

``make`` is a function without arguments. It is called more than once, and always inside a
seeded random state, so draw initial weights as usual. Keep the model tiny: a handful of
coordinates and hidden units lets the whole suite run in seconds, and a model on a grid of up to
4096 values in all has its probabilities summed. A conditional model takes integer labels below
``context_dim`` here.

A check raises :class:`AssertionError` where the promise is broken, also where the model raised
something else on the way. Statistical ones reject a right model with probability
:data:`~ppgen.testing.statistics.FALSE_ALARM_RATE`. Nothing global is changed.
"""

from __future__ import annotations

import copy
import functools
import math
import pickle
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO
from pyro.optim.optim import PyroOptim
from torch import Tensor

from ppgen.contract import GenerativeModel, HasDefaultObjective, HasLogLikelihood, Kind
from ppgen.errors import CapabilityError, ShapeError, TrainingWarning
from ppgen.inference.checkpoint import load_model, save_model
from ppgen.inference.objectives.elbo import ELBO, SiteRecorder, site_log_prob
from ppgen.inference.svi import fit
from ppgen.ops.random import forked_rng
from ppgen.testing.agreement import compare_on_points, compare_on_reals
from ppgen.testing.bad_input import check_number_types, check_refusals
from ppgen.testing.statistics import assert_same_distribution

Maker = Callable[[], GenerativeModel]
_BATCH = 12

#: Every check by its name, in the order in which they are run.
CHECKS: dict[str, Callable[[Maker], None]] = {}


def _promise(check: Callable[[Maker], None]) -> Callable[[Maker], None]:
    """Register a check, keep Pyro's parameter store out of it, and turn any error into a complaint."""

    @functools.wraps(check)
    def guarded(make: Maker) -> None:
        with pyro.get_param_store().scope():
            try:
                check(make)
            except AssertionError:
                raise
            except Exception as error:
                raise AssertionError(f"{check.__name__}: {type(error).__name__}: {error}") from error

    CHECKS[check.__name__] = guarded
    return guarded


def check_contract(make: Maker, *, skip: tuple[str, ...] = ()) -> None:
    """Run every check on models that ``make`` builds; see :data:`CHECKS`.

    Args:
        make: builds a tiny model; called several times, it must give models of one configuration.
        skip: names of checks to leave out.
    """
    for name, check in CHECKS.items():
        if name not in skip:
            check(make)


@_promise
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
            vectorised = _elbo(model, x, context, num_particles=3, vectorize_particles=True)
            one_by_one = _elbo(model, x, context)
            for estimator in (one_by_one, vectorised):
                loss = estimator.loss(model.model, model.guide, x, context)
                _expect(math.isfinite(loss), f"{type(estimator).__name__} is not finite")
            before = _copy_of(model)
            svi = SVI(model.model, model.guide, _adam(), one_by_one)
            for _ in range(3):
                svi.step(x, context)
            _expect(_changed(before, model), "pyro.infer.SVI changed no parameter")
    _expect(len(list(pyro.get_param_store().keys())) == 0, "Pyro's parameter store is no longer empty")


@_promise
def handlers(make: Maker) -> None:
    """Pyro's handlers do to the pair what they do to any program."""
    model, x, context = _start(make)
    with forked_rng(0):
        given: Any = poutine.trace(poutine.condition(model.model, {"x": x})).get_trace(
            None, context, num=_BATCH
        )
        _expect(given.nodes["x"]["is_observed"], "poutine.condition does not reach the site 'x'")
        trace: Any = poutine.trace(model.model).get_trace(None, context, num=_BATCH)
        again: Any = poutine.trace(poutine.replay(model.model, trace=trace)).get_trace(
            None, context, num=_BATCH
        )
        _expect(
            torch.equal(trace.nodes["x"]["value"], again.nodes["x"]["value"]),
            "poutine.replay gives another x",
        )
        free: Any = poutine.trace(poutine.uncondition(model.model)).get_trace(x, context)
        _expect(not torch.equal(free.nodes["x"]["value"], x), "poutine.uncondition leaves x observed")
        latents = {n: s["value"] for n, s in _latent_sites(trace).items()}
        for name in latents:
            hidden: Any = poutine.trace(poutine.block(model.model, hide=[name])).get_trace(x, context)
            _expect(name not in hidden.nodes, f"poutine.block does not hide '{name}'")
        if latents and not any(s["infer"].get("enumerate") for s in _latent_sites(trace).values()):
            draws = {n: torch.stack([v, v]) for n, v in latents.items()}
            for parallel in (False, True):
                drawn = Predictive(model.model, draws, parallel=parallel)(None, context, num=_BATCH)["x"]
                _expect(
                    drawn.shape == (2, *x.shape), f"Predictive of posterior draws gives {tuple(drawn.shape)}"
                )
        if model.density is None:
            return
        half: Any = torch.arange(_BATCH) % 2 == 0
        replayed: Any = poutine.trace(poutine.replay(model.model, trace=trace)).get_trace(x, context)
        cut: Any = poutine.trace(poutine.do(model.model, latents)).get_trace(x, context)
        kept, new = (t.nodes["x"]["fn"].log_prob(x) for t in (replayed, cut))
        same = torch.allclose(kept, new, rtol=1e-4, atol=1e-4)
        _expect(same, "under poutine.do on its latents, x does not follow their new values")
        with SiteRecorder() as q:
            model.guide(x, context)
        plain, doubled, masked = (
            _log_probs(handler(model.model), x, context, q.values)
            for handler in (_itself, lambda f: poutine.scale(f, 2.0), lambda f: poutine.mask(f, half))
        )
        _expect(
            torch.allclose(doubled, 2 * plain, rtol=1e-4, atol=1e-4), "poutine.scale does not scale the model"
        )
        _expect(
            torch.allclose(masked, plain * half, rtol=1e-4, atol=1e-4), "poutine.mask does not mask the model"
        )


@_promise
def pair_agrees_with_density(make: Maker) -> None:
    """Exact densities: Pyro's estimate from the pair is ``log_likelihood``, so the pair defines the model."""
    model, x, context = _start(make)
    if model.density is not Kind.EXACT or not isinstance(model, HasLogLikelihood):
        return
    _perturb(model)
    with torch.no_grad(), forked_rng(0):
        evidence = -_elbo(model, x, context).loss(model.model, model.guide, x, context)
        total = float(model.log_likelihood(x, context).value.sum())
    _expect(
        math.isclose(evidence, total, rel_tol=1e-4, abs_tol=1e-3),
        f"log p(x) is {evidence:.6g} by the pair and {total:.6g} by log_likelihood",
    )


@_promise
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


@_promise
def batch_of_one(make: Maker) -> None:
    """One datum gives what it gives among others, in samples, densities, model and guide."""
    model, x, context = _start(make)
    one = None if context is None else context[:1]
    _expect(model.sample(1, one, seed=1).shape == (1, *model.event_shape), "one sample has another shape")
    if isinstance(model, HasLogLikelihood) and model.density in (Kind.EXACT, Kind.UNNORMALISED):
        alone = model.log_likelihood(x[:1], one).value
        among = model.log_likelihood(x, context).value[:1]
        _expect(torch.allclose(alone, among, rtol=1e-4, atol=1e-4), "a datum's density depends on its batch")
    if model.density is None:
        return
    with torch.no_grad(), forked_rng(0), SiteRecorder() as q:
        model.guide(x, context)
    first = {name: value[:1] for name, value in q.values.items()}
    for name, program in (("model", model.model), ("guide", model.guide)):
        if name == "guide" and not first:
            continue
        with torch.no_grad(), forked_rng(0):
            among = _log_probs(program, x, context, q.values)[:1]
            alone = _log_probs(program, x[:1], one, first)
        _expect(
            torch.allclose(alone, among, rtol=1e-4, atol=1e-4),
            f"a datum's log-probability in the {name} depends on its batch",
        )


@_promise
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
        first = context[:1].expand(_BATCH, *context.shape[1:])
        same = torch.equal(model.sample(_BATCH, context[:1], seed=3), model.sample(_BATCH, first, seed=3))
        _expect(same, "one row of context is not the context of all draws")
        if isinstance(model, HasLogLikelihood):
            same = torch.equal(_seeded_likelihood(model, x, context), _seeded_likelihood(model, x, other))
            _expect(not same, "the density does not depend on the context")


@_promise
def bad_input(make: Maker) -> None:
    """What cannot be right meets an error of :mod:`ppgen.errors`; other types of numbers are taken."""
    model, x, context = _start(make)
    check_refusals(model, x, context)
    check_number_types(model, x, context)


@_promise
def seeds(make: Maker) -> None:
    """A seed repeats the draws and leaves the global generator as it was."""
    model, _, context = _start(make)
    with forked_rng(11):
        state = torch.get_rng_state()
        first, second = (model.sample(_BATCH, context, seed=5) for _ in range(2))
        _expect(torch.equal(first, second), "one seed gave two different samples")
        _expect(torch.equal(state, torch.get_rng_state()), "sample(seed=...) moved the global generator")


@_promise
def state_round_trip(make: Maker) -> None:
    """``state_dict``, deepcopy, pickle, and save/load carry everything that is learnt."""
    model, x, context = _start(make)
    with warnings.catch_warnings(), forked_rng(0):  # an epoch, for what training alone sets
        warnings.simplefilter("ignore", TrainingWarning)
        data = x if context is None else (x, context)
        fit(model, data, epochs=1, batch_size=5, device="cpu", progress=False)
    _perturb(model.eval())
    if model.density is not None:
        with forked_rng(0):  # a pass under Pyro must not make the model unpicklable
            _elbo(model, x, context).loss(model.model, model.guide, x, context)
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
    density = isinstance(model, HasLogLikelihood)
    expected = model.sample(_BATCH, context, seed=2)
    log_density = _seeded_likelihood(model, x, context) if density else None
    for name, other in copies.items():
        _expect(torch.equal(other.sample(_BATCH, context, seed=2), expected), f"{name} gives another model")
        if log_density is not None:
            same = torch.equal(_seeded_likelihood(other, x, context), log_density)
            _expect(same, f"{name} gives another density")


@_promise
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


@_promise
def fresh_density_after_update(make: Maker) -> None:
    """The same tensor after a change of weights gives the density of the new weights."""
    model, x, context = _start(make)
    if not isinstance(model, HasLogLikelihood):
        return
    old = _seeded_likelihood(model, x, context)
    _perturb(model)
    new = _seeded_likelihood(model, x, context)
    with forked_rng(1):  # a copy would share what is stale
        fresh = make().eval()
    fresh.load_state_dict(model.state_dict())
    _expect(not torch.equal(old, new), "a stale density: it did not change with the weights")
    expected = _seeded_likelihood(fresh, x.clone(), context)
    _expect(torch.allclose(new, expected, rtol=1e-4, atol=1e-4), "the density is not that of the new weights")


@_promise
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
        loss = _objective(model)(model.model, model.guide, x.double(), context)
        _expect(loss.dtype == torch.float64, f"the loss is {loss.dtype}")
        loss.backward()


@_promise
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
            if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample":
                _expect(
                    site["value"].device.type == "meta", f"site '{name}' stayed on {site['value'].device}"
                )
        if model.density is not None:
            generated = model.model(None, elsewhere, num=_BATCH)
            _expect(generated.device.type == "meta", "generated x stayed on another device")
            log_prob = trace.nodes["x"]["fn"].log_prob(x.to("meta"))
            _expect(log_prob.device.type == "meta", "the density of x stayed on another device")


@_promise
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


@_promise
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


@_promise
def trains(make: Maker) -> None:
    """``ppgen.fit`` runs, gives finite figures, and leaves the global generator as it was."""
    model, x, context = _start(make)
    data = x if context is None else (x, context)
    with warnings.catch_warnings(), forked_rng(4):
        warnings.simplefilter("ignore", TrainingWarning)  # two epochs are no training
        state = torch.get_rng_state()
        result = fit(model, data, epochs=2, batch_size=5, device="cpu", progress=False)
        _expect(torch.equal(state, torch.get_rng_state()), "fit moved the global generator")
    # What is found by counting is done after one.
    _expect(len(result.history) in (1, 2), "two epochs gave another number of history rows")
    _expect(all(math.isfinite(row["loss"] or 0.0) for row in result.history), "a loss is not finite")


@_promise
def sampling_agrees_with_density(make: Maker) -> None:
    """Exact densities: samples and density describe one distribution.

    On finite supports the frequency of each value meets its probability, and probabilities sum
    to one. On the reals, means of bounded functions under the samples meet the same means
    by importance sampling from a broad Student t, with the density as weight.
    """
    model, _, context = _start(make)
    if model.density is not Kind.EXACT or not isinstance(model, HasLogLikelihood):
        return
    _perturb(model)  # at its start a model may be special: a flow that is the identity
    num = 20_000
    for options in _constant_contexts(context, num):
        draws = model.sample(num, options, seed=7)
        points = model.support.points(model.event_shape.numel())
        if points is not None and math.prod(len(p) for p in points) <= 4096:
            compare_on_points(model, draws, points, options)
        elif model.support.kind == "real":
            compare_on_reals(model, draws, options)


@_promise
def sampling_agrees_with_model(make: Maker) -> None:
    """``sample`` draws from the model program, and one draw does not depend on the others."""
    model, _, context = _start(make)
    _perturb(model)
    num = 2000
    for options in _constant_contexts(context, num):
        with torch.no_grad(), forked_rng(3):
            traced: Any = poutine.trace(model.model).get_trace(None, options, num=num)
        draws = model.sample(num, options, seed=4)
        assert_same_distribution(draws, traced.nodes["x"]["value"], "sample and model")


# -- helpers ------------------------------------------------------------------------------


def _start(make: Maker) -> tuple[GenerativeModel, Tensor, Tensor | None]:
    """A model in evaluation mode, data that it can produce, and context where it wants one."""
    with forked_rng(0):
        model = make().eval()
    context = torch.arange(_BATCH) % model.context_dim if model.context_dim else None
    return model, model.sample(_BATCH, context, seed=0), context


def _constant_contexts(context: Tensor | None, num: int) -> list[Tensor | None]:
    """The first and the second context, each for ``num`` data."""
    return [None] if context is None else [c.expand(num, *context.shape[1:]) for c in context[:2, None]]


def _itself(program: Callable[..., Any]) -> Callable[..., Any]:
    return program


def _latent_sites(trace: Any) -> dict[str, Any]:
    sites = {n: s for n, s in trace.nodes.items() if s["type"] == "sample" and not s["is_observed"]}
    return {n: s for n, s in sites.items() if n != "x" and type(s["fn"]).__name__ != "_Subsample"}


def _elbo(model: GenerativeModel, x: Tensor, context: Tensor | None, **options: Any) -> Any:
    """Pyro's estimator for the pair: with enumeration where the model marks latents for it."""
    with torch.no_grad(), forked_rng(0):
        trace: Any = poutine.trace(model.model).get_trace(x, context)
    enumerates = any(site["infer"].get("enumerate") for site in _latent_sites(trace).values())
    return (TraceEnum_ELBO if enumerates else Trace_ELBO)(max_plate_nesting=1, **options)


def _log_probs(
    program: Callable[..., Any], x: Tensor, context: Tensor | None, given: dict[str, Tensor]
) -> Tensor:
    """Log-probability of all sites of a program, one value a datum; latents not given are drawn."""
    with forked_rng(2), SiteRecorder(given) as recorder:
        program(x, context)
    terms = [site_log_prob(site) for site in recorder.sites.values()]
    return torch.stack([term.expand(len(x)) for term in terms]).sum(0)


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
