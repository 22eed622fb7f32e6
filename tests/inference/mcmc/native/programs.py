"""Functions of a vector as one compiled program, to compare with torch.

A batch of functions becomes one density: its parts are all their outputs, and its gradient is that of
their sum with fixed weights, so that programs, their gradients, and how they share loops are tested.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad

from ppgen.inference.mcmc.density import Density
from ppgen.inference.mcmc.hmc import hmc_kernel
from ppgen.inference.mcmc.kernel import Kernel, State
from ppgen.inference.mcmc.native.build import build
from ppgen.inference.mcmc.native.codegen import generate
from ppgen.inference.mcmc.native.trace import trace_kernel


@dataclass(frozen=True)
class Case:
    """``function`` of ``size`` numbers; ``away`` maps standard normal ones to where it is defined."""

    function: Callable[[Tensor], Tensor]
    size: int = 6
    away: Callable[[Tensor], Tensor] = lambda x: x
    smooth: bool = True


def as_density(cases: Mapping[str, Case], dtype: torch.dtype) -> tuple[Density, dict[str, slice]]:
    """The density, and where the outputs of each case are among its parts."""
    sizes = [case.size for case in cases.values()]
    places: dict[str, slice] = {}
    start = 0
    for name, case in cases.items():
        count = case.function(case.away(torch.full((case.size,), 0.3, dtype=dtype))).numel()
        places[name] = slice(start, start + count)
        start += count
    weights = torch.cos(torch.arange(start, dtype=dtype))

    def outputs(z: Tensor) -> list[Tensor]:
        pieces = z.split(sizes)
        return [
            case.function(case.away(piece)).reshape(-1).to(dtype)
            for case, piece in zip(cases.values(), pieces, strict=True)
        ]

    def single(z: Tensor) -> tuple[Tensor, Tensor]:
        def weighted(x: Tensor) -> Tensor:
            total = torch.zeros((), dtype=dtype)
            for case, place, value in zip(cases.values(), places.values(), outputs(x), strict=True):
                if case.smooth:
                    total = total + (value * weights[place]).sum()
            return total

        return torch.cat(outputs(z)), grad(weighted)(z).expand(start, sum(sizes))

    return Density(sum(sizes), start, single, torch.vmap(single)), places


def compiled(density: Density, dtype: torch.dtype) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The density's program: points (C, D) to parts (C, P) and gradients (C, P, D)."""
    kernel = hmc_kernel(density.num_dims)
    params = {"scale": torch.ones(density.num_dims), "weights": torch.ones(density.num_parts)}
    params["num_steps"] = torch.tensor(1)
    generated = generate(trace_kernel(kernel, density, dtype=dtype, params=params))
    library = build(generated.source, double=generated.double, num_statements=generated.num_statements)
    lanes = 64 // dtype.itemsize

    def run(z: Tensor) -> tuple[Tensor, Tensor]:
        groups = z.reshape(-1, lanes, density.num_dims).transpose(1, 2).contiguous()
        u = torch.empty(len(groups), density.num_parts, lanes, dtype=dtype)
        g = torch.empty(len(groups), density.num_parts * density.num_dims, lanes, dtype=dtype)
        pointers = (ctypes.c_void_p * max(1, len(generated.uniforms)))(
            *(x.data_ptr() for x in generated.uniforms)
        )
        arguments = [pointers, *(ctypes.c_void_p(x.data_ptr()) for x in (groups, u, g))]
        library.handle.ppgen_energy(*arguments, ctypes.c_int64(0), ctypes.c_int64(len(groups)))
        return (
            u.transpose(1, 2).reshape(len(z), density.num_parts),
            g.transpose(1, 2).reshape(len(z), density.num_parts, density.num_dims),
        )

    return run


Step = Callable[[str, State, Mapping[str, Tensor], Mapping[str, Tensor]], State]


def compiled_steps(
    kernel: Kernel, density: Density, dtype: torch.dtype, params: Mapping[str, Tensor]
) -> Step:
    """The program's own ``begin``, ``advance`` and ``end``, each called by name, with noise that is given.

    For as many chains as a vector has lanes; ``advance`` uses the program's energy.
    """
    graphs = trace_kernel(kernel, density, dtype=dtype, params=params)
    generated = generate(graphs)
    load, store = [], []
    for i, entry in enumerate(generated.state):
        load.append(f"__builtin_memcpy(f.s_{entry.name}, state[{i}], sizeof(f.s_{entry.name}));")
        store.append(f"__builtin_memcpy(state[{i}], f.s_{entry.name}, sizeof(f.s_{entry.name}));")
    load += [f"f.p{i} = (decltype(f.p{i}))params[{i}];" for i in range(len(generated.params))]
    entries = []
    for name, specs in graphs.noise.items():
        noise = [
            f"__builtin_memcpy(f.n_{name}_{key}, noise[{i}], sizeof(f.n_{name}_{key}));"
            for i, key in enumerate(specs)
        ]
        body = "\n".join(
            ["Frame &f = *new_frame(uniform);", *load, *noise, f"{name}(f);", *store, "free(&f);"]
        )
        arguments = "void **state, const void *const *uniform, void **params, void **noise"
        entries.append(f'extern "C" void test_{name}({arguments}) {{\n{body}\n}}')
    source = "\n".join([generated.source, *entries])
    library = build(source, double=generated.double, num_statements=generated.num_statements)
    lanes = 64 // dtype.itemsize
    integers = torch.int64 if dtype is torch.float64 else torch.int32

    def packed(x: Tensor) -> Tensor:
        whole = x.reshape(lanes, -1).T
        if x.is_floating_point():
            whole = whole.to(dtype)
        else:
            whole = -whole.to(integers) if x.dtype is torch.bool else whole.to(integers)
        return whole.clone(memory_format=torch.contiguous_format)  # for C to write to

    def pointers(tensors: list[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
        return (ctypes.c_void_p * max(1, len(tensors)))(*(x.data_ptr() for x in tensors))

    def step(name: str, state: State, params: Mapping[str, Tensor], noise: Mapping[str, Tensor]) -> State:
        held = [packed(state[e.name]) for e in generated.state]
        shared = [
            (params[e.name].to(dtype if params[e.name].is_floating_point() else torch.int64)).contiguous()
            for e in generated.params
        ]
        random = [packed(noise[key]) for key in graphs.noise[name]]
        function = library.handle[f"test_{name}"]
        function(*(pointers(x) for x in (held, list(generated.uniforms), shared, random)))
        return {
            e.name: x.T.reshape(state[e.name].shape).to(state[e.name].dtype).clone()
            if state[e.name].dtype is not torch.bool
            else (x.T != 0).reshape(state[e.name].shape)
            for e, x in zip(generated.state, held, strict=True)
        }

    return step
