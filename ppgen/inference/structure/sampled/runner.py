"""A run of chains: scores, starts, warm-up, draws, checkpoints, and what came of it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from ppgen.errors import CheckpointError, CompilationError, SamplingWarning
from ppgen.inference.checkpoint import CheckpointDirectory
from ppgen.inference.interrupts import Interrupts
from ppgen.inference.structure.families import ListedScores
from ppgen.inference.structure.graph_samples import SampledSource
from ppgen.inference.structure.listed_scores import listed_scores
from ppgen.inference.structure.problem import Learned, Problem
from ppgen.inference.structure.sampled.agreement import doubts
from ppgen.inference.structure.sampled.candidates import restricted
from ppgen.inference.structure.sampled.engine import COUNTS, Engine, Space
from ppgen.inference.structure.sampled.native import NativeEngine
from ppgen.inference.structure.sampled.packing import PackedFamilies, pack
from ppgen.inference.structure.sampled.starts import layers, scattered_orders
from ppgen.inference.structure.sampled.torch_engine import TorchEngine
from ppgen.inference.structure.warned import warn
from ppgen.ops.compiled import find_compiler

_KIND = "graph_chains"
# Averages over the draws of a batch carry the errors of edge probabilities.
_BATCHES = 50
_WARMUP_PARTS = 20
# Sweeps over orders before chains over partitions start.
_START_SWEEPS = 20
_SECONDS_BETWEEN_CHECKPOINTS = 30.0
# Edges of all draws are kept for ArviZ up to this many bytes; draws are thinned beyond.
_MAX_DRAW_BYTES = 2**28


@dataclass(frozen=True)
class Settings:
    """Options of a run, as in :class:`~ppgen.inference.structure.sampled.method.OrderMCMC`."""

    method: str
    space: Space
    num_chains: int
    num_samples: int
    warmup: int
    thin: int
    max_parents: int
    temperatures: tuple[float, ...]
    candidates: int | Mapping[str, Sequence[str]] | None
    backend: Literal["auto", "native", "torch"]
    checkpoint: str | os.PathLike[str] | None

    def identity(self) -> dict[str, Any]:
        """What a run must have in common with the one that it goes on from."""
        names = ("method", "num_chains", "num_samples", "warmup", "thin", "max_parents")
        return {name: getattr(self, name) for name in names} | {"temperatures": list(self.temperatures)}


@dataclass
class _Progress:
    """What has been done: draws of warm-up, and after it rows, scores and edges by batch."""

    warmed: int = 0
    rows: list[Tensor] = field(default_factory=list)
    log_scores: list[Tensor] = field(default_factory=list)
    edges: list[Tensor] = field(default_factory=list)

    def tree(self) -> dict[str, Any]:
        parts = {"rows": self.rows, "log_scores": self.log_scores, "edges": self.edges}
        return {"warmed": self.warmed} | {name: list(tensors) for name, tensors in parts.items()}


def run_chains(problem: Problem, settings: Settings, seed: int | None) -> Learned:
    """Score the families, run the chains, and say how far they agree.

    Raises:
        ConfigError: the problem and the options do not fit.
        SamplingError: no graph fits the constraints.
        CheckpointError: the checkpoint is damaged, or of another run.
        CompilationError: compiled code was asked for, and there is no compiler.
        KeyboardInterrupt: interrupted before the first draws.
    """
    began = time.perf_counter()
    listed = listed_scores(restricted(problem, settings.candidates), max_parents=settings.max_parents)
    families = pack(listed)
    scored = time.perf_counter()
    directory = None if settings.checkpoint is None else CheckpointDirectory(settings.checkpoint)
    saved = None
    if directory is not None:
        directory.prepare()
        saved = directory.read_latest()
    if seed is None:
        seed = int(torch.randint(2**62, ())) if saved is None else int(saved["seed"])
    identity = settings.identity() | {"seed": seed, "scores": families.digest()}
    if saved is not None:
        _check_same(saved, identity)
    kind = _engine_kind(settings) if saved is None else str(saved["engine"]["engine"])
    engine = _engine(kind, families, settings, problem, seed)
    done = _Progress()
    if saved is not None:
        engine.load_state(saved["engine"])
        done = _Progress(saved["warmed"], saved["rows"], saved["log_scores"], saved["edges"])
    interrupted = _run(engine, done, settings, directory, identity, problem.progress)
    attributes = _attributes(engine, kind, settings, done)
    attributes |= {"score_seconds": scored - began, "chain_seconds": time.perf_counter() - scored}
    return _learned(problem, listed, families, done, attributes, interrupted)


def _engine_kind(settings: Settings) -> str:
    if settings.backend != "auto":
        return settings.backend
    try:
        find_compiler()
    except CompilationError as error:
        warn(f"chains run without compiled code, far slower ({error})", SamplingWarning)
        return "torch"
    return "native"


def _engine(kind: str, families: PackedFamilies, settings: Settings, problem: Problem, seed: int) -> Engine:
    def make(space: Space, places: Tensor, temperatures: Sequence[float]) -> Engine:
        options: dict[str, Any] = {"sweeps": settings.thin, "seed": seed}
        if kind == "native":
            return NativeEngine(families, space, places, temperatures, **options)
        return TorchEngine(families, space, places, temperatures, **options, device=problem.table.device)

    ladder = settings.temperatures
    num_chains = settings.num_chains
    if settings.space == "order":
        places = scattered_orders(families, (num_chains, len(ladder)), seed)
        return make("order", places, ladder)
    orders = make("order", scattered_orders(families, (num_chains, 1), seed), (1.0,))
    orders.advance(-(-_START_SWEEPS // settings.thin), keep=False)
    drawn = orders.advance(1, keep=True)
    rows = drawn.rows[:, 0] if drawn is not None else torch.zeros(num_chains, families.num_nodes)
    places = layers(families.graphs(rows))
    return make("partition", places[:, None].repeat(1, len(ladder), 1), ladder)


def _run(
    engine: Engine,
    done: _Progress,
    settings: Settings,
    directory: CheckpointDirectory | None,
    identity: dict[str, Any],
    progress: bool,
) -> bool:
    """Go on until all is drawn; whether it was interrupted before that."""
    num_batches = min(settings.num_samples, _BATCHES)
    ends = [settings.num_samples * (b + 1) // num_batches for b in range(num_batches)]
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    total = settings.warmup + settings.num_samples
    saved_at = time.perf_counter()

    def save() -> None:
        if directory is not None:
            step = done.warmed + sum(sizes[: len(done.rows)])
            directory.write(step, {"kind": _KIND, **identity, **done.tree(), "engine": engine.state()})

    with Interrupts() as interrupts, tqdm(total=total, disable=not progress, unit="draw") as bar:
        bar.update(done.warmed + sum(sizes[: len(done.rows)]))
        bar.set_description(f"{settings.num_chains} chains")
        while len(done.rows) < num_batches and not interrupts.requested:
            if done.warmed < settings.warmup:
                part = min(-(-settings.warmup // _WARMUP_PARTS), settings.warmup - done.warmed)
                engine.advance(part, keep=False)
                done.warmed += part
            else:
                part = sizes[len(done.rows)]
                drawn = engine.advance(part, keep=True)
                if drawn is not None:
                    done.rows.append(drawn.rows)
                    done.log_scores.append(drawn.log_scores)
                    done.edges.append(drawn.edges / part)
            bar.update(part)
            if time.perf_counter() - saved_at > _SECONDS_BETWEEN_CHECKPOINTS:
                save()
                saved_at = time.perf_counter()
        save()
    interrupted = len(done.rows) < num_batches
    if interrupted and not done.rows:
        raise KeyboardInterrupt
    return interrupted


def _learned(
    problem: Problem,
    listed: ListedScores,
    families: PackedFamilies,
    done: _Progress,
    attributes: dict[str, Any],
    interrupted: bool,
) -> Learned:
    device = problem.table.device
    rows, log_scores = torch.cat(done.rows, 1).cpu(), torch.cat(done.log_scores, 1)
    edge_means = torch.stack(done.edges, 1)
    graphs = families.graphs(rows)
    weights = torch.tensor([part.shape[1] for part in done.rows], dtype=torch.float64)
    chain_edges = torch.einsum("b,cbij->cij", weights.to(edge_means) / weights.sum(), edge_means)
    every = -(-graphs.numel() // _MAX_DRAW_BYTES)
    sentences, figures = doubts(graphs[:, ::every], chain_edges.cpu(), problem.table.names)
    if interrupted:
        sentences = (f"the run was interrupted after {rows.shape[1]} draws of each chain", *sentences)
    for sentence in sentences:
        warn(sentence, SamplingWarning)
    source = SampledSource(
        graphs.to(device), log_scores=log_scores.to(device), edge_means=edge_means.to(device)
    )
    return Learned(
        source=source,
        warnings=sentences,
        attributes=attributes | figures | {"draws_per_chain": rows.shape[1], "interrupted": interrupted},
        agent_probabilities=_agents(listed, families, rows),
        draws=graphs[:, ::every].to(device),
    )


def _agents(listed: ListedScores, families: PackedFamilies, rows: Tensor) -> Tensor | None:
    """p(agent acts on variable), (A, n): for each family drawn, from its terms."""
    if listed.agent_sets is None or listed.agent_terms is None:
        return None
    columns = []
    for node, terms in enumerate(listed.agent_terms):
        found, counts = rows[:, :, node].flatten().unique(return_counts=True)
        number = families.listed_rows[node][found.long()].to(terms.device)
        share = (counts.double() / counts.sum()).to(terms)
        columns.append(share @ terms[number].softmax(1) @ listed.agent_sets.to(terms))
    return torch.stack(columns, 1)


def _attributes(engine: Engine, kind: str, settings: Settings, done: _Progress) -> dict[str, Any]:
    counts = dict(zip(COUNTS, engine.counts.sum(0).tolist(), strict=True))
    figures: dict[str, Any] = {
        "backend": kind,
        "num_chains": settings.num_chains,
        "temperatures": list(settings.temperatures),
        "warmup": done.warmed,
        "sweeps_per_draw": settings.thin,
        "max_parents": settings.max_parents,
    }
    for name in ("swaps", "splits_and_merges", "jumps", "exchanges"):
        if counts[name]:
            figures[f"acceptance_{name}"] = counts[f"{name}_taken"] / counts[name]
    return figures


def _check_same(saved: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    if saved.get("kind") != _KIND:
        raise CheckpointError(
            "checkpoint: the directory holds something else than graph chains; choose another"
        )
    for name, value in identity.items():
        if saved.get(name) != value:
            raise CheckpointError(
                f"checkpoint: the saved run has {name}={saved.get(name)!r}, this one {value!r}; give what "
                "the run was started with, or choose another directory"
            )
