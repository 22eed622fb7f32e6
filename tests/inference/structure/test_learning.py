"""``learn``: names and options of methods, what is refused before any work, and the way through."""

import importlib
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ppgen.errors import ConfigError, DataError, DataWarning, DeviceError
from ppgen.inference import structure
from ppgen.inference.pgmpy_adapter import example_network
from ppgen.inference.structure.bootstrap import Bootstrap
from ppgen.inference.structure.graph_samples import SampledSource
from ppgen.inference.structure.learning import METHODS, find_method, learn
from ppgen.inference.structure.posterior import GraphPosterior
from ppgen.inference.structure.prior import Constraints, GraphPrior
from ppgen.inference.structure.problem import Learned, Problem
from ppgen.inference.structure.scores.discrete import BDeu
from ppgen.inference.structure.search import GES, PC, HillClimb


@pytest.fixture(name="frame", scope="module")
def cancer_frame() -> pd.DataFrame:
    table = example_network("cancer").table(400, seed=0)
    return pd.DataFrame(
        {
            v.name: [(v.levels or ())[k] for k in table.codes[:, i].tolist()]
            for i, v in enumerate(table.variables)
        }
    )


@dataclass(frozen=True)
class Recording:
    """Keeps the problem, and answers with the empty graph."""

    given: list[tuple[Problem, int | None]]
    name = "recording"

    def run(self, problem: Problem, *, seed: int | None = None) -> Learned:
        self.given.append((problem, seed))
        n = problem.table.num_variables
        return Learned(SampledSource(torch.zeros(1, n, n, dtype=torch.bool)))


def problem_of(table: object, **arguments: object) -> Problem:
    method = Recording([])
    learn(table, method=method, progress=False, **arguments)  # type: ignore[arg-type]
    return method.given[0][0]


# -- the face -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", structure.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(structure, name) is not None


def test_methods_know_their_names() -> None:
    for name in METHODS:
        assert find_method(name, {}).name == name


def test_the_package_is_reached_from_inference() -> None:
    inference = importlib.import_module("ppgen.inference")
    assert inference.structure is structure
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = structure.nonsense


# -- from what users have -------------------------------------------------------------------


def test_frames_files_and_arrays_give_the_same(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame.to_csv(tmp_path / "cancer.csv", index=False)
    codes = np.stack([frame[c].astype("category").cat.codes.to_numpy() for c in frame], 1)
    answers = [
        learn(data, progress=False, **options).edge_probabilities  # type: ignore[arg-type]
        for data, options in (
            (frame, {}),
            (tmp_path / "cancer.csv", {}),
            (codes, {"names": list(frame)}),
            (torch.as_tensor(codes), {"names": list(frame)}),
        )
    ]
    for answer in answers[1:]:
        pd.testing.assert_frame_equal(answers[0], answer, check_exact=False, atol=1e-9, rtol=0)


def test_what_the_method_is_given(frame: pd.DataFrame) -> None:
    constraints = Constraints(forbidden=[("Xray", "Cancer")])
    problem = problem_of(frame, prior="order", constraints=constraints, score=BDeu(3.0))
    assert problem.prior == GraphPrior("order")
    assert problem.constraints == constraints
    assert problem.score == BDeu(3.0)
    assert problem.progress is False
    assert problem_of(frame).score == BDeu(1.0)
    assert problem_of(frame, score="bic").score.name == "bic"  # type: ignore[union-attr]
    prior = GraphPrior(fan_in="cardinality")
    assert problem_of(frame, prior=prior).prior is prior


def test_interventions_reach_the_method(frame: pd.DataFrame) -> None:
    marked = frame.assign(INT=["Cancer"] * 100 + [""] * 300)
    problem = problem_of(marked, interventions="INT")
    assert problem.table.names == tuple(frame)
    assert problem.table.clamped.sum(0).tolist() == [0, 0, 100, 0, 0]


def test_seed_and_names_of_the_answer(frame: pd.DataFrame) -> None:
    method = Recording([])
    posterior = learn(frame, method=method, seed=7, progress=False)
    assert isinstance(posterior, GraphPosterior)
    assert method.given[0][1] == 7
    assert posterior.names == tuple(frame)
    assert posterior.method == "recording"


@pytest.mark.parametrize("method", ["exact", "hill_climb", "ges", "pc"])
def test_from_a_table_to_a_posterior(method: str, frame: pd.DataFrame) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        posterior = learn(frame, method=method, progress=False)
    p = posterior.edge_probabilities
    assert list(p.index) == list(p.columns) == list(frame)
    assert float(p.to_numpy().min()) >= 0
    assert float(p.to_numpy().max()) <= 1


# -- methods and options --------------------------------------------------------------------


def test_options_go_to_the_method() -> None:
    assert find_method("pc", {"significance": 0.05}) == PC(significance=0.05)
    assert find_method("bootstrap", {"num_resamples": 7}) == Bootstrap(HillClimb(), 7)
    options = {"num_resamples": 7, "significance": 0.05}
    assert find_method("bootstrap:pc", options) == Bootstrap(PC(significance=0.05), 7)
    made = GES(max_members=3)
    assert find_method(made, {}) is made


@pytest.mark.parametrize(
    ("method", "options", "match"),
    [
        ("nonsense", {}, r"method: expected one of exact, .* or bootstrap:NAME, got 'nonsense'"),
        ("exact:pc", {}, "got 'exact:pc'"),
        ("bootstrap:nonsense", {}, "got 'bootstrap:nonsense'"),
        ("pc", {"significanse": 0.1}, "significanse: method 'pc' has no such option; it has .*significance"),
        ("bootstrap:pc", {"tabu_length": 3}, "tabu_length: method 'bootstrap:pc' has no such option"),
        (PC(), {"significance": 0.1}, r"significance: options go into the method object, PC\(...\)"),
        (PC, {}, "method: expected one of"),
        (3, {}, "method: expected one of"),
    ],
    ids=["name", "pair", "inner", "option", "inner-option", "object", "class", "number"],
)
def test_methods_that_make_no_sense(method: object, options: dict[str, float], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        find_method(method, options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"prior": "flat"}, ConfigError, "kind: expected 'uniform' or 'order'"),
        ({"prior": 3}, ConfigError, "prior: expected 'uniform', 'order' or a GraphPrior"),
        ({"constraints": {"required": []}}, ConfigError, "constraints: expected a Constraints object"),
        ({"constraints": Constraints(required=[("Xray", "Zip")])}, ConfigError, "Zip"),
        ({"score": "nonsense"}, ConfigError, "score: no score is called 'nonsense'"),
        ({"score": "bge"}, (ConfigError, DataError), "bge|continuous"),
        ({"device": "cuda:99"}, DeviceError, "device"),
        ({"interventions": "nowhere"}, ConfigError, "nowhere"),
    ],
    ids=["prior", "prior-type", "constraints", "name", "score", "score-of-data", "device", "interventions"],
)
def test_nothing_starts_with_bad_arguments(
    arguments: dict[str, object], error: type[Exception], match: str, frame: pd.DataFrame
) -> None:
    method = Recording([])
    with pytest.raises(error, match=match):
        learn(frame, method=method, progress=False, **arguments)  # type: ignore[arg-type]
    assert method.given == []


def test_methods_without_a_score_take_none(frame: pd.DataFrame) -> None:
    with pytest.raises(ConfigError, match="score: method 'pc' uses none"):
        learn(frame, method="pc", score="bdeu", progress=False)
    with pytest.raises(ConfigError, match="score: method 'pc' uses none"):
        learn(frame, method="bootstrap:pc", score="bdeu", progress=False)


def test_constant_columns_are_warned_of_once_and_where_learn_was_called() -> None:
    values = np.random.default_rng(0).normal(size=(40, 3))
    values[:, 1] = 2.5
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learn(values, progress=False)
    assert [str(one.message).partition(",")[0] for one in caught] == ["data: x2 is constant"]
    assert caught[0].filename == __file__
    assert issubclass(caught[0].category, DataWarning)


def test_levels_that_no_row_has_count_in_the_score(frame: pd.DataFrame) -> None:
    more = {"Cancer": ["True", "False", "unknown"]}
    found = learn(frame, levels=more, progress=False)
    assert found.table is not None
    assert found.table.cardinalities == (2, 2, 3, 2, 2)
    assert not np.allclose(found.edge_probabilities, learn(frame, progress=False).edge_probabilities)


def test_exact_loads_nothing_that_it_has_no_use_for(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,b\n" + "0,1\n1,0\n0,0\n" * 4)
    program = (
        "import sys\nfrom ppgen.inference import structure\n"
        f"structure.learn({str(path)!r}, progress=False).edge_probabilities\n"
        "print([n for n in ('arviz', 'matplotlib', 'networkx', 'pgmpy', 'scipy', 'sklearn') "
        "if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr


def test_missing_cells(frame: pd.DataFrame) -> None:
    gaps = frame.astype(object)
    gaps.iloc[3, 0] = None
    with pytest.raises(DataError, match="1 missing cells"):
        learn(gaps, progress=False)
    assert problem_of(gaps, missing="level").table.num_rows == 400
