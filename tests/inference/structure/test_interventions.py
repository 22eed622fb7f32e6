"""Interventions in every form that users have them in, and every way to get them wrong."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ppgen.errors import ConfigError, DataError, DataWarning
from ppgen.inference.structure.interventions import Imperfect, Perfect, Soft, Uncertain
from ppgen.inference.structure.reading import read_table
from ppgen.inference.structure.table import Intervention

DATA = pd.DataFrame({"u": list("xyxyx"), "v": [0, 1, 1, 0, 1], "w": [0.5, 1.5, 2.5, 0.1, 0.2]})
MASK = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 1], [0, 0, 1], [0, 0, 0]]).bool()


def labelled(labels: Any) -> pd.DataFrame:
    """The data with a column in the middle that names what was set."""
    data = DATA.copy()
    data.insert(1, "INT", labels)
    return data


@pytest.mark.parametrize(
    "labels",
    [
        ["", "u", "v;w", "w", ""],
        [None, "u", " v ; w", "w", np.nan],
        ["none", "u", "w;v;v", "w", "None"],
        pd.Categorical(["", "u", "v;w", "w", ""]),
        ["0", "1", "2;3", "3", ""],
    ],
    ids=["empty", "missing", "spaces", "categories", "numbers as text"],
)
def test_columns_of_labels(labels: Any) -> None:
    """Names and numbers, alone or several; the column is no variable."""
    table = read_table(labelled(labels), interventions="INT")
    assert table.names == ("u", "v", "w")
    assert torch.equal(table.clamped, MASK)
    assert table.intervention is Intervention.PERFECT


@pytest.mark.parametrize(
    "numbers",
    [[0, 1, 2, 3, 0], [0.0, 1.0, 2.0, 3.0, np.nan], pd.array([0, 1, 2, 3, None], dtype="Int64")],
    ids=["integers", "floats", "nullable"],
)
def test_columns_of_numbers(numbers: Any) -> None:
    """They count the variables from 1, the column of interventions left out."""
    table = read_table(labelled(numbers), interventions="INT")
    expected = torch.zeros(5, 3).bool()
    expected[[1, 2, 3], [0, 1, 2]] = True
    assert torch.equal(table.clamped, expected)


@pytest.mark.parametrize(
    "mask",
    [
        MASK,
        MASK.numpy(),
        MASK.int().tolist(),
        pd.DataFrame(MASK.numpy(), columns=["u", "v", "w"]),
        pd.DataFrame({"w": MASK[:, 2].numpy(), "v": MASK[:, 1].numpy(), "u": MASK[:, 0].numpy()}),
        ["", "u", "v;w", "w", ""],
        pd.Series(["", "u", "v;w", "w", ""], index=[9, 8, 7, 6, 5]),
    ],
    ids=["tensor", "array", "lists", "frame", "shuffled frame", "labels", "series"],
)
@pytest.mark.parametrize("kind", [None, Perfect, Imperfect], ids=["bare", "perfect", "imperfect"])
def test_masks(mask: Any, kind: Any) -> None:
    """A cell each; or one label a row, not in the data."""
    table = read_table(DATA, interventions=mask if kind is None else kind(mask))
    assert torch.equal(table.clamped, MASK)
    assert table.intervention == ("imperfect" if kind is Imperfect else "perfect")
    assert table.num_variables == 3


def test_part_of_the_columns() -> None:
    """Variables without a column in a frame of masks were never set."""
    table = read_table(DATA, interventions=pd.DataFrame({"v": [0, 0, 1, 0, 0]}))
    assert table.clamped.nonzero().tolist() == [[2, 1]]


def test_no_interventions() -> None:
    """Nothing was set."""
    table = read_table(DATA)
    assert table.intervention is Intervention.NONE
    assert not table.clamped.any()
    assert table.agents is None
    assert table.max_agents == 0


def test_soft() -> None:
    """The push, and the number of the level that each variable is pushed to."""
    table = read_table(labelled(["", "u", "v", "", ""]), interventions=Soft("INT", push=3, levels={"u": "y"}))
    assert table.intervention is Intervention.SOFT
    assert table.push == 3.0
    assert table.pushed_to is not None
    assert table.pushed_to.tolist() == [1, -1, -1]
    with pytest.raises(DataError, match="u has no level 'high' to be pushed to; it has 'x', 'y'"):
        read_table(DATA, interventions=Soft(MASK[:, :1].expand(5, 3), push=1.0, levels={"u": "high"}))
    with pytest.raises(DataError, match="no variable is called 'a'"):
        read_table(DATA, interventions=Soft(MASK, push=1.0, levels={"a": "high"}))
    with pytest.raises(DataError, match="Soft pushes towards levels, but w is continuous"):
        read_table(DATA, interventions=Soft(MASK, push=1.0))
    for push in (0, -1.0, float("inf"), True, "much"):
        with pytest.raises(ConfigError, match="push: expected a positive number"):
            Soft("INT", push=push)  # type: ignore[arg-type]


AGENTS = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]).bool()


@pytest.mark.parametrize(
    ("agents", "names"),
    [
        ("INT", ("drug", "heat")),
        (["", "drug", "drug;heat", "heat", None], ("drug", "heat")),
        (AGENTS, ("agent 1", "agent 2")),
        (AGENTS.numpy(), ("agent 1", "agent 2")),
        (pd.DataFrame(AGENTS.numpy(), columns=["drug", "heat"]), ("drug", "heat")),
        ([0, 4, "4;7", 7, 0], ("4", "7")),
        (["INT2", "INT3"], ("INT2", "INT3")),
    ],
    ids=["column", "labels", "tensor", "array", "frame", "numbers", "columns"],
)
def test_agents(agents: Any, names: tuple[str, ...]) -> None:
    """Who was at work in which rows; their columns are no variables."""
    data = labelled(["", "drug", "drug;heat", "heat", ""])
    if names == ("INT2", "INT3"):
        data[["INT2", "INT3"]] = AGENTS.numpy()
    if not isinstance(agents, str):
        data = data.drop(columns="INT")
    table = read_table(data, interventions=Uncertain(agents, max_agents=2))
    assert table.agents is not None
    assert torch.equal(table.agents, AGENTS)
    assert table.agent_names == names
    assert table.max_agents == 2
    assert table.names == ("u", "v", "w")
    assert not table.clamped.any()
    assert table.intervention is Intervention.NONE
    assert read_table(data, interventions=Uncertain(agents)).max_agents == 1
    assert read_table(data, interventions=Uncertain(agents, max_agents=5)).max_agents == 2


def test_agents_called_like_variables() -> None:
    """Names stay unique."""
    table = read_table(DATA, interventions=Uncertain(["", "u", "u", "heat", ""]))
    assert table.agent_names == ("agent u", "heat")


def test_known_and_uncertain_together() -> None:
    """One of each."""
    data = labelled(["", "u", "v", "", ""]).assign(who=["", "", "", "heat", "heat"])
    table = read_table(data, interventions=[Imperfect("INT"), Uncertain("who")])
    assert table.names == ("u", "v", "w")
    assert table.intervention is Intervention.IMPERFECT
    assert table.clamped.nonzero().tolist() == [[1, 0], [2, 1]]
    assert table.agents is not None
    assert table.agents[:, 0].tolist() == [False, False, False, True, True]
    twice = [Uncertain("who"), Uncertain("who")]
    for wrong in ([Perfect("INT"), Soft("INT", push=1.0)], twice, [Perfect("INT"), "who"]):
        with pytest.raises(ConfigError, match="at most one of Perfect, Imperfect and Soft"):
            read_table(data, interventions=wrong)


@pytest.mark.parametrize(
    ("agents", "message"),
    [
        (AGENTS[:, [0, 0]], "agent 1 and agent 2 are at work in the same rows and cannot be told apart"),
        (torch.stack([AGENTS[:, 0], ~AGENTS[:, 0]], 1), "agent 1 and agent 2 are at work in opposite rows"),
        (torch.stack([AGENTS[:, 0], torch.zeros(5).bool()], 1), "agent 2 is at work in no row"),
        (torch.stack([torch.ones(5).bool(), AGENTS[:, 0]], 1), "agent 1 is at work in every row"),
    ],
    ids=["identical", "opposite", "idle", "always"],
)
def test_agents_of_which_nothing_can_be_learnt(agents: torch.Tensor, message: str) -> None:
    """Said, and kept."""
    with pytest.warns(DataWarning, match=message) as caught:
        table = read_table(DATA, interventions=Uncertain(agents))
    assert len(caught) == 1
    assert table.agents is not None
    assert table.agents.shape == (5, 2)


def test_a_variable_that_was_always_set() -> None:
    """No row tells of its parents: under perfect interventions only."""
    always = torch.zeros(5, 3).bool()
    always[:, 1] = True
    with pytest.warns(DataWarning, match="v was set in every row, so that no row is left"):
        read_table(DATA, interventions=always)
    assert read_table(DATA, interventions=Imperfect(always)).clamped[:, 1].all()


@pytest.mark.parametrize(
    ("interventions", "kind", "message"),
    [
        ("int", ConfigError, r"interventions: the table has no column 'int'; it has u, INT, v, w"),
        ("INTT", ConfigError, r"no column 'INTT'; did you mean INT\?"),
        (Uncertain("who"), ConfigError, "agents: the table has no column 'who'"),
        (["", "U", "", "", ""], DataError, "interventions: no variable is called 'U'"),
        (["", "u;x", "", "", ""], DataError, "interventions: no variable is called 'x'"),
        ([0, 1, 5, 0, 0], DataError, "numbers count the 4 variables from 1, and 0 is none; got 5"),
        ([0, -1, 0, 0, 0], DataError, "numbers count the 4 variables from 1.*got -1"),
        ([0, 1.5, 0, 0, 0], DataError, "expected names of variables, or whole numbers .* got 1.5"),
        ([True, False, True, False, True], DataError, "expected names in this column, got True"),
        (["u", ""], DataError, "expected one label for each of 5 rows, got 2"),
        (MASK, DataError, r"expected a mask of shape \(5, 4\), one column a variable, got \(5, 3\)"),
        (MASK[:3], DataError, "expected 5 rows, one for each of the table's, got 3"),
        (torch.full((5, 4), 2), DataError, "expected true and false, or 1 and 0"),
        (pd.DataFrame({"q": [0] * 5}), DataError, "no variable is called 'q'"),
        (np.full((5, 4), "u"), DataError, "expected a table of true and false"),
        (Uncertain(["", "", "", "", ""]), DataError, "agents: no row names an agent"),
        (Uncertain(AGENTS[:2]), DataError, "agents: expected 5 rows"),
        (Uncertain(AGENTS[:, :0]), DataError, "agents: expected one or more columns"),
        (Uncertain(pd.DataFrame(AGENTS.numpy(), columns=["a", "a"])), DataError, "of different names"),
    ],
    ids=[
        "no column", "close column", "no agents column", "unknown name", "unknown among several",
        "number too large",
        "negative", "fraction", "booleans", "too few labels", "mask too narrow", "mask too short", "no mask",
        "mask of nobody", "text mask", "no agent", "agents too short", "no agents", "agents of one name",
    ],
)  # fmt: skip
def test_bad_interventions(interventions: Any, kind: type[Exception], message: str) -> None:
    """What is wrong is named."""
    with pytest.raises(kind, match=message):
        read_table(labelled(list("pqpqp")), interventions=interventions)


def test_numbers_that_may_be_names() -> None:
    """Whether 1 is the variable called 1 or the first one is not guessed."""
    data = pd.DataFrame({0: [0, 1, 1], 1: [1, 0, 1], "INT": [0, 1, 2]})
    with pytest.raises(DataError, match="may be the name of a variable or its number"):
        read_table(data, interventions="INT")
    data["INT"] = ["", "0", "1"]
    assert read_table(data, interventions="INT").clamped.nonzero().tolist() == [[1, 0], [2, 1]]


@pytest.mark.parametrize("number", [0, 1.5, True], ids=["zero", "fraction", "boolean"])
def test_bad_max_agents(number: Any) -> None:
    """A whole number of at least one."""
    with pytest.raises(ConfigError, match="max_agents: expected a whole number >= 1"):
        Uncertain("INT", max_agents=number)
