"""Priors and constraints: the three layouts agree with the definition, contradictions are named."""

import itertools
import math

import pandas as pd
import pytest
import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.inference.structure.families import members, squeeze, unsqueeze
from ppgen.inference.structure.family_prior import FamilyPrior
from ppgen.inference.structure.prior import Constraints, GraphPrior, compile_prior
from ppgen.ops.dags import enumerate_dags

NAMES = ("A", "B", "C", "D")
EDGES = torch.tensor(
    [[0.0, 0.9, 0.5, 0.1], [0.2, 0.0, 0.3, 0.0], [0.5, 0.05, 0.0, 0.7], [0.6, 0.4, 1.0, 0.0]],
    dtype=torch.float64,
)

CASES = {
    "flat": (GraphPrior(), Constraints()),
    "fan-in": (GraphPrior(fan_in="cardinality"), Constraints()),
    "weights": (GraphPrior(fan_in=[0.0, -1.5, -0.25]), Constraints()),
    "edges": (GraphPrior(edges=EDGES), Constraints()),
    "constraints": (
        GraphPrior("order"),
        Constraints(required=[("A", "B")], forbidden=[("C", "D")], tiers=[["A"], ["B", "D"]], max_parents=2),
    ),
    "all": (
        GraphPrior(fan_in=(0.5, 0.0, -1.0, -3.0), edges=EDGES.tolist()),
        Constraints(required=[("B", "C")], forbidden=[("D", "B")], max_parents=2),
    ),
}


def by_definition(prior: GraphPrior, constraints: Constraints, node: int, parents: set[int]) -> float:
    """Log weight of one family, written as in the documentation of the classes."""
    n, name = len(NAMES), NAMES[node]
    chosen = {NAMES[i] for i in parents}
    weight = 0.0
    if prior.fan_in == "cardinality":
        weight -= math.log(math.comb(n - 1, len(parents)))
    elif prior.fan_in is not None:
        weight += prior.fan_in[len(parents)] if len(parents) < len(prior.fan_in) else -math.inf
    if prior.edges is not None:
        for i in set(range(n)) - {node}:
            p = float(torch.as_tensor(prior.edges, dtype=torch.float64)[i, node])
            factor = p if i in parents else 1 - p
            weight += math.log(factor) if factor else -math.inf
    if constraints.max_parents is not None and len(parents) > constraints.max_parents:
        return -math.inf
    if any(end == name and start not in chosen for start, end in constraints.required):
        return -math.inf
    if any(end == name and start in chosen for start, end in constraints.forbidden):
        return -math.inf
    tier = {v: k for k, group in enumerate(constraints.tiers) for v in group}
    if any(name in tier and v in tier and tier[v] > tier[name] for v in chosen):
        return -math.inf
    return weight


def all_sets(node: int) -> Tensor:
    """Sets in the columns of the dense layout, shape (8, 4)."""
    return members(unsqueeze(torch.arange(2 ** (len(NAMES) - 1)), node), len(NAMES))


def impossible(compiled: FamilyPrior, node: int, sets: Tensor) -> Tensor:
    """Sets with an edge that no DAG with the required edges has."""
    return (sets & ~compiled.allowed_edges[:, node]).any(1)


@pytest.mark.parametrize("case", CASES)
def test_families_as_defined(case: str) -> None:
    """Sets, dense columns and lists give the same numbers, those of the definition."""
    prior, constraints = CASES[case]
    compiled = compile_prior(prior, constraints, NAMES)
    assert compiled.is_flat == (case == "flat")
    assert compiled.kind == prior.kind
    for node in range(len(NAMES)):
        sets = all_sets(node)
        expected = torch.tensor(
            [by_definition(prior, constraints, node, set(row.nonzero()[:, 0].tolist())) for row in sets],
            dtype=torch.float64,
        )
        expected[impossible(compiled, node, sets)] = -math.inf
        found = compiled.log_family_prior(node, sets)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(compiled.log_dense_prior(node), expected, rtol=0, atol=1e-12)
        listed = torch.full((len(sets), 3), -1)
        for row, members_of in enumerate(sets):
            there = members_of.nonzero()[:, 0]
            listed[row, : len(there)] = there
        torch.testing.assert_close(compiled.log_listed_prior(node, listed), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_no_dag_is_lost(case: str) -> None:
    """Weights of all DAGs are the products by definition: what was ruled out besides would be cyclic."""
    prior, constraints = CASES[case]
    compiled = compile_prior(prior, constraints, NAMES)
    graphs = enumerate_dags(len(NAMES))
    table = {
        (node, parents): by_definition(prior, constraints, node, set(parents))
        for node in range(len(NAMES))
        for size in range(len(NAMES))
        for parents in itertools.combinations([i for i in range(len(NAMES)) if i != node], size)
    }
    expected = torch.tensor(
        [
            sum(table[node, tuple(column.nonzero()[:, 0].tolist())] for node, column in enumerate(graph.T))
            for graph in graphs
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(compiled.log_graph_prior(graphs), expected, rtol=0, atol=1e-12)
    assert torch.equal(compiled.allows(graphs), expected.isfinite())
    allowed = graphs[expected.isfinite()]
    assert len(allowed) > 0
    assert bool((allowed.any(0) <= compiled.allowed_edges).all())
    assert bool((compiled.required_edges <= allowed.all(0)).all())


def test_edges_that_would_close_a_cycle() -> None:
    """What required edges lead to cannot lead back."""
    compiled = compile_prior(GraphPrior(), Constraints(required=[("A", "B"), ("B", "C")]), NAMES)
    assert not compiled.allowed_edges[[1, 2, 2], [0, 0, 1]].any()
    assert int(compiled.allowed_edges.sum()) == 12 - 3


def test_the_largest_number_of_parents() -> None:
    """It comes from the constraints, the fan-in weights, or the number of variables."""
    assert compile_prior(GraphPrior(), Constraints(), NAMES).max_parents == 3
    assert compile_prior(GraphPrior(), Constraints(max_parents=1), NAMES).max_parents == 1
    assert compile_prior(GraphPrior(), Constraints(max_parents=9), NAMES).max_parents == 3
    assert compile_prior(GraphPrior(fan_in=[0.0, 0.0, -math.inf]), Constraints(), NAMES).max_parents == 1
    assert compile_prior(GraphPrior(), Constraints(max_parents=0), NAMES).max_parents == 0


def test_edge_priors_by_name() -> None:
    """A DataFrame is read by its labels, in any order."""
    frame = pd.DataFrame(EDGES.numpy(), index=list(NAMES), columns=list(NAMES))
    shuffled = frame.loc[["D", "B", "A", "C"], ["B", "A", "D", "C"]]
    plain = compile_prior(GraphPrior(edges=EDGES), Constraints(), NAMES)
    named = compile_prior(GraphPrior(edges=shuffled), Constraints(), NAMES)
    assert torch.equal(plain.log_present, named.log_present)
    assert torch.equal(plain.log_absent, named.log_absent)
    # p = 1 requires an edge and p = 0 forbids it.
    assert plain.required_edges.nonzero().tolist() == [[3, 2]]
    assert not plain.allowed_edges[1, 3]


def test_many_families() -> None:
    """2^19 sets of 20 variables, and 34,000 of 60, without a table of 2^19 x 20 numbers."""
    names = [f"v{i}" for i in range(20)]
    probabilities = torch.full((20, 20), 0.25, dtype=torch.float64).fill_diagonal_(0.0)
    compiled = compile_prior(GraphPrior(fan_in="cardinality", edges=probabilities), Constraints(), names)
    dense = compiled.log_dense_prior(7)
    assert dense.shape == (2**19,)
    some = torch.tensor([0, 5, 2**18 + 1, 2**19 - 1])
    sets = members(unsqueeze(some, 7), 20)
    torch.testing.assert_close(dense[some], compiled.log_family_prior(7, sets), rtol=0, atol=1e-10)
    # Edges are independent given the fan-in weights: with those left out the families of a node sum to 1.
    independent = compile_prior(GraphPrior(edges=probabilities), Constraints(), names)
    assert float(independent.log_dense_prior(3).logsumexp(0)) == pytest.approx(0.0, abs=1e-9)

    wide = compile_prior(GraphPrior(fan_in="cardinality"), Constraints(), [f"v{i}" for i in range(60)])
    triples = torch.tensor(list(itertools.combinations(range(1, 60), 3)))
    values = wide.log_listed_prior(0, triples)
    assert torch.allclose(values, torch.tensor(-math.log(math.comb(59, 3)), dtype=torch.float64))


def test_squeezed_columns_match() -> None:
    """The dense layout is that of the scores."""
    compiled = compile_prior(GraphPrior(), Constraints(forbidden=[("D", "B")]), NAMES)
    dense = compiled.log_dense_prior(1)
    column = int(squeeze(torch.tensor(0b1000), 1))
    assert dense[column] == -math.inf
    assert int(dense.isinf().sum()) == 4


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        (Constraints(required=[("A", "Bee")]), "required: no variable is called 'Bee'.*known are A, B, C, D"),
        (Constraints(forbidden=[("a", "B")]), "forbidden: no variable is called 'a'"),
        (Constraints(tiers=[["A"], ["X"]]), "tiers: no variable is called 'X'"),
        (Constraints(tiers=[["A"], ["A", "B"]]), "tiers: A is in groups 1 and 2"),
        (
            Constraints(required=[("A", "B")], forbidden=[("A", "B")]),
            "required: A -> B is required, but forbidden has A -> B",
        ),
        (
            Constraints(required=[("A", "B")], tiers=[["B"], ["A"]]),
            r"A -> B is required, but tiers put A \(group 2\) after B \(group 1\)",
        ),
        (
            Constraints(required=[("A", "D"), ("B", "D"), ("C", "D")], max_parents=2),
            r"max_parents: D has 3 required parents \(A, B, C\), the limit is 2; use max_parents=3",
        ),
        (Constraints(required=[("A", "A")]), "cycle, A -> A,"),
        (Constraints(required=[("A", "B"), ("C", "D"), ("B", "A")]), "cycle, (A -> B -> A|B -> A -> B),"),
        (
            Constraints(required=[("A", "B"), ("B", "C"), ("C", "A"), ("C", "D")]),
            "cycle, (A -> B -> C -> A|B -> C -> A -> B|C -> A -> B -> C),",
        ),
    ],
    ids=[
        "unknown required",
        "unknown forbidden",
        "unknown in tiers",
        "two tiers",
        "required and forbidden",
        "required against tiers",
        "more required than max_parents",
        "self-loop",
        "cycle of two",
        "cycle of three",
    ],
)
def test_contradictory_constraints(constraints: Constraints, message: str) -> None:
    """Each contradiction is named with the variables in it."""
    with pytest.raises(ConfigError, match=message):
        constraints.check(NAMES)


def test_close_names_are_offered() -> None:
    """A slip of the pen is recognised."""
    with pytest.raises(ConfigError, match=r"'Raff'; did you mean Raf\?"):
        Constraints(required=[("Raff", "Mek")]).check(["Raf", "Mek", "Erk"])


def test_malformed_constraints() -> None:
    """Forms that Python would read as something else."""
    with pytest.raises(
        ConfigError, match=r'required: expected a list of pairs .* write required=\[\("A", "B"\)\]'
    ):
        Constraints(required=("A", "B"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="forbidden: expected a list of pairs"):
        Constraints(forbidden=[("A", "B", "C")])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="tiers: expected a list of groups"):
        Constraints(tiers=["A", "B"])
    for limit in (-1, 1.5, True):
        with pytest.raises(ConfigError, match="max_parents: expected a whole number >= 0"):
            Constraints(max_parents=limit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prior", "constraints", "message"),
    [
        (GraphPrior(edges=torch.zeros(3, 3)), Constraints(), r"edges: expected shape \(4, 4\).*got \(3, 3\)"),
        (
            GraphPrior(edges=EDGES + torch.eye(4)),
            Constraints(),
            "edges: expected zeros on the diagonal, got 1",
        ),
        (GraphPrior(edges=EDGES * 1.5), Constraints(), r"got 1.35 for A -> B \(3 such entries\)|got 1.35"),
        (GraphPrior(edges=EDGES / 0.0), Constraints(), r"edges: expected probabilities in \[0, 1\], got nan"),
        (GraphPrior(edges="high"), Constraints(), "edges: expected a matrix of probabilities"),
        (
            GraphPrior(edges=pd.DataFrame(0.5, index=list("ABCX"), columns=list("ABCD"))),
            Constraints(),
            "edges: the rows must carry each variable's name once; missing: D; unknown: X",
        ),
        (
            GraphPrior(edges=EDGES),
            Constraints(required=[("B", "D")]),
            "B -> D is required, but edges gives B -> D probability 0",
        ),
        (
            GraphPrior(edges=EDGES),
            Constraints(forbidden=[("D", "C")]),
            "D -> C is required, but forbidden has D -> C",
        ),
        (GraphPrior(edges=EDGES), Constraints(required=[("C", "D")]), "cycle, (C -> D -> C|D -> C -> D)"),
        (GraphPrior(fan_in=[-math.inf, 0.0]), Constraints(), "fan_in: 0 parents have weight -inf"),
        (
            GraphPrior(fan_in=[0.0, -math.inf, 0.0]),
            Constraints(required=[("A", "B")], forbidden=[("C", "B"), ("D", "B")]),
            "fan_in: B has 1 required and at most 1 allowed parents",
        ),
        (GraphPrior(fan_in=[0.0, math.nan]), Constraints(), "fan_in: expected a list of log weights"),
        (GraphPrior(fan_in=[]), Constraints(), "fan_in: expected a list of log weights"),
    ],
    ids=[
        "shape",
        "diagonal",
        "above one",
        "nan",
        "text",
        "names",
        "required has 0",
        "forbidden has 1",
        "cycle with 1",
        "no roots",
        "no number of parents",
        "nan weights",
        "no weights",
    ],
)
def test_bad_priors(prior: GraphPrior, constraints: Constraints, message: str) -> None:
    """Matrices and weights that give no distribution over DAGs."""
    with pytest.raises(ConfigError, match=message):
        compile_prior(prior, constraints, NAMES)


def test_unknown_kinds() -> None:
    """Words that no prior has."""
    with pytest.raises(ConfigError, match="kind: expected 'uniform' or 'order', got 'flat'"):
        GraphPrior("flat")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="fan_in: expected None, 'cardinality'"):
        GraphPrior(fan_in="size")  # type: ignore[arg-type]
