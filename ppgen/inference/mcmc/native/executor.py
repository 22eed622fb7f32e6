"""Runs transitions in compiled code, many chains in the lanes of vectors and groups of lanes in threads."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppgen.errors import CheckpointError, CompilationError, ConfigError
from ppgen.inference.mcmc.density import Density
from ppgen.inference.mcmc.kernel import Kernel, Params, State
from ppgen.inference.mcmc.native.build import build
from ppgen.inference.mcmc.native.codegen import generate
from ppgen.inference.mcmc.native.layout import Entry, Generated, UnsupportedOperation
from ppgen.inference.mcmc.native.packing import Layout, PackedState
from ppgen.inference.mcmc.native.streams import streams
from ppgen.inference.mcmc.native.trace import trace_kernel

#: Makes the program of a kernel on a density, for a type and examples of params.
Generate = Callable[[Kernel, Density, torch.dtype, Params], Generated]

_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64
# The program's functions; see `layout` and `packing.hpp`.
_SIGNATURES = {
    "ppgen_run": [_POINTER] * 6 + [_NUMBER] * 4,
    "ppgen_energy": [_POINTER] * 4 + [_NUMBER] * 2,
    "ppgen_pack": [_NUMBER, _POINTER, _POINTER, _NUMBER, _NUMBER],
    "ppgen_unpack": [_NUMBER, _POINTER, _POINTER, _NUMBER, _NUMBER, _NUMBER],
}
# Starting threads takes a good part of a millisecond.
_THREADS_PAY_SECONDS = 2e-3
# Chains of a group may need longer than others: so many pieces a thread.
_PIECES_PER_THREAD = 4
# Self-check: at how many points, how many of them far out, how far, and what error rounding may explain.
_NUM_CHECKED, _NUM_FAR, _FAR_OUT = 24, 8, 4.0
_TOLERANCE = {torch.float32: 1e-2, torch.float64: 1e-7}
# As many times the change that the last bits of z make.
_ROUNDINGS = 30.0
_SAME_AS_INFINITE = 1e30


@dataclass(frozen=True)
class _Program:
    """A compiled program and what its calls need, ready as C wants it."""

    generated: Generated
    functions: ctypes.CDLL
    uniforms: ctypes.Array[Any]
    params: tuple[str, ...]


class NativeExecutor:
    """Runs a kernel on the CPU as compiled code; see :class:`~ppgen.inference.mcmc.executor.Executor`.

    The program is made in the first call of :meth:`run`, and again only for params of other shapes.
    Draws of a chain depend on the seed and the chain's number, not on how many chains or threads
    there are, nor on how transitions are spread over calls.

    Args:
        kernel: the kernel.
        density: the density; must be ``traceable``.
        num_chains: C.
        seed: of the random streams.
        dtype: float32 or float64.
        lanes: chains a vector; by default as many as fill 64 bytes.
        make_program: makes the C++ program.

    Attributes:
        info: ``trace_seconds`` (tracing and generating C++), ``compile_seconds`` (of the compiler; 0 where
            the library was there), ``origin`` of the library (compiled, disk, memory), ``lanes``,
            ``library`` and ``source`` (paths).

    Raises:
        CompilationError: the density is not ``traceable``, or the type is no float32 or float64; from
            :meth:`run`, tracing or the compiler failed, or the compiled energy is not the density's.
        UnsupportedOperation: from :meth:`run`; an operation has no compiled form.
    """

    def __init__(
        self,
        kernel: Kernel,
        density: Density,
        *,
        num_chains: int,
        seed: int,
        dtype: torch.dtype,
        lanes: int | None = None,
        make_program: Generate | None = None,
    ) -> None:
        if num_chains < 1:
            raise ConfigError(f"num_chains: expected at least 1, got {num_chains}")
        if not density.traceable:
            raise CompilationError("the density cannot be traced: its program depends on values")
        if dtype not in _TOLERANCE:
            raise CompilationError(f"compiled code runs in float32 or float64, got {dtype}")
        self.kernel, self.density, self.num_chains, self.dtype = kernel, density, num_chains, dtype
        self.lanes = lanes or 64 // dtype.itemsize
        self.info: dict[str, Any] = {"trace_seconds": 0.0, "compile_seconds": 0.0, "lanes": self.lanes}
        self._generate = make_program or _generate
        self._num_groups = -(-num_chains // self.lanes)
        self._programs: dict[Any, _Program] = {}
        self._rng = torch.empty(self._num_groups, 4, self.lanes, dtype=torch.int32)
        self._rng_address = self._rng.data_ptr()
        self._set_streams(streams(seed, self._num_groups * self.lanes))
        self._layout: Layout | None = None
        self._known: dict[str, tuple[Tensor, int, Tensor]] = {}
        self._seconds_per_transition = 0.0

    @property
    def description(self) -> str:
        """What runs the chains, for people."""
        return f"native C++ on the CPU, {self.lanes} chains a vector, {self.dtype}"

    @torch.no_grad()
    def init(self, z: Tensor, step_size: Tensor) -> State:
        """See :class:`~ppgen.inference.mcmc.executor.Executor`."""
        return self.kernel.init(z, self.density.evaluate, step_size)

    def run(
        self,
        state: State,
        params: Params,
        *,
        num: int,
        schedule: Params | None = None,
        record: Sequence[str] = (),
    ) -> tuple[State, dict[str, Tensor]]:
        """See :class:`~ppgen.inference.mcmc.executor.Executor`."""
        changing = schedule or {}
        program = self._program(params, changing)
        layout = self._layout
        if layout is None:
            layout = self._layout = Layout(
                program.generated.state,
                program.functions,
                num_chains=self.num_chains,
                num_groups=self._num_groups,
                lanes=self.lanes,
                dtype=self.dtype,
            )
        packed = layout.pack(state)
        pointers = layout.pointers(packed)
        rooms = {name: layout.room(name, num) for name in record}
        records = layout.records(rooms)
        alive: list[Tensor] = []  # what C points to must live until the call returns
        fixed = (_POINTER * len(program.params))()
        rows = (_POINTER * len(program.params))()
        for place, name in enumerate(program.params):
            if name in changing:
                rows[place] = self._ready(name, changing[name], alive)
            else:
                fixed[place] = self._ready(name, params[name], alive)

        def work(first: int, last: int) -> None:
            failed = program.functions.ppgen_run(
                pointers.ctypes.data, program.uniforms, fixed, rows, records.ctypes.data,
                self._rng_address, first, last, self._num_groups, num,
            )  # fmt: skip
            if failed:
                raise MemoryError("a compiled program found no memory for its temporaries")

        if num > 0:
            self._in_threads(work, num)
        return PackedState(layout, packed), {
            name: layout.recorded(name, room, num) for name, room in rooms.items()
        }

    def rng_state(self) -> Tensor:
        """The streams of all chains, (C, 4) int32."""
        return self._rng.mT.reshape(-1, 4)[: self.num_chains].clone()

    def set_rng_state(self, value: Tensor) -> None:
        """See :class:`~ppgen.inference.mcmc.executor.Executor`.

        Raises:
            CheckpointError: ``value`` is not of this kind of executor, or of another number of chains.
        """
        if value.dtype != torch.int32 or value.shape != (self.num_chains, 4):
            raise CheckpointError(
                f"random state: expected int32 of shape {(self.num_chains, 4)} from the compiled backend, "
                f"got {value.dtype} of shape {tuple(value.shape)}; go on with the backend that made it"
            )
        spare = self._num_groups * self.lanes - self.num_chains
        self._set_streams(torch.cat([value.cpu(), value[:1].expand(spare, 4).cpu()]))

    def _set_streams(self, value: Tensor) -> None:
        self._rng.copy_(value.view(self._num_groups, self.lanes, 4).mT)

    def _program(self, params: Params, schedule: Params) -> _Program:
        """The program for params of these names, shapes and kinds, whether scheduled or not."""
        shapes = {name: (value.shape, value.dtype) for name, value in params.items()}
        shapes |= {name: (value.shape[1:], value.dtype) for name, value in schedule.items()}
        key = tuple(sorted(shapes.items()))
        program = self._programs.get(key)
        if program is None:
            examples = params | {name: value[0] for name, value in schedule.items()}
            program = self._programs[key] = self._make({name: examples[name] for name, _ in key})
        return program

    def _ready(self, name: str, value: Tensor, alive: list[Tensor]) -> int:
        """Address of a param as programs read it; of those met last, the tensor is kept."""
        known = self._known.get(name)
        if known is None or known[0] is not value or known[1] != value._version:
            whole = self.dtype if value.is_floating_point() else torch.int64
            ready = value.detach().to(whole).contiguous()
            ready = -ready if value.dtype == torch.bool else ready
            known = self._known[name] = value, value._version, ready
        alive.append(known[2])
        return known[2].data_ptr()

    def _make(self, params: Params) -> _Program:
        began = time.perf_counter()
        try:
            generated = self._generate(self.kernel, self.density, self.dtype, params)
        except (UnsupportedOperation, MemoryError):
            raise
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            raise CompilationError(f"tracing failed with {type(error).__name__}: {lines[0]}") from error
        self.info["trace_seconds"] += time.perf_counter() - began
        library = build(
            generated.source + '\n#include "packing.hpp"\n',
            double=generated.double,
            lanes=self.lanes,
            num_statements=generated.num_statements,
        )
        for name, types in _SIGNATURES.items():
            getattr(library.handle, name).argtypes = types
        program = _Program(
            generated,
            library.handle,
            (_POINTER * len(generated.uniforms))(*(x.data_ptr() for x in generated.uniforms)),
            tuple(e.name for e in generated.params),
        )
        if not self._programs:
            self._check(program)
        self.info["compile_seconds"] += library.compile_seconds
        self.info |= {"origin": library.origin, "library": library.path, "source": library.source}
        return program

    @torch.no_grad()
    def _check(self, program: _Program) -> None:
        """Compare energies and gradients with the density's own."""
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(_NUM_CHECKED, self.density.num_dims, generator=generator, dtype=self.dtype)
        z[:_NUM_FAR] *= _FAR_OUT
        u, g = self.density.evaluate(z)
        # Where the last bits of z move the energy by much, so does the order of operations.
        eps = torch.finfo(self.dtype).eps
        moved = self.density.evaluate(z * (1 + 4 * eps))
        is_far = (torch.arange(_NUM_CHECKED) < _NUM_FAR)[:, None]
        # One bit of such an energy is worth a nat: no chain comes near.
        ignored = is_far & (u.abs() > 1 / eps).any(1, keepdim=True)
        names = zip(("energy", "gradient"), self._energy(program, z), (u, g), moved, strict=True)
        for name, found, expected, near in names:
            found, expected, near = (x.double().flatten(1) for x in (found, expected, near))
            regular = (found.abs() < _SAME_AS_INFINITE) & (expected.abs() < _SAME_AS_INFINITE)
            irregular = (found.abs() < _SAME_AS_INFINITE) != (expected.abs() < _SAME_AS_INFINITE)
            size = torch.where(regular, expected.abs(), 0).amax(1, keepdim=True)
            rounding = torch.where(regular, (near - expected).abs().nan_to_num(), 0).amax(1, keepdim=True)
            tolerance = _TOLERANCE[self.dtype] * (1 + size) + _ROUNDINGS * rounding
            off = (irregular | regular & ((found - expected).abs() > tolerance)) & ~ignored
            # Far out, rounding may undo a matrix or a difference here and there, but not at most points.
            if 2 * int((off & is_far).any(1).sum()) <= int((~ignored & is_far).sum()):
                off = off & ~is_far
            if bool(off.any()):
                point, place = off.nonzero()[0].tolist()
                raise CompilationError(
                    f"the compiled {name} is not the density's own: {found[point, place]:.6g} instead of "
                    f"{expected[point, place]:.6g} (element {place}) at z = {z[point, :5].tolist()}..."
                )

    def _energy(self, program: _Program, z: Tensor) -> tuple[Tensor, Tensor]:
        num_dims, num_parts = self.density.num_dims, self.density.num_parts
        shapes = {"z": (num_dims,), "u": (num_parts,), "g": (num_parts, num_dims)}
        entries = tuple(Entry(name, shape, "float") for name, shape in shapes.items())
        groups = -(-len(z) // self.lanes)
        layout = Layout(
            entries,
            program.functions,
            num_chains=len(z),
            num_groups=groups,
            lanes=self.lanes,
            dtype=self.dtype,
        )
        packed = layout.pack({e.name: z.new_zeros(len(z), *e.shape) for e in entries} | {"z": z})
        failed = program.functions.ppgen_energy(
            program.uniforms, *layout.pointers(packed).tolist(), 0, groups
        )
        if failed:
            raise MemoryError("a compiled program found no memory for its temporaries")
        return layout.unpack(packed, "u"), layout.unpack(packed, "g")

    def _in_threads(self, work: Callable[[int, int], None], num: int) -> None:
        """Do the work on all groups; in threads, which Python's lock does not stop, where they pay."""
        began = time.perf_counter()
        threads = min(torch.get_num_threads(), self._num_groups)
        if threads > 1 and num * self._seconds_per_transition > _THREADS_PAY_SECONDS:
            pieces = min(threads * _PIECES_PER_THREAD, self._num_groups)
            bounds = [self._num_groups * i // pieces for i in range(pieces + 1)]
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(work, bounds[:-1], bounds[1:]))
        else:
            work(0, self._num_groups)
            self._seconds_per_transition = (time.perf_counter() - began) / num


def _generate(kernel: Kernel, density: Density, dtype: torch.dtype, params: Params) -> Generated:
    return generate(trace_kernel(kernel, density, dtype=dtype, params=params))
