"""Traces a kernel and a density with one chain, as the input of the code generator."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions
from torch.fx import GraphModule

from ppgen.inference.mcmc import graph
from ppgen.inference.mcmc.density import Density
from ppgen.inference.mcmc.kernel import Kernel, NoiseSpec, State
from ppgen.inference.mcmc.native.layout import Entry, kind_of
from ppgen.inference.mcmc.rules import OWN

#: A tensor's part in a program (state, params, noise, u, g, z), and its name or number.
Role = tuple[str, str]

aten = torch.ops.aten

# Decompositions that would hide what the generator does better by itself.
_KEPT = (
    aten.select_backward.default,
    aten.slice_backward.default,
    aten.diagonal_backward.default,
    aten.select_scatter.default,
    aten.mv.default,
    aten.dot.default,
    aten.vdot.default,
    aten.baddbmm.default,
    aten.softplus.default,
    aten.softplus_backward.default,
    aten.stack.default,
    aten.linalg_cholesky.default,
    aten.tril.default,
    aten.triu.default,
    aten.diag_embed.default,
    aten.masked_fill.Scalar,
    aten.masked_fill.Tensor,
    aten.sum.default,
    aten.index_add.default,
    aten.embedding_dense_backward.default,
    aten._unsafe_index.Tensor,
    aten._unsafe_index_put.default,
    aten.rsub.Scalar,
    aten.rsub.Tensor,
    aten.zero.default,
    aten.sigmoid_backward.default,
    aten.tanh_backward.default,
)


@dataclass(frozen=True)
class Traced:
    """One traced function: ``module`` takes ``inputs`` and gives ``outputs``, in order."""

    module: GraphModule
    inputs: tuple[Role, ...]
    outputs: tuple[Role, ...]


@dataclass(frozen=True)
class KernelGraphs:
    """All that the generator needs of a kernel and a density.

    Attributes:
        state: entries of the kernel's state.
        params: what all chains share.
        noise: for ``begin``, ``advance`` and ``end``, what they draw.
        functions: the traced ``begin``, ``advance``, ``end``, ``energy``.
        num_dims: D.
        num_parts: P.
        dtype: of the run.
    """

    state: tuple[Entry, ...]
    params: tuple[Entry, ...]
    noise: Mapping[str, Mapping[str, NoiseSpec]]
    functions: Mapping[str, Traced]
    num_dims: int
    num_parts: int
    dtype: torch.dtype


@functools.cache
def _rules() -> dict[Any, Callable[..., Any]]:
    table = dict(core_aten_decompositions()) | OWN
    for target in _KEPT:
        table.pop(target, None)
    return table


def trace(function: Callable[..., Any], examples: Sequence[Tensor]) -> GraphModule:
    """The aten graph of a function of tensors, without operations in place, decomposed to what is known."""
    with torch.no_grad():
        return _annotated(graph.trace(function, *examples, rules=_rules()))


def _annotated(module: GraphModule) -> GraphModule:
    """``module`` as the generator wants it: literals as such, and for each node a tensor without data."""
    nodes = module.graph
    made: dict[Any, Tensor] = {}
    for node in list(nodes.nodes):
        known = node.meta.get("tensor_meta")
        if known is None:
            continue
        key = known.shape, known.dtype, known.is_plain
        if key not in made:
            room = known.shape if known.is_plain else (*known.shape, 2)
            empty = torch.empty(room, dtype=known.dtype, device="meta")
            made[key] = empty if known.is_plain else empty[..., 1]
        node.meta["val"] = made[key]
        if node.op == "get_attr" and node.target.startswith("_literal"):
            held = getattr(module, node.target)
            number = held.flatten()[:1]
            if held.numel() and bool((held == number).all()):
                with nodes.inserting_before(node):
                    filled = nodes.call_function(
                        aten.full.default, (list(held.shape), number.item()), {"dtype": held.dtype}
                    )
                filled.meta = dict(node.meta)
                node.replace_all_uses_with(filled)
                nodes.erase_node(node)
    return module


def trace_density(density: Density, dtype: torch.dtype) -> Traced:
    """The energy of one chain: ``z`` (D,) to parts (P,) and gradients (P, D)."""
    single = density.single
    if isinstance(single, GraphModule) and _input_types(single) == [((density.num_dims,), dtype)]:
        module = _annotated(single)  # the same function, so that it need not be another object
    else:
        module = trace(single, [torch.zeros(density.num_dims, dtype=dtype)])
    return Traced(module, (("z", "z"),), (("u", "0"), ("g", "0")))


def _input_types(module: GraphModule) -> list[tuple[tuple[int, ...], torch.dtype]]:
    known = [n.meta.get("tensor_meta") for n in module.graph.nodes if n.op == "placeholder"]
    return [(tuple(k.shape), k.dtype) for k in known if k is not None]


def trace_kernel(
    kernel: Kernel, density: Density, *, dtype: torch.dtype, params: Mapping[str, Tensor]
) -> KernelGraphs:
    """Trace ``kernel`` on ``density``.

    Args:
        kernel: the kernel; its functions are traced with one chain.
        density: the density; its ``single`` is traced.
        dtype: of the run.
        params: examples of what all chains share, scheduled or not: only shapes and types count.

    Returns:
        The graphs.
    """
    num_dims, num_parts = density.num_dims, density.num_parts
    u, g = torch.zeros(1, num_parts, dtype=dtype), torch.zeros(1, num_parts, num_dims, dtype=dtype)
    z = torch.zeros(1, num_dims, dtype=dtype)
    state = kernel.init(z, lambda _: (u, g), torch.ones(1, dtype=dtype))
    params = {name: value.to(dtype) if value.is_floating_point() else value for name, value in params.items()}
    noise = {"begin": kernel.begin_noise, "advance": kernel.advance_noise, "end": kernel.end_noise}
    functions = {"energy": trace_density(density, dtype)}
    for name in ("begin", "advance", "end"):
        functions[name] = _known_or_traced(kernel, name, state, params, noise[name], (u, g))
    return KernelGraphs(
        state=tuple(Entry(name, tuple(x.shape[1:]), kind_of(x.dtype)) for name, x in state.items()),
        params=tuple(Entry(name, tuple(x.shape), kind_of(x.dtype)) for name, x in params.items()),
        noise=noise,
        functions=functions,
        num_dims=num_dims,
        num_parts=num_parts,
        dtype=dtype,
    )


# Functions of kernels that were traced, by all that they depend on; the model is not among it.
_KNOWN: dict[Any, Traced] = {}
_MOST_KNOWN = 64


def _known_or_traced(
    kernel: Kernel,
    name: str,
    state: State,
    params: Mapping[str, Tensor],
    specs: Mapping[str, NoiseSpec],
    energy: tuple[Tensor, Tensor],
) -> Traced:
    function = getattr(kernel, name)
    while isinstance(function, functools.partial) and not function.args:
        keywords = tuple(sorted(function.keywords.items()))
        function = (function.func, keywords) if keywords else function.func
    named = (*state.items(), *params.items(), ("u", energy[0]), ("g", energy[1]))
    types = tuple((key, value.shape, value.dtype) for key, value in named)
    key = (function, name, types, tuple(specs.items()))
    try:
        found = _KNOWN.get(key)
    except TypeError:  # an argument that has no hash
        return _trace_function(kernel, name, state, params, specs, energy)
    if found is None:
        found = _trace_function(kernel, name, state, params, specs, energy)
        while len(_KNOWN) >= _MOST_KNOWN:
            _KNOWN.pop(next(iter(_KNOWN)), None)
        _KNOWN[key] = found
    return found


def _trace_function(
    kernel: Kernel,
    name: str,
    state: State,
    params: Mapping[str, Tensor],
    specs: Mapping[str, NoiseSpec],
    energy: tuple[Tensor, Tensor],
) -> Traced:
    dtype = energy[0].dtype
    noise = {key: torch.full((1, *spec.shape), 0.5, dtype=dtype) for key, spec in specs.items()}
    # Each call of the energy gives one output, the point, and has two inputs, what came of it; how
    # many there are is known after a first run.
    num_calls = _count_calls(kernel, name, state, params, noise, energy)
    inputs: list[Role] = [("state", key) for key in state]
    inputs += [("params", key) for key in params]
    inputs += [("noise", key) for key in noise]
    inputs += [(part, str(i)) for i in range(num_calls) for part in ("u", "g")]
    examples = [*state.values(), *params.values(), *noise.values(), *(list(energy) * num_calls)]
    outputs: list[Role] = []

    def flat(*tensors: Tensor) -> list[Tensor]:
        roles = dict(zip(inputs, tensors, strict=True))
        points: list[Tensor] = []

        def stub(z: Tensor) -> tuple[Tensor, Tensor]:
            points.append(z)
            number = str(len(points) - 1)
            return roles["u", number], roles["g", number]

        old = {key: roles["state", key] for key in state}
        new = _call(
            kernel,
            name,
            old,
            {key: roles["params", key] for key in params},
            stub,
            {key: roles["noise", key] for key in noise},
        )
        changed = [key for key in state if new[key] is not old[key]]
        outputs[:] = [("z", str(i)) for i in range(len(points))] + [("state", key) for key in changed]
        return [*points, *(new[key] for key in changed)]

    return Traced(trace(flat, examples), tuple(inputs), tuple(outputs))


def _call(kernel: Kernel, name: str, state: State, params: Any, energy: Any, noise: Any) -> State:
    if name == "advance":
        return kernel.advance(state, params, energy, noise)
    return kernel.begin(state, params, noise) if name == "begin" else kernel.end(state, params, noise)


def _count_calls(
    kernel: Kernel, name: str, state: State, params: Any, noise: Any, energy: tuple[Tensor, Tensor]
) -> int:
    calls = 0

    def count(z: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        return energy

    with torch.no_grad():
        _call(kernel, name, state, params, count, noise)
    return calls
