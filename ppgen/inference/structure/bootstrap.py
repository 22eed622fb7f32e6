r"""How often a method finds an edge on rows drawn again (Friedman, Goldszmidt & Wyner 1999)."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from ppgen.errors import ConfigError, PpgenWarning, SamplingError, SamplingWarning
from ppgen.inference.interrupts import Interrupts
from ppgen.inference.structure.graph_samples import SampledSource
from ppgen.inference.structure.problem import Learned, Method, Problem
from ppgen.inference.structure.search import HillClimb
from ppgen.inference.structure.table import Table
from ppgen.inference.structure.warned import warn


@dataclass(frozen=True)
class Bootstrap:
    r"""Any method on tables of rows drawn with replacement, as many as there are.

    Rows are drawn within the groups that had the same interventions, since how many rows an experiment gave
    is not random. Each resample leaves one graph, drawn from what the method made of it. The graphs are
    independent given the data, so that the frequency :math:`\hat p` of an edge over B of them has the
    standard error :math:`\sqrt{\hat p (1 - \hat p) / B}`. It says how far the method's answer hangs on the
    rows that happened to be seen, and not how probable the edge is: a method that is wrong the same way each
    time has frequencies of 1.

    Ctrl-C ends it with the resamples done so far. A resample on which the method fails is left out, and the
    result says how many were and why.

    Attributes:
        method: what is run on each resample: an object such as ``GES()`` (default: ``HillClimb()``).
        num_resamples: B.
    """

    method: Method = field(default_factory=HillClimb)
    num_resamples: int = 100
    name: ClassVar[str] = "bootstrap"

    def __post_init__(self) -> None:
        if not isinstance(self.method, Method) or isinstance(self.method, Bootstrap | type):
            raise ConfigError(f"method: expected a method such as structure.GES(), got {self.method!r}")
        if isinstance(self.num_resamples, bool) or not self.num_resamples >= 2:
            raise ConfigError(f"num_resamples: expected 2 or more, got {self.num_resamples!r}")

    def run(self, problem: Problem, *, seed: int | None = None) -> Learned:
        """Learn.

        Raises:
            SamplingError: the method failed on every resample; the first error is its cause.
            KeyboardInterrupt: interrupted before the first resample was done.
        """
        start = time.perf_counter()
        generator = torch.Generator()
        generator.manual_seed(int(torch.randint(2**62, ())) if seed is None else seed)
        groups = _groups(problem.table)
        graphs: list[Tensor] = []
        doubts: Counter[str] = Counter()
        failures: list[Exception] = []
        with (
            Interrupts() as interrupts,
            tqdm(total=self.num_resamples, disable=not problem.progress, unit="resample") as bar,
        ):
            for _ in range(self.num_resamples):
                if interrupts.requested:
                    break
                rows = _resample(groups, generator).to(problem.table.device)
                resampled = replace(problem, table=problem.table.rows(rows), progress=False)
                inner, outer = torch.randint(2**62, (2,), generator=generator).tolist()
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", PpgenWarning)  # counted below
                        learned = self.method.run(resampled, seed=inner)
                        graphs.append(learned.source.sample(1, seed=outer).adjacency[0])
                except Exception as error:  # one that fails leaves the others as they are
                    failures.append(error)
                else:
                    # That one run says nothing of how sure it is, is what the bootstrap is for.
                    doubts.update({text for text in learned.warnings if "a bootstrap" not in text})
                bar.update()
        if not graphs:
            if not failures:
                raise KeyboardInterrupt
            raise SamplingError(
                f"method: {self.method.name} failed on all {len(failures)} resamples; the first time with "
                f"{type(failures[0]).__name__}: {failures[0]}"
            ) from failures[0]
        return Learned(
            source=SampledSource(torch.stack(graphs)),
            warnings=self._sentences(len(graphs), failures, doubts, interrupts.requested),
            attributes={
                "method": self.method.name,
                "num_resamples": len(graphs),
                "num_failed": len(failures),
                "interrupted": interrupts.requested,
                "seconds": time.perf_counter() - start,
            },
        )

    def _sentences(
        self, done: int, failures: list[Exception], doubts: Counter[str], interrupted: bool
    ) -> tuple[str, ...]:
        own = []
        if interrupted:
            own.append(f"the bootstrap was interrupted after {done} of {self.num_resamples} resamples")
        if failures:
            kinds = Counter(f"{type(error).__name__}: {error}" for error in failures)
            text, number = kinds.most_common(1)[0]
            own.append(
                f"{self.method.name} failed on {len(failures)} of {done + len(failures)} resamples, most "
                f"often ({number} times) with {text}"
            )
        for sentence in own:
            warn(sentence, SamplingWarning)
        own.append(
            f"frequencies over resamples say how stable {self.method.name} is on these data, not how "
            "probable an edge is"
        )
        return (*own, *(f"{text} (in {n} of {done} resamples)" for text, n in doubts.most_common(5)))


def _groups(table: Table) -> list[Tensor]:
    """Numbers of the rows that had the same interventions."""
    made = table.clamped if table.agents is None else torch.cat([table.clamped, table.agents], 1)
    _, which = made.cpu().unique(dim=0, return_inverse=True)
    return [(which == group).nonzero()[:, 0] for group in range(int(which.max()) + 1)]


def _resample(groups: list[Tensor], generator: torch.Generator) -> Tensor:
    return torch.cat([g[torch.randint(len(g), (len(g),), generator=generator)] for g in groups])
