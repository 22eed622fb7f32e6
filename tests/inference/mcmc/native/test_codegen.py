"""Programs in lanes give what torch gives, for each operation, in values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ppgen.inference.mcmc.hmc import hmc_kernel
from ppgen.inference.mcmc.native.codegen import generate
from ppgen.inference.mcmc.native.layout import UnsupportedOperation
from ppgen.inference.mcmc.native.trace import trace_kernel
from tests.inference.mcmc.native.programs import Case, as_density, compiled

A = torch.linspace(-1.0, 2.0, 12).reshape(3, 4)
LOWER = (torch.arange(361.0).reshape(19, 19).sin() * 0.2).tril(-1) + torch.eye(19)
GROUP = torch.tensor([0, 2, 1, 1, 0, 2, 2])


def positive(x: Tensor) -> Tensor:
    return x.exp()


def unit(x: Tensor) -> Tensor:
    return x.tanh() * 0.95


def spd(x: Tensor, n: int) -> Tensor:
    a = x.reshape(n, n)
    return a @ a.T + 0.5 * torch.eye(n, dtype=x.dtype)


SPECIAL = torch.special
UNARY = {
    "exp": Case(torch.exp),
    "expm1": Case(torch.expm1),
    "exp2": Case(torch.exp2),
    "log": Case(torch.log, away=positive),
    "log2": Case(torch.log2, away=positive),
    "log10": Case(torch.log10, away=positive),
    "log1p": Case(torch.log1p, away=positive),
    "sqrt": Case(torch.sqrt, away=positive),
    "rsqrt": Case(torch.rsqrt, away=positive),
    "sigmoid": Case(torch.sigmoid),
    "tanh": Case(torch.tanh),
    "sin": Case(torch.sin),
    "cos": Case(torch.cos),
    "tan": Case(torch.tan, away=unit),
    "asin": Case(torch.asin, away=unit),
    "acos": Case(torch.acos, away=unit),
    "atan": Case(torch.atan),
    "sinh": Case(torch.sinh),
    "cosh": Case(torch.cosh),
    "asinh": Case(torch.asinh),
    "acosh": Case(torch.acosh, away=lambda x: x.exp() + 1.1),
    "atanh": Case(torch.atanh, away=unit),
    "erf": Case(torch.erf),
    "erfc": Case(torch.erfc),
    "erfinv": Case(torch.erfinv, away=unit),
    "lgamma": Case(torch.lgamma, away=positive),
    "digamma": Case(torch.digamma, away=positive),
    "floor": Case(torch.floor, smooth=False),
    "ceil": Case(torch.ceil, smooth=False),
    "round": Case(torch.round, smooth=False),
    "trunc": Case(torch.trunc, smooth=False),
    "frac": Case(torch.frac),
    "abs": Case(torch.abs),
    "neg": Case(torch.neg),
    "sign": Case(torch.sign),
    "square": Case(torch.square),
    "reciprocal": Case(torch.reciprocal, away=positive),
    "relu": Case(torch.relu),
    "silu": Case(torch.nn.functional.silu),
    "softplus": Case(torch.nn.functional.softplus),
    "softplus_beta": Case(lambda x: torch.nn.functional.softplus(x, beta=2.0, threshold=1.0)),
    "logsigmoid": Case(torch.nn.functional.logsigmoid),
    "logit": Case(torch.logit, away=torch.sigmoid),
    "logit_eps": Case(lambda x: torch.logit(x, eps=0.3), away=torch.sigmoid),
    "gelu": Case(torch.nn.functional.gelu),
    "elu": Case(torch.nn.functional.elu),
    "leaky_relu": Case(torch.nn.functional.leaky_relu),
    "hardtanh": Case(torch.nn.functional.hardtanh),
    "ndtr": Case(SPECIAL.ndtr),
    "ndtri": Case(SPECIAL.ndtri, away=torch.sigmoid),
    "log_ndtr": Case(SPECIAL.log_ndtr, smooth=False),
    "trigamma": Case(lambda x: torch.polygamma(1, x), away=positive, smooth=False),
    "multigammaln": Case(lambda x: torch.mvlgamma(x + 2, 3), away=positive),
    "deg2rad": Case(torch.deg2rad),
}
BINARY = {
    "add_alpha": Case(lambda x: torch.add(x[:3], x[3:], alpha=2.5)),
    "sub_alpha": Case(lambda x: torch.sub(x[:3], x[3:], alpha=-0.5)),
    "rsub": Case(lambda x: 1.5 - x),
    "mul_outer": Case(lambda x: x[:2, None] * x[2:]),
    "div": Case(lambda x: x[:3] / x[3:].exp()),
    "div_number": Case(lambda x: x / 3),
    "number_div": Case(lambda x: 2 / x, away=positive),
    "div_uniform": Case(lambda x: x[:4] / (A.to(x.dtype) + 3)),
    "floor_divide": Case(lambda x: torch.div(x, 0.7, rounding_mode="floor"), smooth=False),
    "trunc_divide": Case(lambda x: torch.div(x, 0.7, rounding_mode="trunc"), smooth=False),
    "remainder": Case(lambda x: torch.remainder(x, 0.7)),
    "fmod": Case(lambda x: torch.fmod(x, 0.7)),
    "pow_2": Case(lambda x: x**2),
    "pow_3": Case(lambda x: x**3),
    "pow_5": Case(lambda x: x**5),
    "pow_7": Case(lambda x: x**7),
    "pow_-1": Case(lambda x: x**-1, away=positive),
    "pow_-2": Case(lambda x: x**-2, away=positive),
    "pow_half": Case(lambda x: x**0.5, away=positive),
    "pow_1.5": Case(lambda x: x**1.5, away=positive),
    "pow_2.3": Case(lambda x: x**2.3, away=positive),
    "pow_tensor": Case(lambda x: x[:3] ** x[3:], away=positive),
    "number_pow": Case(lambda x: 1.7**x),
    "atan2": Case(lambda x: torch.atan2(x[:3], x[3:])),
    "hypot": Case(lambda x: torch.hypot(x[:3], x[3:])),
    "maximum": Case(lambda x: torch.maximum(x[:3], x[3:])),
    "minimum": Case(lambda x: torch.minimum(x[:3], x[3:])),
    "fmax": Case(lambda x: torch.fmax(x[:3], x[3:])),
    "clamp": Case(lambda x: x.clamp(-0.3, 0.4)),
    "clamp_tensor": Case(lambda x: x[:3].clamp(min=x[3:])),
    "clamp_max": Case(lambda x: x.clamp_max(0.2)),
    "logaddexp": Case(lambda x: torch.logaddexp(x[:3], x[3:])),
    "xlogy": Case(lambda x: torch.xlogy(x[:3], x[3:].exp())),
    "xlogy_zero": Case(lambda x: torch.xlogy(torch.tensor([0.0, 1.0, 2.0], dtype=x.dtype), x[:3].exp())),
    "where": Case(lambda x: torch.where(x > 0.1, x.exp(), -x)),
    "where_uniform": Case(lambda x: torch.where(A[0, :3] > 0, x[:3], x[3:])),
    "masked_fill": Case(lambda x: x.masked_fill(x < 0, 0.5)),
    "lerp": Case(lambda x: torch.lerp(x[:3], x[3:], 0.3)),
    "addcmul": Case(lambda x: torch.addcmul(x[:2], x[2:4], x[4:], value=0.5)),
    "addcdiv": Case(lambda x: torch.addcdiv(x[:2], x[2:4], x[4:].exp())),
    "copysign": Case(lambda x: torch.copysign(x[:3], x[3:])),
    "bce_with_logits": Case(
        lambda x: torch.nn.functional.binary_cross_entropy_with_logits(
            x, (A.reshape(-1)[:6] > 0).to(x.dtype), reduction="none"
        )
    ),
    "huber": Case(lambda x: torch.nn.functional.huber_loss(x[:3], x[3:], reduction="none", delta=0.5)),
    "smooth_l1": Case(lambda x: torch.nn.functional.smooth_l1_loss(x[:3], x[3:], reduction="none")),
    "log_of_exp": Case(lambda x: (x * 300).exp().log(), smooth=False),
    "poisson": Case(
        lambda x: torch.distributions.Poisson(x.exp(), validate_args=False).log_prob(
            torch.arange(6).to(x.dtype)
        )
    ),
    "scalar_mix": Case(lambda x: x[0] * x[1] + x[2] / (1 + x[3] ** 2) - x[4]),
}
LOGIC = {
    "comparisons": Case(
        lambda x: torch.stack(
            [(x[:3] < x[3:]).to(x.dtype), (x[:3] >= 0).to(x.dtype), (x[3:] != 0).to(x.dtype)]
        ),
        smooth=False,
    ),
    "and_or_not": Case(lambda x: ((x > 0) & ~(x > 1) | (x < -1)).to(x.dtype), smooth=False),
    "logical": Case(lambda x: torch.logical_xor(x > 0, x > 0.5).to(x.dtype), smooth=False),
    "bool_sum": Case(lambda x: (x > 0).sum().to(x.dtype), smooth=False),
    "bool_times": Case(lambda x: (x > 0) * x),
    "any_all": Case(
        lambda x: torch.stack([(x.view(2, 3) > 0).any(1), (x.view(3, 2) > 0).all(1)[:2]]).to(x.dtype),
        smooth=False,
    ),
    "integers": Case(
        lambda x: ((x * 5).to(torch.int64) * 3 + 1 - (x > 0).to(torch.int64)).to(x.dtype), smooth=False
    ),
    "bits": Case(
        lambda x: (((x * 5).to(torch.int64) & 3) + ((x.abs() * 9).to(torch.int64) >> 1)).to(x.dtype),
        smooth=False,
    ),
    "integer_division": Case(
        lambda x: torch.stack([(x * 20).to(torch.int64) // 3, (x * 20).to(torch.int64) % 7]).to(x.dtype),
        smooth=False,
    ),
    "to_bool": Case(lambda x: x.round().to(torch.bool).to(x.dtype), smooth=False),
    "nan_to_num": Case(lambda x: (x.clamp(min=0) / x.clamp(min=0)).nan_to_num(nan=0.25), smooth=False),
    "infinities": Case(lambda x: (1 / x.clamp(min=0)).nan_to_num(posinf=7.0), smooth=False),
    "is_nan": Case(
        lambda x: torch.stack([x.log().isnan(), x.isfinite(), (1 / x.relu()).isinf()]).to(x.dtype),
        smooth=False,
    ),
}
REDUCTIONS = {
    "sum": Case(lambda x: x.sum()),
    "sum_0": Case(lambda x: (x.view(2, 3) * A[:2, :3].to(x.dtype)).sum(0)),
    "sum_1_keep": Case(lambda x: x.view(2, 3).exp().sum(1, keepdim=True) * x.view(2, 3)),
    "sum_02": Case(lambda x: (x.view(2, 3, 4).exp()).sum((0, 2)), size=24),
    "sum_expanded": Case(lambda x: x[:, None].expand(6, 4).sum()),
    "sum_long": Case(lambda x: (x.sum() * torch.linspace(0, 1, 700, dtype=x.dtype)).sin().sum()),
    "mean": Case(lambda x: x.view(2, 3).mean(1)),
    "mean_all": Case(lambda x: x.exp().mean()),
    "prod": Case(lambda x: x.view(2, 3).prod(1)),
    "prod_all": Case(lambda x: x.prod()),
    "amax": Case(lambda x: x.view(2, 3).amax(1)),
    "amin": Case(lambda x: x.view(2, 3).amin(0)),
    "max_dim": Case(lambda x: x.view(2, 3).max(1).values),
    "min_dim": Case(lambda x: x.view(2, 3).min(0).values),
    "argmax": Case(lambda x: x.view(2, 3).argmax(1).to(x.dtype), smooth=False),
    "var": Case(lambda x: x.view(2, 3).var(1)),
    "std": Case(lambda x: x.std()),
    "logsumexp": Case(lambda x: x.view(2, 3).logsumexp(1)),
    "logsumexp_0": Case(lambda x: (x.view(2, 3) * 3).logsumexp(0)),
    "logsumexp_inf": Case(
        lambda x: torch.cat([x[:2], torch.full((2,), -float("inf"), dtype=x.dtype)]).view(2, 2).logsumexp(1)
    ),
    "softmax": Case(lambda x: x.view(2, 3).softmax(1)),
    "log_softmax": Case(lambda x: x.view(2, 3).log_softmax(0)),
    "cumsum": Case(lambda x: x.view(2, 3).cumsum(1)),
    "cumsum_0": Case(lambda x: x.view(3, 2).exp().cumsum(0)),
    "cumprod": Case(lambda x: x.cumprod(0), away=positive),
    "logcumsumexp": Case(lambda x: x.logcumsumexp(0)),
    "norm": Case(lambda x: x.norm()),
    "norm_1": Case(lambda x: x.view(2, 3).norm(p=1, dim=1)),
    "vector_norm": Case(lambda x: torch.linalg.vector_norm(x.view(2, 3), dim=0)),
    "cross_sum": Case(lambda x: (x[:, None] * x).exp().sum(0) * x.sum()),
}
VIEWS = {
    "transpose": Case(lambda x: x.view(2, 3).T.exp()),
    "reshape_transposed": Case(lambda x: x.view(2, 3).T.reshape(-1) * x),
    "permute": Case(lambda x: x.view(2, 3, 4).permute(2, 0, 1) * A[0, :3].to(x.dtype), size=24),
    "flip": Case(lambda x: x.view(2, 3).flip(0, 1) + x.view(2, 3)),
    "roll": Case(lambda x: x.roll(2) * x),
    "slices": Case(lambda x: x[1:] - x[:-1]),
    "strided": Case(lambda x: x[::2] * x[1::2]),
    "negative_index": Case(lambda x: x[-1] * x[-3:]),
    "unbind": Case(
        lambda x: torch.stack(
            [a * b for a, b in zip(x.view(3, 2).unbind(0), x.view(3, 2).flip(0).unbind(0), strict=True)]
        )
    ),
    "split": Case(lambda x: x.split([1, 2, 3])[2] * x.split([1, 2, 3])[0]),
    "chunk": Case(lambda x: x.chunk(3)[1].exp()),
    "cat": Case(lambda x: torch.cat([x[3:], x[:1] * 2, x.new_ones(2)]) ** 2),
    "stack": Case(lambda x: torch.stack([x[:3], x[3:]], -1).exp()),
    "stack_scalars": Case(lambda x: torch.stack([x[2], x[0] * x[1], x[5].exp()]).cumsum(0)),
    "expand": Case(lambda x: x[:3].expand(2, 3) * x.view(2, 3)),
    "repeat": Case(lambda x: x[:2].repeat(3) * x),
    "repeat_2": Case(lambda x: x.view(2, 3).repeat(2, 2)),
    "diagonal": Case(lambda x: x.view(2, 3).diagonal().exp()),
    "diag_embed": Case(lambda x: torch.diag_embed(x[:3]) @ x[3:]),
    "diag": Case(lambda x: torch.diag(x[:3]) + 1),
    "tril": Case(lambda x: x.view(3, 3).exp().tril(), size=9),
    "triu_offset": Case(lambda x: x.view(3, 3).triu(1), size=9),
    "trace": Case(lambda x: x.view(3, 3).exp().trace(), size=9),
    "unfold": Case(lambda x: x.unfold(0, 3, 1).exp()),
    "pad": Case(lambda x: torch.nn.functional.pad(x.view(2, 3).exp(), (1, 2), value=0.5)),
    "pad_zero": Case(lambda x: torch.nn.functional.pad(x, (1, 0)) ** 2),
    "slice_scatter": Case(lambda x: x.slice_scatter(x[:2] * 3, 0, 2, 4)),
    "select_scatter": Case(lambda x: x.view(2, 3).exp().select_scatter(x[:2], 1, 1)),
    "swap_halves": Case(lambda x: torch.cat([x[3:], x[:3]]).view(2, 3).T.reshape(6) * x),
    "square_transpose": Case(lambda x: x.view(3, 3) * x.view(3, 3).T.exp(), size=9),
    "assignment": Case(lambda x: _assigned(x)),
    "meshgrid": Case(lambda x: torch.mul(*torch.meshgrid(x[:2], x[2:], indexing="ij"))),
    "scalar_size_1": Case(lambda x: x * x.exp() + x.sum(), size=1),
    "wide_and_tall": Case(lambda x: (x.view(2, 5).exp().T + x.view(5, 2)).sum(1), size=10),
}


def _assigned(x: Tensor) -> Tensor:
    out = torch.zeros(3, 3, dtype=x.dtype) * x[0]
    out[0] = x[:3]
    out[1:, 2] = x[3:5]
    return out.exp()


GATHERS = {
    "index": Case(lambda x: x[:3][GROUP].exp()),
    "index_negative": Case(lambda x: x[torch.tensor([-1, -2, 0])].exp()),
    "index_columns": Case(lambda x: x.view(2, 3)[:, torch.tensor([2, 0])] ** 2),
    "index_pairs": Case(lambda x: x.view(2, 3)[torch.tensor([1, 0, 1]), torch.tensor([2, 2, 0])].exp()),
    "index_outer": Case(lambda x: x.view(2, 3)[torch.tensor([[1], [0]]), torch.tensor([[2, 1]])].exp()),
    "index_apart": Case(
        lambda x: x.view(2, 3, 2)[torch.tensor([1, 0]), :, torch.tensor([0, 1])].exp(), size=12
    ),
    "index_2d": Case(lambda x: x.view(3, 2)[GROUP.view(7, 1)[:4]].exp()),
    "mask": Case(lambda x: x[torch.tensor([True, False, True, True, False, True])].exp()),
    "index_select": Case(lambda x: x.view(2, 3).index_select(1, torch.tensor([2, 2, 1])).exp()),
    "gather": Case(lambda x: x.view(2, 3).gather(1, torch.tensor([[2, 0], [1, 1]])).exp()),
    "take_along": Case(lambda x: torch.take_along_dim(x.view(2, 3), torch.tensor([[1], [0]]), 1).exp()),
    "embedding": Case(lambda x: torch.nn.functional.embedding(GROUP, x.view(3, 2)).exp()),
    "scatter_add": Case(lambda x: torch.zeros(3, dtype=x.dtype).scatter_add(0, GROUP[:6], x.exp())),
    "scatter": Case(lambda x: x.scatter(0, torch.tensor([4, 1]), x[:2] * 3)),
    "index_add": Case(lambda x: x[:3].index_add(0, GROUP[:6], x.exp())),
    "index_put": Case(lambda x: x.index_put((torch.tensor([3, 0]),), x[:2] * 2)),
    "index_put_accumulate": Case(lambda x: x[:3].exp().index_put((GROUP[:6],), x, accumulate=True)),
    "lane_index": Case(lambda x: x[(x[:2].abs() * 2).to(torch.int64).clamp(max=5)], smooth=False),
    "lane_gather": Case(
        lambda x: x.view(2, 3).exp().gather(1, (x[:2, None] > 0).to(torch.int64)), smooth=False
    ),
    "ragged_groups": Case(lambda x: (x[:3][GROUP] * x[3:][GROUP].exp()).sum() * x[0]),
}
ALGEBRA = {
    "mm": Case(lambda x: x.view(2, 3) @ A.to(x.dtype)),
    "mm_varying": Case(lambda x: x.view(3, 4) @ x.view(4, 3).exp(), size=12),
    "mv": Case(lambda x: A.to(x.dtype) @ x[:4]),
    "mv_transposed": Case(lambda x: A.T.to(x.dtype) @ x[:3].exp()),
    "vm": Case(lambda x: x[:3] @ A.to(x.dtype)),
    "dot": Case(lambda x: x[:3] @ x[3:].exp()),
    "bmm": Case(lambda x: x.view(2, 2, 3) @ x.view(2, 3, 2).exp(), size=12),
    "batched_mv": Case(lambda x: (x.view(2, 2, 3) @ x[:3, None])[..., 0], size=12),
    "addmm": Case(lambda x: torch.addmm(x[:2], x.view(2, 3), x.view(3, 2), alpha=0.5)),
    "linear": Case(
        lambda x: torch.nn.functional.linear(x.view(2, 3), A.T.to(x.dtype), A.reshape(-1)[:4].to(x.dtype))
    ),
    "outer": Case(lambda x: torch.outer(x[:2], x[2:])),
    "einsum": Case(lambda x: torch.einsum("ij,jk,k->i", x.view(2, 3), A.to(x.dtype), x[:4])),
    "regression": Case(
        lambda x: torch.nn.functional.binary_cross_entropy_with_logits(
            torch.linspace(-2, 2, 60, dtype=x.dtype).view(10, 6).cos() @ x, (torch.arange(10) % 2).to(x.dtype)
        )
    ),
    "regression_wide": Case(
        lambda x: ((torch.linspace(-2, 2, 90, dtype=x.dtype).view(3, 30).cos() @ x) ** 2).sum(), size=30
    ),
    "regression_long": Case(
        lambda x: (torch.linspace(-2, 2, 1827, dtype=x.dtype).view(609, 3).cos() @ x[:3]).sigmoid().sum()
    ),
    "classes": Case(
        lambda x: (
            (torch.linspace(-2, 2, 40, dtype=x.dtype).view(20, 2).cos() @ x.view(2, 3))
            .log_softmax(1)[:, 1]
            .sum()
        )
    ),
    "quadratic": Case(lambda x: x[:4] @ (A.T @ A).to(x.dtype) @ x[:4]),
    "cholesky": Case(lambda x: torch.linalg.cholesky(spd(x, 3)), size=9),
    "cholesky_ex": Case(lambda x: torch.linalg.cholesky_ex(spd(x, 2))[0].diagonal().log().sum(), size=4),
    "logdet_chol": Case(lambda x: torch.linalg.cholesky(spd(x, 4)).diagonal().log().sum(), size=16),
    "solve_triangular": Case(
        lambda x: torch.linalg.solve_triangular(spd(x, 3).tril(), x[:6].view(3, 2), upper=False), size=9
    ),
    "solve_upper": Case(
        lambda x: torch.linalg.solve_triangular(spd(x, 3).triu(), x[:3, None], upper=True), size=9
    ),
    "solve_right": Case(
        lambda x: torch.linalg.solve_triangular(spd(x, 3).tril(), x[:6].view(2, 3), upper=False, left=False),
        size=9,
    ),
    "solve_in_blocks": Case(
        lambda x: torch.linalg.solve_triangular(LOWER.to(x.dtype) * x[:1].cosh(), x[:, None], upper=False),
        size=19,
    ),
    "solve_uniform": Case(
        lambda x: torch.linalg.solve_triangular(LOWER.to(x.dtype), x[:, None], upper=False), size=19
    ),
    "solve_uniform_upper": Case(
        lambda x: torch.linalg.solve_triangular(LOWER.T.to(x.dtype), x.view(19, 2), upper=True), size=38
    ),
    "normal_uniform": Case(
        lambda x: torch.distributions.MultivariateNormal(
            torch.zeros(19, dtype=x.dtype),
            covariance_matrix=(LOWER @ LOWER.T).to(x.dtype),
            validate_args=False,
        ).log_prob(x),
        size=19,
    ),
    "cholesky_solve": Case(
        lambda x: torch.cholesky_solve(x[:3, None], torch.linalg.cholesky(spd(x, 3))), size=9
    ),
    "normal_tril": Case(
        lambda x: torch.distributions.MultivariateNormal(
            x[:3], scale_tril=torch.linalg.cholesky(spd(x, 3)), validate_args=False
        ).log_prob(A[:, :3].to(x.dtype)),
        size=9,
    ),
    "gp": Case(
        lambda x: torch.distributions.MultivariateNormal(
            torch.zeros(5, dtype=x.dtype),
            covariance_matrix=x[0].exp()
            * torch.exp(-0.5 * (torch.arange(5.0)[:, None] - torch.arange(5.0)).to(x.dtype) ** 2 * x[1].exp())
            + 0.3 * torch.eye(5, dtype=x.dtype),
            validate_args=False,
        ).log_prob(x[1:6])
    ),
}
TABLES = {
    "unary": UNARY,
    "binary": BINARY,
    "logic": LOGIC,
    "reductions": REDUCTIONS,
    "views": VIEWS,
    "gathers": GATHERS,
    "algebra": ALGEBRA,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("table", TABLES)
def test_programs_agree_with_torch_in_values_and_gradients(table: str, dtype: torch.dtype) -> None:
    density, places = as_density(TABLES[table], dtype)
    num_chains = 2 * 64 // dtype.itemsize
    looked_at = [0, 3, num_chains - 2]  # torch is slow here
    z = torch.randn(
        num_chains, density.num_dims, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).to(dtype)
    u, g = (x[looked_at] for x in compiled(density, dtype)(z))
    z = z[looked_at]
    # Torch in double precision at the same points is the truth; float32 is allowed its rounding, which is
    # judged by what torch itself loses in float32.
    exact = as_density(TABLES[table], torch.float64)[0]
    own = [density.single(row) for row in z]
    truth = [exact.single(row.double()) for row in z] if dtype == torch.float32 else own
    tolerance = 1e-9 if dtype == torch.float64 else 2e-5
    wrong = []
    starts = dict(
        zip(
            TABLES[table],
            torch.tensor([0, *(c.size for c in TABLES[table].values())]).cumsum(0),
            strict=False,
        )
    )
    for name, place in places.items():
        case = TABLES[table][name]
        columns = slice(int(starts[name]), int(starts[name]) + case.size)
        for what, ours, theirs, best in (
            (
                "value",
                u[:, place],
                torch.stack([x[0][place] for x in own]),
                torch.stack([x[0][place] for x in truth]),
            ),
            (
                "gradient",
                g[:, 0, columns],
                torch.stack([x[1][0, columns] for x in own]),
                torch.stack([x[1][0, columns] for x in truth]),
            ),
        ):
            if not case.smooth and what == "gradient":
                continue
            if not case.smooth:
                best = theirs
            allowed = tolerance * (1 + best.abs()) + 10 * (theirs.double() - best).abs()
            same = (ours == best) | (ours.isnan() & best.isnan())
            bad = ~(((ours.double() - best).abs() <= allowed) | same)
            if bad.any():
                at = bad.nonzero()[0].tolist()
                wrong.append(
                    f"{name} {what}: {int(bad.sum())} of {bad.numel()}, "
                    f"{ours[tuple(at)]} for {best[tuple(at)]}"
                )
    assert not wrong, "\n".join(wrong)


def test_thousands_of_scalars_are_split_into_functions() -> None:
    def recursion(x: Tensor) -> Tensor:
        level, total = x[0], x[0] * 0
        for step in range(100):
            level = 0.3 * torch.tanh(level) + x[1] * 0.1 * step**0.1
            total = total + (level - x[2]) ** 2
        return total

    cases = {"recursion": Case(recursion, size=3)}
    density, _ = as_density(cases, torch.float64)
    z = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, g = compiled(density, torch.float64)(z)
    expected = density.single(z[5])
    torch.testing.assert_close(u[5], expected[0])
    torch.testing.assert_close(g[5], expected[1])


def test_the_source_does_not_depend_on_the_data() -> None:
    def source(data: Tensor) -> str:
        density, _ = as_density(
            {"a": Case(lambda x: ((data - x[0]) ** 2).sum() + data[0] * x[1])}, torch.float32
        )
        params = {"scale": torch.ones(6), "weights": torch.ones(1), "num_steps": torch.tensor(1)}
        return generate(trace_kernel(hmc_kernel(6), density, dtype=torch.float32, params=params)).source

    assert source(torch.zeros(5)) == source(torch.arange(5.0))
    assert source(torch.zeros(5)) != source(torch.zeros(6))


def test_an_operation_that_is_unknown_is_named() -> None:
    density, _ = as_density({"a": Case(lambda x: x.sort().values)}, torch.float32)
    params = {"scale": torch.ones(6), "weights": torch.ones(1), "num_steps": torch.tensor(1)}
    with pytest.raises(UnsupportedOperation, match="sort"):
        generate(trace_kernel(hmc_kernel(6), density, dtype=torch.float32, params=params))
