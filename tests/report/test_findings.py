"""The sentences follow the figures: each of them turns when the figures do."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppgen.report.findings import findings
from ppgen.report.table import Number, Row

DIMS = 4
GRID = "grid of 17 levels"


def row(name: str, bits: float | None, kind: str = "exact", **options: Any) -> Row:
    number = None if bits is None else Number(bits, 0.05, kind)
    base = Row(name, name.title(), "family", GRID, "exact", bits_per_dim=number)
    return replace(base, **options)


def losses(bits: float, spread: float, num: int = 100) -> Tensor:
    """Test losses in nats with the mean that ``bits`` a dimension have, alternating around it."""
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(num // 2)
    return bits * DIMS * math.log(2) + spread * signs


def test_better_worse_and_too_close_to_call() -> None:
    rows = [row("mixture", 2.0, has_components=True), row("flow", 1.5), row("vae", 2.4), row("twin", 2.001)]
    each = {
        f"{GRID}/mixture": losses(2.0, 0.0),
        f"{GRID}/flow": losses(1.5, 0.1),
        f"{GRID}/vae": losses(2.4, 0.1),
        f"{GRID}/twin": losses(2.001, 0.5),
    }
    (sentence,) = findings(rows, each, DIMS)
    # The error of a paired difference: 0.1 nats over 10, by log 2 and 4 dimensions, Bessel's factor in.
    assert "best mixture in bits per dimension is Mixture (2.000 ± 0.050)" in sentence
    assert "Better than it: Flow (1.500 ± 0.050; 0.5000 ± 0.0036 less)." in sentence
    assert "Within 2 standard errors of it: Twin" in sentence
    assert "Worse than it: Vae (2.400 ± 0.050; 0.4000 ± 0.0036 more)." in sentence
    assert "bound" not in sentence


def test_the_sentence_turns_with_the_figures() -> None:
    rows = [row("mixture", 2.0, has_components=True), row("flow", 2.5)]
    each = {f"{GRID}/mixture": losses(2.0, 0.0), f"{GRID}/flow": losses(2.5, 0.1)}
    (sentence,) = findings(rows, each, DIMS)
    assert "Better" not in sentence
    assert "Worse than it: Flow" in sentence


def test_without_paired_losses_nothing_is_claimed() -> None:
    rows = [row("mixture", 2.0, has_components=True), row("flow", 1.0)]
    (sentence,) = findings(rows, {}, DIMS)
    assert "Better" not in sentence
    assert "Within 2 standard errors of it: Flow" in sentence


def test_bounds_are_named_as_such() -> None:
    rows = [row("mixture", 2.0, has_components=True), row("vae", 1.0, "upper_bound")]
    each = {f"{GRID}/mixture": losses(2.0, 0.0), f"{GRID}/vae": losses(1.0, 0.1)}
    (sentence,) = findings(rows, each, DIMS)
    assert "≤ 1.000" in sentence
    assert "bound from above" in sentence


def test_independent_coordinates_are_a_bar() -> None:
    baseline = row("factorised", 1.8, group="reference", title="Independent coordinates")
    rows = [baseline, row("flow", 1.5), row("vae", 2.0)]
    each = {
        f"{GRID}/factorised": losses(1.8, 0.0),
        f"{GRID}/flow": losses(1.5, 0.1),
        f"{GRID}/vae": losses(2.0, 0.1),
    }
    (sentence,) = findings(rows, each, DIMS)
    assert "independent coordinates have 1.800 ± 0.050 bits per dimension" in sentence
    assert "Worse than that: Vae" in sentence
    assert "Flow" not in sentence
    assert findings(rows[:2], each, DIMS) == []


def test_a_figure_within_the_error_of_the_bar_is_not_called_worse() -> None:
    baseline = row("factorised", 1.8, group="reference", title="Independent coordinates")
    each = {f"{GRID}/factorised": losses(1.8, 0.0), f"{GRID}/flow": losses(1.7999, 1.0)}
    (sentence,) = findings([baseline, row("flow", 1.7999)], each, DIMS)
    assert "Within 2 standard errors of that: Flow" in sentence
    assert "Worse" not in sentence


def test_a_large_error_does_not_make_samples_the_nearest() -> None:
    rows = [
        row("wild", None, kid=Number(-600.0, 1100.0, "estimate")),
        row("flow", None, kid=Number(0.1, 0.05, "estimate")),
    ]
    (sentence,) = findings(rows, {}, DIMS)
    assert "samples of Flow are nearest" in sentence
    assert "too close to call with Wild" in sentence


def test_groups_do_not_mix() -> None:
    rows = [row("mixture", 2.0, has_components=True), row("rbm", 0.4, values="binary")]
    each = {f"{GRID}/mixture": losses(2.0, 0.0), "binary/rbm": losses(0.4, 0.1)}
    assert findings(rows, each, DIMS) == []


def test_nearest_samples_and_ties() -> None:
    rows = [
        row("gan", None, kid=Number(0.1, 0.02, "estimate")),
        row("vae", None, kid=Number(0.5, 0.02, "estimate")),
        row("flow", None, kid=Number(0.12, 0.02, "estimate")),
    ]
    (sentence,) = findings(rows, {}, DIMS)
    assert sentence == (
        "On 17 levels, samples of Gan are nearest to the data by kernel distance (0.100 ± 0.020), "
        "too close to call with Flow (0.120 ± 0.020)."
    )


def test_failures_are_named() -> None:
    rows = [
        row("gan", None, status="failed"),
        row("vae", None, status="failed"),
        row("maf", None, status="pending"),
    ]
    assert findings(rows, {}, DIMS) == ["Not measured: Gan and Vae; the table says why."]
