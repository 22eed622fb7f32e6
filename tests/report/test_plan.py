"""The plan of a survey: which families, and what tells two runs apart."""

from __future__ import annotations

import functools

import pytest
import torch

from ppgen.errors import ConfigError
from ppgen.models import families
from ppgen.report.plan import _name_of, choose


def test_a_group_stands_for_its_families_in_the_order_given() -> None:
    flows = [f.name for f in families().values() if f.group == "flow"]
    assert [f.name for f in choose(["vae", "flow"])] == ["vae", *flows]
    mixtures = [f.name for f in families().values() if f.group == "mixture"]
    assert [f.name for f in choose(["mixture"])] == mixtures
    assert {"gaussian-mixture", "bernoulli-mixture"} <= {*mixtures}
    assert [f.name for f in choose(None)] == [f.name for f in families().values() if f.surveyed]
    assert [f.name for f in choose(["all"])] == list(families())


def test_a_family_named_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="each once"):
        choose(["flow", "maf"])


def test_partial_functions_are_told_apart_by_their_arguments() -> None:
    one, other = (functools.partial(torch.optim.AdamW, weight_decay=w) for w in (0.1, 0.2))
    assert _name_of(one) != _name_of(other)
    assert _name_of(one) == _name_of(functools.partial(torch.optim.AdamW, weight_decay=0.1))
