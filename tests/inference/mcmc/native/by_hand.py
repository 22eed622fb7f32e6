"""A compiled program written by hand: HMC with a diagonal scale on a Gaussian, for tests of the executor."""

from __future__ import annotations

import torch
from torch import Tensor

from ppgen.inference.mcmc.density import Density
from ppgen.inference.mcmc.hmc import hmc_kernel
from ppgen.inference.mcmc.kernel import Kernel, Params
from ppgen.inference.mcmc.native.executor import Generate
from ppgen.inference.mcmc.native.layout import Entry, Generated, kind_of

_ENTRIES = (
    "z", "u", "g", "step_size", "active", "momentum", "new_z", "new_u", "new_g", "start", "accept_prob",
    "diverging", "num_steps", "energy",
)  # fmt: skip
_SOURCE = """
#include "ppgen.hpp"
static void energy(const T *precision, const V *z, V *u, V *g) {
    V sum = V{};
    for (int i = 0; i < DIM; i++) { g[i] = precision[i] * z[i]; sum += g[i] * z[i]; }
    *u = (T)0.5 * sum;
}
static V kinetic(const V *p) {
    V sum = V{};
    for (int i = 0; i < DIM; i++) sum += p[i] * p[i];
    return (T)0.5 * sum;
}
extern "C" int ppgen_energy(const void *const *uniform, const void *z, void *u, void *g,
                            int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++)
        energy((const T *)uniform[0], (const V *)z + i * DIM, (V *)u + i, (V *)g + i * DIM);
    return 0;
}
// The entries are those of _ENTRIES, in this order.
static const int numels[] = {DIM, 1, DIM, 1, 1, DIM, DIM, 1, DIM, 1, 1, 1, 1, 1};
extern "C" int ppgen_run(void **state, const void *const *uniform, const void *const *params,
                         const void *const *schedule, void **record, uint32_t *rng, int64_t first,
                         int64_t last, int64_t groups, int64_t num) {
    for (int64_t group = first; group < last; group++) {
        V *e[14];
        for (int k = 0; k < 14; k++) e[k] = (V *)state[k] + group * numels[k];
        V *z = e[0], *u = e[1], *g = e[2], *p = e[5], *nz = e[6], *nu = e[7], *ng = e[8];
        V eps = *e[3];
        for (int64_t t = 0; t < num; t++) {
            Rng random(rng + group * 4 * W);
            const T *scale = schedule[0] ? (const T *)schedule[0] + t * DIM : (const T *)params[0];
            T weight = schedule[1] ? ((const T *)schedule[1])[t] : ((const T *)params[1])[0];
            int64_t steps = schedule[2] ? ((const int64_t *)schedule[2])[t] : ((const int64_t *)params[2])[0];
            for (int i = 0; i < DIM; i++) { p[i] = random.normal(); nz[i] = z[i]; ng[i] = g[i]; }
            *nu = *u;
            V start = weight * *u + kinetic(p);
            for (int64_t s = 0; s < steps; s++) {
                for (int i = 0; i < DIM; i++) p[i] -= (T)0.5 * eps * scale[i] * weight * ng[i];
                for (int i = 0; i < DIM; i++) nz[i] += eps * scale[i] * p[i];
                energy((const T *)uniform[0], nz, nu, ng);
                for (int i = 0; i < DIM; i++) p[i] -= (T)0.5 * eps * scale[i] * weight * ng[i];
            }
            V after = weight * *nu + kinetic(p), change = after - start;
            V accept = v_exp(v_min(-change, V{}));
            I keep = (I)(random.uniform() < accept);
            for (int i = 0; i < DIM; i++) z[i] = select(keep, nz[i], z[i]);
            for (int i = 0; i < DIM; i++) g[i] = select(keep, ng[i], g[i]);
            *u = select(keep, *nu, *u);
            *e[9] = start;
            *e[10] = accept;
            *(I *)e[11] = (I)(change > 1000);
            *(I *)e[12] = splat_int(steps);
            *e[13] = select(keep, after, start);
            *(I *)e[4] = I{};
            random.store();
            for (int k = 0; k < 14; k++)
                if (record[k])
                    for (int i = 0; i < numels[k]; i++)
                        ((V *)record[k])[(t * groups + group) * numels[k] + i] = e[k][i];
        }
    }
    return 0;
}
"""


def gaussian(precision: Tensor) -> Density:
    """Independent normals with these precisions (D,)."""

    def batched(z: Tensor) -> tuple[Tensor, Tensor]:
        g = z * precision.to(z)
        return 0.5 * (g * z).sum(1, keepdim=True), g[:, None]

    def single(z: Tensor) -> tuple[Tensor, Tensor]:
        u, g = batched(z[None])
        return u[0], g[0]

    return Density(len(precision), 1, single, batched)


def hand_written(precision: Tensor, sign: float = 1.0) -> Generate:
    """A ``make_program`` for HMC on :func:`gaussian`; another sign gives a wrong program."""

    def make(kernel: Kernel, density: Density, dtype: torch.dtype, params: Params) -> Generated:
        z = torch.zeros(1, density.num_dims, dtype=dtype)
        state = hmc_kernel(density.num_dims).init(z, density.batched, z[:, 0])
        return Generated(
            source=f"#define DIM {density.num_dims}\n{_SOURCE}",
            double=dtype is torch.float64,
            state=tuple(
                Entry(name, tuple(state[name].shape[1:]), kind_of(state[name].dtype)) for name in _ENTRIES
            ),
            params=tuple(
                Entry(name, tuple(params[name].shape), kind_of(params[name].dtype))
                for name in ("scale", "weights", "num_steps")
            ),
            uniforms=((sign * precision).to(dtype).contiguous(),),
            num_statements=100,
        )

    return make
