"""Counterfactuals of Bayesian networks against closed forms and sums over the noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataError, ShapeError
from ppgen.inference.structure.network import DiscreteNetwork
from ppgen.models import BayesianNetwork, counterfactuals
from ppgen.models.counterfactuals import NoisyFunction
from ppgen.ops.random import forked_rng
from ppgen.testing.statistics import assert_close_to, assert_mean
from tests.models.networks import discrete, gaussian, mixed, mixture

NUM = 20_000

# Drug -> recovery <- age, recovery -> work: each variable a function of its parents and of noise.
FUNCTIONS = {
    "drug": NoisyFunction(lambda noise: ("none", "half", "full")[noise], [0.5, 0.3, 0.2]),
    "age": NoisyFunction(lambda noise: ("young", "old")[noise], [0.6, 0.4]),
    "recovery": NoisyFunction(
        lambda drug, age, noise: (
            "well"
            if noise == 2
            or (noise == 0 and drug != "none")
            or (noise == 1 and drug == "full" and age == "young")
            else "ill"
        ),
        [0.4, 0.3, 0.1, 0.2],
    ),
    "work": NoisyFunction(
        lambda recovery, noise: "yes" if (recovery == "well") ^ (noise == 1) else "no", [0.9, 0.1]
    ),
}
LEVELS = (("none", "half", "full"), ("young", "old"), ("ill", "well"), ("no", "yes"))
PARENTS: tuple[tuple[int, ...], ...] = ((), (), (0, 1), (2,))


def clinic() -> BayesianNetwork:
    empty = BayesianNetwork((4,), cardinalities=[3, 2, 2, 2], names=list(FUNCTIONS), levels=LEVELS, graph=[])
    tables = [f.table(empty.labels, v, PARENTS[v]) for v, f in enumerate(FUNCTIONS.values())]
    network = DiscreteNetwork(tuple(FUNCTIONS), LEVELS, PARENTS, tuple(tables))
    return BayesianNetwork.from_network(network)


def clinic_law(evidence: dict[str, str], do: dict[str, str]) -> dict[tuple[str, ...], float]:
    """The law of the counterfactual row, by a sum over the noise of all four variables."""
    found: dict[tuple[str, ...], float] = {}
    for noise in itertools.product(*(range(len(f.probabilities)) for f in FUNCTIONS.values())):
        weight = math.prod(f.probabilities[u] for f, u in zip(FUNCTIONS.values(), noise, strict=True))
        worlds = []
        for held in ({}, do):
            row: dict[str, Any] = {}
            for v, (name, f) in enumerate(FUNCTIONS.items()):
                given = {list(FUNCTIONS)[p]: row[list(FUNCTIONS)[p]] for p in PARENTS[v]}
                row[name] = held.get(name, f.function(**given, noise=noise[v]))
            worlds.append(row)
        if all(worlds[0][name] == value for name, value in evidence.items()):
            key = tuple(worlds[1].values())
            found[key] = found.get(key, 0.0) + weight
    total = sum(found.values())
    return {key: weight / total for key, weight in found.items()}


def assert_law(frame: pd.DataFrame, law: dict[tuple[str, ...], float]) -> None:
    seen = frame.astype(str).value_counts(normalize=True)
    assert set(seen.index) <= set(law)
    expected = torch.tensor(list(law.values()), dtype=torch.float64)
    found = torch.tensor([float(seen.get(key, 0.0)) for key in law], dtype=torch.float64)
    assert_close_to(found, expected, (expected * (1 - expected) / len(frame)).sqrt() + 1e-12, "law")


CASES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "complete": ({"drug": "none", "age": "young", "recovery": "ill", "work": "no"}, {"drug": "full"}),
    "gaps": ({"drug": "half", "work": "yes"}, {"drug": "none"}),
    "upstream": ({"recovery": "well"}, {"work": "no", "age": "old"}),
    "nothing": ({}, {"drug": "half"}),
}


@pytest.mark.parametrize(("evidence", "do"), CASES.values(), ids=CASES)
def test_known_functions_give_the_enumerated_law(evidence: dict[str, str], do: dict[str, str]) -> None:
    frame = clinic().counterfactual(evidence, do, num=NUM, functions=FUNCTIONS, seed=0)
    assert_law(frame, clinic_law(evidence, do))


def test_noise_that_is_drawn_anew_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted defect: the noise of the prior in place of that of the row."""

    def anew(
        function: NoisyFunction, outcomes: Tensor, network: Any, number: int, values: Tensor, node: int
    ) -> Tensor:
        return torch.multinomial(torch.tensor(function.probabilities), len(values), replacement=True)

    monkeypatch.setattr(counterfactuals, "_noise_of_function", anew)
    evidence, do = CASES["complete"]
    frame = clinic().counterfactual(evidence, do, num=NUM, functions=FUNCTIONS, seed=0)
    with pytest.raises(AssertionError):
        assert_law(frame, clinic_law(evidence, do))


# -- linear-Gaussian networks ----------------------------------------------------------------------


def by_hand(model: BayesianNetwork, x: Tensor, node: int, value: float) -> Tensor:
    """Abduction, action and prediction with the regressions, variable by variable."""
    structure, new = model.structure, x.clone()
    new[:, node] = value
    for v in structure.orders[0]:
        parents = list(structure.parents(0, v))
        weights, _ = model.regression(model.labels.names[v])
        if v != node and parents:
            new[:, v] = x[:, v] + (new[:, parents] - x[:, parents]) @ weights[1:]
    return new


@pytest.mark.parametrize("node", range(5))
def test_complete_rows_of_a_gaussian_network_are_exact(node: int) -> None:
    model = gaussian()
    x = model.sample(50, seed=0)
    found = model.counterfactual(x, {f"x{node}": 1.7}, num=2, seed=0)
    torch.testing.assert_close(found, by_hand(model, x, node, 1.7).expand(2, -1, -1), rtol=1e-10, atol=1e-10)


def test_gaps_of_a_gaussian_network_have_the_closed_form() -> None:
    """The mean and covariance of the answer are those of a linear map of the conditional normal."""
    model = gaussian()
    n, do = 5, 0
    weights, intercept = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    variance = torch.zeros(n, dtype=torch.float64)
    for v in range(n):
        found, scale = model.regression(f"x{v}")
        weights[v, list(model.structure.parents(0, v))] = found[1:]
        intercept[v], variance[v] = found[0], scale**2
    eye = torch.eye(n, dtype=torch.float64)
    mixing = torch.linalg.inv(eye - weights)
    known = torch.tensor([4, 1])
    seen = torch.tensor([0.8, -0.5], dtype=torch.float64)
    # x = mixing (intercept + noise); the noise given x[known] = seen is normal.
    to_known = mixing[known]
    gain = variance[:, None] * to_known.T @ torch.linalg.inv(to_known * variance @ to_known.T)
    mean_noise = gain @ (seen - to_known @ intercept)
    cov_noise = torch.diag(variance) - gain @ (to_known * variance)
    cut = weights.clone()
    cut[do] = 0.0
    keep = eye.clone()
    keep[do, do] = 0.0
    after = torch.linalg.inv(eye - cut)
    mean = after @ (keep @ (intercept + mean_noise) + 2.0 * eye[do])
    cov = after @ keep @ cov_noise @ keep @ after.T
    x = torch.full((1, n), math.nan, dtype=torch.float64)
    x[0, known] = seen
    drawn = model.counterfactual(x, {"x0": 2.0}, num=NUM, seed=0)[:, 0]
    assert_close_to(drawn.mean(0), mean, (cov.diagonal().clamp_min(0) / NUM).sqrt() + 1e-9, "mean")
    free = [1, 2, 3, 4]  # what is set does not vary
    spread = (drawn - mean)[:, free]
    assert_mean(spread[:, :, None] * spread[:, None, :], cov[free][:, free], "covariance")


def test_what_would_have_been_is_more_than_do() -> None:
    """Draws of do() forget the row; those of the counterfactual keep its noise."""
    model = gaussian()
    x = model.sample(1, seed=3)
    twin = model.do(x0=1.0).sample(2000, seed=0)
    with pytest.raises(AssertionError):
        assert_mean(twin, by_hand(model, x, 0, 1.0)[0])


# -- assumptions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("assumption", ["monotone", "gumbel-max"])
def test_assumptions_give_the_law_of_their_noise(assumption: Any) -> None:
    """The noise of rows is that of the prior, kept where it gives what happened (by rejection)."""
    model = discrete()
    first, second = model.table("x1")
    with forked_rng(9):
        if assumption == "monotone":
            u = torch.rand(20 * NUM, dtype=torch.float64)
            before, after = (torch.searchsorted(row.cumsum(0), u) for row in (first, second))
        else:
            g = -torch.empty(20 * NUM, 3, dtype=torch.float64).exponential_().log()
            before, after = ((row.log() + g).argmax(-1) for row in (first, second))
    for level in range(3):
        x = torch.tensor([[0.0, level, 0, 0, 0]], dtype=torch.float64)
        drawn = model.counterfactual(x, {"x0": 1}, num=NUM, assumption=assumption, seed=level)[:, 0, 1]
        kept = torch.nn.functional.one_hot(after[before == level], 3).double()
        expected, share = kept.mean(0), 1 / NUM + 1 / len(kept)
        seen = torch.nn.functional.one_hot(drawn.long(), 3).double().mean(0)
        assert_close_to(seen, expected, (expected * (1 - expected) * share).sqrt() + 1e-12, assumption)


@pytest.mark.parametrize("assumption", ["monotone", "gumbel-max"])
@pytest.mark.parametrize("make", [discrete, mixed, mixture], ids=["discrete", "mixed", "mixture"])
def test_averaged_over_rows_the_answers_are_those_of_do(
    make: Callable[[], BayesianNetwork], assumption: Any
) -> None:
    """The noise of rows is that of the prior, so counterfactuals of draws are draws of do()."""
    model = make()
    x = model.sample(NUM, seed=0)
    answers = model.counterfactual(x, {"x1": 1}, assumption=assumption, seed=1)[0]
    direct = model.do(x1=1).sample(NUM, seed=2)
    joint = torch.cat([answers, answers[:, 2:4] * answers[:, 3:5]], 1)
    expected = torch.cat([direct, direct[:, 2:4] * direct[:, 3:5]], 1)
    error = ((joint.var(0) + expected.var(0)) / NUM).sqrt()
    assert_close_to(joint.mean(0), expected.mean(0), error + 1e-12, "answers")
    with pytest.raises(AssertionError):  # the rows as they were
        assert_close_to(x.mean(0), direct.mean(0), ((x.var(0) + direct.var(0)) / NUM).sqrt() + 1e-12)


@pytest.mark.parametrize("assumption", ["monotone", "gumbel-max"])
@pytest.mark.parametrize("make", [discrete, mixed, mixture], ids=["discrete", "mixed", "mixture"])
def test_setting_what_happened_changes_nothing(make: Callable[[], BayesianNetwork], assumption: Any) -> None:
    model = make()
    x = model.sample(300, seed=0)
    for value in x[:, 1].unique().tolist():
        rows = x[x[:, 1] == value]
        found = model.counterfactual(rows, {"x1": int(value)}, num=3, assumption=assumption, seed=1)
        torch.testing.assert_close(found, rows.expand(3, -1, -1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["_uniforms", "_gumbels"])
def test_assumed_noise_that_is_drawn_anew_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted defect: the noise of the prior; setting what happened then changes rows."""

    def anew(log_rows: Tensor, codes: Tensor) -> Tensor:
        uniform = torch.rand_like(log_rows)
        return uniform[:, 0] if name == "_uniforms" else -(-uniform.log()).log()

    monkeypatch.setattr(counterfactuals, name, anew)
    assumption: Any = "monotone" if name == "_uniforms" else "gumbel-max"
    model = discrete()
    x = model.sample(300, seed=0)
    rows = x[x[:, 1] == 1]
    found = model.counterfactual(rows, {"x1": 1}, assumption=assumption, seed=1)[0]
    assert not torch.equal(found, rows)


def test_of_a_mixture_the_graph_is_part_of_what_is_abducted() -> None:
    """Where x0 is set, x1 answers in the graph that has the edge, with that graph's posterior weight."""
    graphs = torch.zeros(2, 2, 2, dtype=torch.bool)
    graphs[0, 0, 1] = True
    model = BayesianNetwork((2,), graph=graphs, cardinalities=0).double().requires_grad_(False)
    with forked_rng(0):
        for p in model.parameters():
            p.copy_(0.5 * torch.randn_like(p))
    x = torch.tensor([[0.3, 0.4]], dtype=torch.float64)
    drawn = model.counterfactual(x, {"x0": 2.0}, num=NUM, seed=0)[:, 0, 1]
    assert_mean((drawn != x[0, 1]).double(), model.responsibilities(x)[0, 0], "weight of the graph")
    slope = model.regression("x1", 0)[0][1]
    moved = drawn[drawn != x[0, 1]]
    torch.testing.assert_close(moved, (x[0, 1] + 1.7 * slope).expand_as(moved))


def test_certain_tables_need_no_assumption() -> None:
    levels = (("a", "b"), ("a", "b"))
    tables = (torch.tensor([0.5, 0.5]).double(), torch.eye(2).double().flip(0))
    model = BayesianNetwork.from_network(DiscreteNetwork(("x", "y"), levels, ((), (0,)), tables))
    assert model.counterfactual({"x": "a"}, {"x": "b"}, seed=0).to_dict("list") == {"x": ["b"], "y": ["a"]}


def test_one_seed_is_one_noise_for_every_action() -> None:
    model = discrete()
    x = torch.full((1, 5), math.nan, dtype=torch.float64)
    both = [
        model.counterfactual(x, {"x0": value}, num=5000, assumption="monotone", seed=7)[:, 0]
        for value in (0, 1)
    ]
    table = model.table("x1").cumsum(-1)
    change = (table[0, :-1] - table[1, :-1]).abs()
    same = (both[0][:, 1] == both[1][:, 1]).double()
    assert_mean(same, 1 - float(change.sum()), "levels kept")


def test_what_was_set_before_stays_set() -> None:
    model = gaussian().do(x1=0.5)
    x = model.sample(20, seed=0)
    found = model.counterfactual(x, {"x0": 1.0}, seed=0)[0]
    assert bool((found[:, 1] == 0.5).all())
    assert not torch.equal(found[:, 2], x[:, 2])
    assert bool((model.counterfactual(x, {"x1": 2.0}, seed=0)[0][:, 1] == 2.0).all())


# -- frames and bad input ----------------------------------------------------------------------------------


def test_frames_keep_their_index_and_names() -> None:
    model = clinic()
    frame = pd.DataFrame(
        {"drug": ["none", "full"], "age": ["old", None], "recovery": ["ill", "well"], "work": ["no", "yes"]},
        index=["ann", "bob"],
    )
    found = model.counterfactual(frame, {"drug": "none"}, functions=FUNCTIONS, seed=0)
    assert list(found.index) == ["ann", "bob"]
    assert found.loc["ann"].tolist() == ["none", "old", "ill", "no"]
    several = model.counterfactual(frame, {"drug": "none"}, num=3, functions=FUNCTIONS, seed=0)
    assert several.index.tolist() == [(k, name) for k in range(3) for name in ("ann", "bob")]


def test_numbers_and_rows_of_numpy_and_pandas() -> None:
    model = gaussian()
    frame = model.to_frame(model.sample(1, seed=0))
    frame["x3"] = math.nan
    expected = model.counterfactual(frame, {"x0": 1.0}, seed=0)
    numbers: list[Any] = [np.float32(1), np.int64(1), torch.tensor(1.0)]
    for value in numbers:
        pd.testing.assert_frame_equal(model.counterfactual(frame, {"x0": value}, seed=0), expected)
    pd.testing.assert_frame_equal(model.counterfactual(frame.iloc[0], {"x0": 1.0}, seed=0), expected)
    x = discrete().sample(3, seed=0)
    found = discrete().counterfactual(x, {"x0": np.int64(1)}, assumption="monotone", seed=0)
    assert bool((found[..., 0] == 1).all())


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "nothing": ({"do": {}}, ConfigError, "do: expected one or more"),
    "pairs": (
        {"do": [("drug", "full")]},
        ConfigError,
        r"do: expected a mapping .* got \[\('drug', 'full'\)\]",
    ),
    "name": ({"do": {"drugs": "full"}}, ConfigError, "did you mean 'drug'"),
    "level": ({"do": {"drug": "double"}}, ConfigError, "no level 'double'"),
    "evidence": ({"evidence": {"sex": "f"}}, ConfigError, "no variable is called 'sex'"),
    "rows": ({"evidence": torch.zeros(2, 3)}, ShapeError, "expects shape"),
    "values": ({"evidence": torch.full((1, 4), 7.0)}, DataError, "level numbers"),
    "num": ({"num": 0}, ConfigError, "num: expected"),
    "array": ({"evidence": torch.zeros(1, 4).numpy()}, DataError, "as_tensor"),
    "lambda": ({"functions": {"work": lambda noise: "no"}}, ConfigError, "NoisyFunction for 'work'"),
    "silence": ({"functions": None}, ConfigError, "'recovery' has levels and follows.*does not say"),
    "assumption": ({"assumption": "linear"}, ConfigError, "expected one of monotone, gumbel-max"),
    "other": ({"functions": {"sex": FUNCTIONS["age"]}}, ConfigError, "no variable is called 'sex'"),
    "parents": ({"functions": {"work": FUNCTIONS["age"]}}, ConfigError, "cannot be called with noise and"),
    "table": (
        {"functions": {**FUNCTIONS, "age": NoisyFunction(FUNCTIONS["age"].function, [0.5, 0.5])}},
        ConfigError,
        "gives 'young' the probability 0.5 given {}, the network's table 0.6",
    ),
}


@pytest.mark.parametrize(("options", "error", "match"), BAD.values(), ids=BAD)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], match: str) -> None:
    arguments = {
        "evidence": {"drug": "none"},
        "do": {"drug": "full"},
        "functions": FUNCTIONS,
        "seed": 0,
    } | options
    with pytest.raises(error, match=match):
        clinic().counterfactual(**arguments)


def test_impossible_rows_and_functions_that_are_none() -> None:
    tables = (torch.tensor([0.5, 0.5]).double(), torch.eye(2).double())
    model = BayesianNetwork.from_network(DiscreteNetwork(("x", "y"), (("a", "b"),) * 2, ((), (0,)), tables))
    with pytest.raises(DataError, match="row 0 has probability 0"):
        model.counterfactual({"x": "a", "y": "b"}, {"x": "b"})
    with pytest.raises(ConfigError, match="sum 1"):
        NoisyFunction(lambda noise: "a", [0.5, 0.6])
    with pytest.raises(ConfigError, match="continuous, and follows its regression"):
        gaussian().counterfactual({}, {"x0": 1.0}, seed=0, functions={"x1": FUNCTIONS["age"]})
