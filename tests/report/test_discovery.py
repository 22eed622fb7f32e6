"""``ppgen discover``: its files, its page, its sentences, its arguments, and how it ends."""

import csv
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from ppgen.cli import main
from ppgen.contract import Estimate, Kind
from ppgen.errors import ConfigError, DataError
from ppgen.inference import structure
from ppgen.inference.pgmpy_adapter import example_network, read_bif, write_bif
from ppgen.inference.structure.graph_samples import SampledSource
from ppgen.inference.structure.problem import Learned, Problem
from ppgen.ops.random import forked_rng
from ppgen.report.discovery import discover
from ppgen.report.discovery_arguments import (
    parse_edges,
    parse_levels,
    parse_options,
    parse_tiers,
    read_reference,
)
from ppgen.report.discovery_doubts import Figures, doubts, findings, rounded

NAMES = ("Pollution", "Smoker", "Cancer", "Xray", "Dyspnoea")


@pytest.fixture(autouse=True)
def own_generators() -> Iterator[None]:
    """A command owns torch's generators; a test does not."""
    with forked_rng(0):
        yield


@pytest.fixture(name="table", scope="module")
def cancer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of the network ``cancer``, half of them with Cancer named as set."""
    network = example_network("cancer")
    codes = network.draw(500, torch.Generator().manual_seed(0)).tolist()
    path = tmp_path_factory.mktemp("discovery") / "cancer.csv"
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow([*network.names, "SET"])
        for number, row in enumerate(codes):
            levels = [network.levels[v][k] for v, k in enumerate(row)]
            out.writerow([*levels, "Cancer" if number < 100 else ""])
    return path


@pytest.fixture(name="reference", scope="module")
def cancer_bif(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "cancer.bif"
    write_bif(example_network("cancer"), path)
    return path


@pytest.fixture(name="report", scope="module")
def cancer_report(table: Path, reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    arguments = [
        "--interventions",
        "SET",
        "--reference",
        str(reference),
        "--forbid",
        "Xray->Smoker",
        "--quiet",
    ]
    with forked_rng(0):
        assert main(["discover", str(table), *arguments, "--out", str(out), "--device", "cpu"]) == 0
    return out


# -- the files ------------------------------------------------------------------------------


def test_the_files_agree_with_each_other(report: Path) -> None:
    tree = json.loads((report / "graph.json").read_text())
    names = [v["name"] for v in tree["variables"]]
    assert names == list(NAMES)
    with (report / "edges.csv").open() as file:
        rows = list(csv.DictReader(file))
    shares = [float(row["probability"]) for row in rows]
    assert shares == sorted(shares, reverse=True)
    for row in rows:
        i, j = names.index(row["from"]), names.index(row["to"])
        assert float(row["probability"]) == pytest.approx(tree["edge_probabilities"][i][j], rel=1e-5)
        assert float(row["reverse_probability"]) == pytest.approx(tree["edge_probabilities"][j][i], rel=1e-5)
        assert int(row["in_median_graph"]) == ([row["from"], row["to"]] in tree["median_graph"])
        assert int(row["in_reference"]) == ([row["from"], row["to"]] in tree["reference"])
    assert sum(shares) == pytest.approx(sum(map(sum, tree["edge_probabilities"])), rel=1e-5)
    assert tree["rows_set"] == [0, 0, 100, 0, 0]
    assert tree["edge_probabilities"][3][1] == 0  # forbidden
    assert tree["log_evidence"]["kind"] == "exact"


def test_the_network_has_the_median_graph_and_posterior_means(report: Path, table: Path) -> None:
    network = read_bif(report / "graph.bif").reordered(NAMES)
    tree = json.loads((report / "graph.json").read_text())
    assert sorted(map(list, network.edges)) == sorted(tree["median_graph"])
    with table.open() as file:
        rows = list(csv.DictReader(file))
    node = NAMES.index("Smoker")
    if not network.parents[node]:
        hits = sum(row["Smoker"] == network.levels[node][0] for row in rows)
        assert float(network.tables[node][0]) == pytest.approx((hits + 0.5) / (len(rows) + 1), abs=1e-9)


def test_the_page_is_whole_and_needs_nothing_beside_it(report: Path) -> None:
    page = (report / "index.html").read_text()
    for heading in ("What came out", "The graph", "Edges and their probabilities", "What to doubt"):
        assert heading in page
    assert page.count("data:image/png;base64,") == 2  # light and dark
    assert "http" not in page
    assert "Perfect: rows that set Cancer in 100." in page
    seen = _Tags()
    seen.feed(page)
    assert not seen.open
    assert seen.links == {"edges.csv", "graph.json", "graph.bif"}
    assert all((report / link).is_file() for link in seen.links)


class _Tags(HTMLParser):
    """Tags that are not closed, and links."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "source", "br"):
            self.open.append(tag)
        self.links |= {value or "" for name, value in attrs if name == "href"}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_names_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_text("<b>x</b>,y & z\n" + "0,1\n1,0\n0,0\n1,1\n" * 5)
    result = discover(path, out=tmp_path / "out", device="cpu", progress=False)
    page = result.path.read_text()
    assert "<b>x</b>" not in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    assert "“&lt;b&gt;x&lt;/b&gt;” to “_b_x__b_”" in page  # what BIF made of it


def test_continuous_tables_have_no_bif_and_an_old_one_goes(tmp_path: Path) -> None:
    values = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)).tolist()
    path, out = tmp_path / "real.csv", tmp_path / "out"
    path.write_text("a,b\n" + "\n".join(f"{x},{y}" for x, y in values))
    out.mkdir()
    (out / "graph.bif").write_text("old")
    result = discover(path, out=out, device="cpu", progress=False)
    assert not (out / "graph.bif").exists()
    assert "There is no graph.bif: the format is for discrete variables" in result.path.read_text()


def test_the_command_takes_every_way_to_read_and_know(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        "discover",
        str(table),
        "--out",
        str(out),
        "--device",
        "cpu",
        "--quiet",
        "--interventions",
        "SET",
    ]
    command += ["--intervention-kind", "uncertain", "--max-agents", "1", "--method", "hill_climb"]
    command += ["--option", "tabu_length=20", "--score", "bdeu", "--score-option", "equivalent_sample_size=2"]
    command += ["--levels", "Xray=positive,negative,unclear", "--tiers", "Pollution,Smoker/Cancer"]
    command += ["--require", "Cancer->Xray", "--max-parents", "2", "--prior", "uniform", "--missing", "drop"]
    assert main(command) == 0
    tree = json.loads((out / "graph.json").read_text())
    assert tree["variables"][3]["levels"] == ["positive", "negative", "unclear"]
    assert tree["edge_probabilities"][2][3] == 1
    assert tree["edge_probabilities"][2][0] == tree["edge_probabilities"][2][1] == 0
    assert len(tree["agents"]["names"]) == 1
    assert "equivalent_sample_size=2" in tree["environment"]["settings"]["score"]


def test_soft_interventions_push_to_the_levels_told(tmp_path: Path) -> None:
    path, out = tmp_path / "soft.csv", tmp_path / "out"
    path.write_text("a,b,set\n" + "low,1,\nhigh,0,a\nhigh,1,a\nlow,0,b\nhigh,0,\n" * 8)
    command = ["discover", str(path), "--out", str(out), "--device", "cpu", "--quiet"]
    command += ["--interventions", "set", "--intervention-kind", "soft", "--push", "5"]
    assert main([*command, "--push-to", "a=high"]) == 2  # b was set too
    assert main([*command, "--push-to", "a=high", "--push-to", "b=0"]) == 0
    found = json.loads((out / "graph.json").read_text())["edge_probabilities"]
    kind = structure.Soft("set", push=5.0, levels={"a": "high", "b": 0})
    expected = structure.learn(path, interventions=kind, progress=False).edge_probabilities
    assert found[0][1] == pytest.approx(expected.loc["a", "b"], abs=1e-6)


# -- how it ends ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Stopped:
    """A method that is interrupted, with or without something to show."""

    empty: bool = False
    name = "stopped"

    def run(self, problem: Problem, *, seed: int | None = None) -> Learned:
        if self.empty:
            os.kill(os.getpid(), signal.SIGINT)
        graph = torch.zeros(1, 5, 5, dtype=torch.bool)
        return Learned(SampledSource(graph), ("cut short",), {"interrupted": True})


def test_an_interrupted_run_writes_what_there_is(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ppgen.report.discovery.find_method", lambda *_: Stopped())
    command = ["discover", str(table), "--interventions", "SET", "--quiet", "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 130
    assert "interrupted; the report holds what was done" in capsys.readouterr().err
    page = (tmp_path / "out" / "index.html").read_text()
    assert "The run was interrupted." in page
    assert "Cut short." in page
    monkeypatch.setattr("ppgen.report.discovery.find_method", lambda *_: Stopped(empty=True))
    assert main([*command, "--out", str(tmp_path / "none")]) == 130
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--method", "nonsense"], "method: expected one of exact"),
        (["--option", "x=1"], "x: method 'exact' has no such option"),
        (["--option", "seed=1"], "--option: seed is no option of a method"),
        (["--option", "x"], "--option: expected NAME=VALUE"),
        (["--forbid", "Cancer"], "--forbid: expected edges such as 'A->B'"),
        (["--forbid", "Cancer->Zip"], "no variable is called 'Zip'"),
        (["--require", "Cancer->Xray", "--forbid", "Cancer->Xray"], "required"),
        (["--tiers", "Cancer//Xray"], "--tiers: expected groups"),
        (["--levels", "Cancer=True"], "--levels: expected 'COLUMN=a,b,c'"),
        (["--push", "3"], "--push: is for --intervention-kind soft"),
        (["--push-to", "Xray=positive"], "--push-to: is for --intervention-kind soft"),
        (["--max-agents", "2"], "--max-agents: is for --intervention-kind uncertain"),
        (["--intervention-kind", "soft"], "--intervention-kind: soft needs the column"),
        (["--interventions", "SET", "--intervention-kind", "soft"], "--push: soft interventions need"),
        (
            ["--interventions", "SET", "--intervention-kind", "soft", "--push", "3", "--push-to", "Xray"],
            "--push-to: expected COLUMN=LEVEL",
        ),
        (["--interventions", "NONE"], "NONE"),
        (["--score", "nonsense"], "nonsense"),
        (["--score", "bdeu", "--score-option", "ess=1"], "--score-option: bdeu has no ess"),
        (["--score-option", "ess=1"], "--score-option: which score has it"),
        (["--reference", "/nowhere.csv"], "--reference: /nowhere.csv cannot be read"),
        (["--max-parents", "-1"], "max_parents"),
        (["--device", "cuda:77"], "device"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line_and_leave_nothing(
    arguments: list[str], match: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = any("intervention" in word for word in arguments)
    arguments = [*([] if told else ["--interventions", "SET"]), *arguments]
    assert main(["discover", str(table), "--quiet", "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("ppgen discover: ")
    assert match in error
    assert not (tmp_path / "out").exists()


def test_a_place_that_is_a_file(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["discover", str(table), "--out", str(tmp_path / "file")]) == 2
    assert "is a file; choose a directory" in capsys.readouterr().err
    assert main(["discover", str(tmp_path / "missing.csv"), "--out", str(tmp_path / "out")]) == 2


# -- sentences ------------------------------------------------------------------------------


def figures(p: list[list[float]], **changes: Any) -> Figures:
    matrix = torch.tensor(p, dtype=torch.float64)
    n = len(matrix)
    made = Figures(
        names=("a", "b", "c")[:n],
        probabilities=matrix,
        errors=torch.zeros_like(matrix),
        median=matrix > 0.5,
        dropped=(),
        log_evidence=None,
        num_rows=1000,
        clamped=torch.zeros(n, dtype=torch.int64),
    )
    return replace(made, **changes)


SURE = [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


def test_sure_edges_leave_only_the_doubt_about_causes() -> None:
    (only,) = doubts(figures(SURE))
    assert only.startswith("To read an arrow as a cause")
    assert findings(figures(SURE)) == [
        "2 edges of 6 possible are more probable than not, all above .95; 2.0 are expected in all."
    ]


def test_open_edges_and_directions_are_named() -> None:
    found = doubts(figures([[0.0, 0.7, 0.3], [0.29, 0.0, 0.0], [0.1, 0.0, 0.0]]))
    assert (
        "Whether there is an edge is open for 1 pair (probability between 0.1 and 0.9): a – c (0.40)."
        in found
    )
    assert any("direction is open for 1 edge" in s and "a – b (0.70 against 0.29)" in s for s in found)


def test_errors_cycles_rows_and_warnings_are_told() -> None:
    errors = torch.zeros(3, 3, dtype=torch.float64)
    errors[0, 1] = 0.04
    found = doubts(
        figures(
            SURE,
            errors=errors,
            dropped=(("c", "a"),),
            warnings=("chains disagree",),
            num_rows=12,
            intervention="perfect",
            clamped=torch.tensor([12, 3, 0]),
        )
    )
    assert "Chains disagree." in found
    assert any("the largest standard error is 0.04, of a → b" in s for s in found)
    assert any("make cycles" in s and "c → a is left out" in s for s in found)
    assert any(s.startswith("a is set in every row") for s in found)
    assert any("12 rows for 3 variables are few" in s for s in found)
    few = doubts(figures(SURE, intervention="perfect", clamped=torch.tensor([990, 0, 0])))
    assert "Fewer than 20 rows tell what acts on a." in few


def test_evidence_agents_and_a_reference() -> None:
    reference = torch.tensor([[False, True, True], [False, False, False], [False, True, False]])
    evidence = Estimate.of(torch.tensor(-12.345), Kind.ESTIMATE, torch.tensor(0.25))
    acts = (("drug",), torch.tensor([[0.9, 0.2, 0.6]]))
    found = findings(figures(SURE, reference=reference, log_evidence=evidence, agents=acts))
    assert any("is -12.35 ± 0.25 nats" in s or "is -12.34 ± 0.25 nats" in s for s in found)
    assert "More probable than not: drug acts on a and c." in found
    assert found[-1] == (
        "Against the reference graph, of the median graph: 1 of its 3 edges are found, 1 the other way "
        "round, 1 missed (a → c)."
    )


def test_probabilities_round_to_certainty_only_where_they_are_certain() -> None:
    assert [rounded(p) for p in (0.0, 1e-9, 0.25, 0.9999, 1.0)] == [
        "0.000",
        "< .001",
        "0.250",
        "> .999",
        "1.000",
    ]


# -- arguments ------------------------------------------------------------------------------


def test_texts_become_arguments() -> None:
    assert parse_edges(["A->B, C -> D", "E→F"], "--forbid") == [("A", "B"), ("C", "D"), ("E", "F")]
    assert parse_tiers("A,B/C") == [["A", "B"], ["C"]]
    assert parse_tiers(None) == []
    assert parse_levels(["A=low,high", "B=1,2.5,x"]) == {"A": ["low", "high"], "B": [1, 2.5, "x"]}
    assert parse_levels(["1,2,3"]) == [1, 2, 3]
    assert parse_levels([]) is None
    assert parse_options(["a=3", "b=True", "c=(1,2)", "d=text"]) == {
        "a": 3,
        "b": True,
        "c": (1, 2),
        "d": "text",
    }


@pytest.mark.parametrize(
    "text", ["a,b\nb,c\n", "from,to\na,b\nb,c\n", "a -> b\n# remark\n\nb -> c\n", "a b\nb c\n"]
)
def test_references_as_lines(text: str, tmp_path: Path) -> None:
    path = tmp_path / "edges.txt"
    path.write_text(text)
    assert read_reference(path, ["c", "b", "a"]).nonzero().tolist() == [[1, 0], [2, 1]]
    with pytest.raises(DataError, match="no variable of the table is called 'b'"):
        read_reference(path, ["a", "c"])
    path.write_text("a\n")
    with pytest.raises(DataError, match="expected lines 'from,to'"):
        read_reference(path, ["a", "b"])


def test_a_reference_as_bif(reference: Path) -> None:
    network = example_network("cancer")
    assert torch.equal(read_reference(reference, network.names), network.adjacency)


def test_tiers_that_are_empty_are_refused() -> None:
    with pytest.raises(ConfigError, match="--tiers"):
        parse_tiers("")
