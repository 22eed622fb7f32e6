"""Chains in compiled code: one call a chain, chains in threads.

The program is in the folder ``program``, compiled once for each number of 64-node words.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppgen.inference.structure.sampled.engine import COUNTS, Drawn, Space
from ppgen.inference.structure.sampled.packing import PackedFamilies
from ppgen.ops.compiled import build

#: The C++ program: ``chains.cpp`` and its headers.
PROGRAM = Path(__file__).with_name("program")


class NativeEngine:
    """Runs chains on the CPU; see :class:`~ppgen.inference.structure.sampled.engine.Engine`.

    What a chain draws depends on the seed and the chain's number alone, not on threads nor on how draws are
    spread over calls.

    Args:
        families: the families.
        space: of the chains.
        places: where the nodes start, shape (C, T, n), int64: positions, or numbers of elements.
        temperatures: T of them, the first is 1.
        sweeps: sweeps of n moves between two draws.
        seed: of the streams of random numbers.
        program: the folder of the program.

    Raises:
        CompilationError: there is no compiler, or it failed.
    """

    def __init__(
        self,
        families: PackedFamilies,
        space: Space,
        places: Tensor,
        temperatures: Sequence[float],
        *,
        sweeps: int,
        seed: int,
        program: Path = PROGRAM,
    ) -> None:
        self._families, self._space, self._sweeps = families, space, sweeps
        self._library = _library(families.num_words, program)
        self._betas = 1 / torch.tensor(list(temperatures), dtype=torch.float64)
        self._places = places.contiguous().clone()
        self._num_chains = len(places)
        streams = len(temperatures) + 1
        self._keys = torch.tensor([[_key(seed, c, s) for s in range(streams)] for c in range(len(places))])
        self._counters = torch.zeros_like(self._keys)
        self._scores = torch.stack([self._score(p) for p in self._places])
        self.counts = torch.zeros(len(places), len(COUNTS), dtype=torch.float64)

    @property
    def places(self) -> Tensor:
        """Where the nodes are now, (C, T, n)."""
        return self._places

    @property
    def node_scores(self) -> Tensor:
        """Log scores of the nodes in the present states, (C, T, n)."""
        return self._scores

    def advance(self, num_draws: int, *, keep: bool) -> Drawn | None:
        """Go on by ``num_draws`` draws; ``None`` where graphs are not kept."""
        n, chains = self._families.num_nodes, self._num_chains
        kept = num_draws if keep else 0
        rows = torch.zeros(chains, kept, n, dtype=torch.int32)
        log_scores = torch.zeros(chains, kept, dtype=torch.float64)
        edges = torch.zeros(chains, n, n, dtype=torch.float64)

        def one(c: int) -> None:
            self._call(
                self._library.ppgen_graph_chain,
                (
                    self._places[c],
                    self._scores[c],
                    self._keys[c],
                    self._counters[c],
                    rows[c],
                    log_scores[c],
                    edges[c],
                    self.counts[c],
                ),
                (len(self._betas), num_draws, self._sweeps, int(keep)),
            )

        threads = min(chains, torch.get_num_threads())
        if threads == 1:
            for c in range(chains):
                one(c)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(one, range(chains)))
        return Drawn(rows, log_scores, edges) if keep else None

    def state(self) -> dict[str, Any]:
        """Everything that decides how the chains go on."""
        return {
            "engine": "native",
            "places": self._places,
            "scores": self._scores,
            "counters": self._counters,
            "counts": self.counts,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self._places, self._scores = state["places"].clone(), state["scores"].clone()
        self._counters, self.counts = state["counters"].clone(), state["counts"].clone()

    def _score(self, places: Tensor) -> Tensor:
        scores = torch.zeros(places.shape, dtype=torch.float64)
        self._call(self._library.ppgen_graph_scores, (places, scores), (len(places), 0, 0, 0))
        return scores

    def _call(self, function: Any, tensors: Sequence[Tensor], numbers: Sequence[int]) -> None:
        f = self._families
        shared = (f.offsets, f.masks, f.scores, f.tails, f.bases, f.weights, f.empty, f.single, self._betas)
        pointers = [t.data_ptr() for t in (*shared, *tensors)]
        k = (f.num_nodes, f.masks.shape[1], int(self._space == "partition"), *numbers)
        function((ctypes.c_void_p * 17)(*pointers), (ctypes.c_int64 * len(k))(*k))


def _library(num_words: int, program: Path) -> Any:
    source = (program / "chains.cpp").read_text()
    handle = build(source, headers=program, flags=("-O3", f"-DPPGEN_WORDS={num_words}")).handle
    for name in ("ppgen_graph_chain", "ppgen_graph_scores"):
        function = getattr(handle, name)
        function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_void_p], None
    return handle


def _key(seed: int, chain: int, stream: int) -> int:
    """The key of a stream of random numbers, a signed 64-bit integer."""
    digest = hashlib.sha256(f"{seed} {chain} {stream}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)
