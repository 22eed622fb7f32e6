"""The bootstrap: what it counts, its errors, failures, interruption."""

import os
import signal
import warnings
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from ppgen.errors import ConfigError, DataError, SamplingError, SamplingWarning
from ppgen.inference.structure.bootstrap import Bootstrap
from ppgen.inference.structure.graph_samples import SampledSource
from ppgen.inference.structure.prior import Constraints, GraphPrior
from ppgen.inference.structure.problem import Learned, Problem
from ppgen.inference.structure.search import PC, HillClimb
from ppgen.inference.structure.table import Intervention, Table, Variable
from ppgen.testing.statistics import assert_close_to


def table(num: int = 40) -> Table:
    values = torch.arange(2 * num, dtype=torch.float64).reshape(num, 2)
    return Table(
        (Variable("a"), Variable("b")), values, torch.zeros(num, 2, dtype=torch.bool), Intervention.NONE
    )


def problem(data: Table, *, progress: bool = False) -> Problem:
    return Problem(data, None, GraphPrior(), Constraints(), progress)


def edge(present: bool) -> Tensor:
    return torch.tensor([[[False, present], [False, False]]])


@dataclass(frozen=True)
class Stub:
    """Has the edge a -> b where the first row was drawn; fails, or is interrupted, at calls given."""

    fails: tuple[int, ...] = ()
    interrupted_at: int = -1
    seen: list[Table] = field(default_factory=list)
    seeds: list[int | None] = field(default_factory=list)
    name = "stub"

    def run(self, given: Problem, *, seed: int | None = None) -> Learned:
        self.seen.append(given.table)
        self.seeds.append(seed)
        if len(self.seen) - 1 == self.interrupted_at:
            os.kill(os.getpid(), signal.SIGINT)
        if len(self.seen) - 1 in self.fails:
            raise DataError("columns: constant")
        warnings.warn("noise", SamplingWarning, stacklevel=1)
        first = bool((given.table.values[:, 0] == 0).any())
        return Learned(SampledSource(edge(first)), warnings=("this graph is odd",))


def test_frequencies_are_those_of_the_resamples_with_binomial_errors() -> None:
    stub = Stub()
    learned = Bootstrap(stub, num_resamples=400).run(problem(table()), seed=0)
    p, error = learned.source.edge_probabilities(), learned.source.edge_errors()
    drawn = sum(bool((t.values[:, 0] == 0).any()) for t in stub.seen) / 400
    assert float(p[0, 1]) == pytest.approx(drawn, abs=1e-12)
    assert float(error[0, 1]) == pytest.approx((drawn * (1 - drawn) / 400) ** 0.5, rel=1e-6)
    # A row is drawn in 40 of 40 with probability 1 - (1 - 1/40)^40.
    assert_close_to(p[0, 1], 1 - (1 - 1 / 40) ** 40, error[0, 1])
    assert len(set(stub.seeds)) == 400


def test_rows_are_drawn_within_groups_of_the_same_interventions() -> None:
    clamped = torch.zeros(40, 2, dtype=torch.bool)
    clamped[:7, 0], clamped[7:10, 1] = True, True
    agents = torch.zeros(40, 1, dtype=torch.bool)
    agents[5:20] = True
    stub = Stub()
    data = replace(table(), clamped=clamped, agents=agents, intervention=Intervention.PERFECT)
    Bootstrap(stub, num_resamples=5).run(problem(data), seed=0)
    for drawn in stub.seen:
        assert torch.equal(drawn.clamped.sum(0), clamped.sum(0))
        assert int(drawn.agents.sum()) == 15 if drawn.agents is not None else False
        # Every row is one of the table's, with its own marks.
        number = (drawn.values[:, 0] / 2).long()
        assert torch.equal(drawn.clamped, clamped[number])


def test_it_repeats_with_its_seed_and_leaves_torchs_generator() -> None:
    before = torch.get_rng_state()
    one, two, other = (
        Bootstrap(Stub(), num_resamples=30).run(problem(table()), seed=s).source.edge_probabilities()
        for s in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())


def test_failures_are_counted_and_named() -> None:
    with pytest.warns(
        SamplingWarning, match=r"stub failed on 2 of 10 resamples.*DataError: columns: constant"
    ):
        learned = Bootstrap(Stub(fails=(0, 4)), num_resamples=10).run(problem(table()), seed=0)
    assert learned.attributes["num_resamples"] == 8
    assert learned.attributes["num_failed"] == 2
    assert "this graph is odd (in 8 of 8 resamples)" in learned.warnings
    with pytest.raises(SamplingError, match="stub failed on all 3 resamples") as caught:
        Bootstrap(Stub(fails=(0, 1, 2)), num_resamples=3).run(problem(table()), seed=0)
    assert isinstance(caught.value.__cause__, DataError)


def test_ctrl_c_keeps_what_is_done() -> None:
    with pytest.warns(SamplingWarning, match="interrupted after 4 of 50 resamples"):
        learned = Bootstrap(Stub(interrupted_at=3), num_resamples=50).run(problem(table()), seed=0)
    assert learned.attributes["num_resamples"] == 4
    assert learned.attributes["interrupted"] is True


def test_progress_is_shown_only_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    Bootstrap(Stub(), num_resamples=3).run(problem(table()), seed=0)
    assert capsys.readouterr().err == ""
    Bootstrap(Stub(), num_resamples=3).run(problem(table(), progress=True), seed=0)
    assert "3/3" in capsys.readouterr().err


def test_arguments() -> None:
    assert isinstance(Bootstrap().method, HillClimb)
    for wrong in ("pc", PC, Bootstrap(PC())):
        with pytest.raises(ConfigError, match="method: expected a method such as"):
            Bootstrap(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="num_resamples: expected 2 or more"):
        Bootstrap(PC(), num_resamples=1)
