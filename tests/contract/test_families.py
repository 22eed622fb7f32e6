"""Every registered family keeps every promise of the contract."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ppgen.contract import GenerativeModel
from ppgen.models import families
from ppgen.ops.random import forked_rng
from ppgen.testing import CHECKS

EXAMPLES: dict[str, Callable[[], GenerativeModel]] = {}
for _name, _family in families().items():
    EXAMPLES[_name] = _family.example
    if _family.conditional_example is not None:
        EXAMPLES[f"{_name}-conditional"] = _family.conditional_example


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_contract(
    example: Callable[[], GenerativeModel], check: Callable[[Callable[[], GenerativeModel]], None]
) -> None:
    check(example)


def test_families_say_what_their_examples_are() -> None:
    for family in families().values():
        with forked_rng(0):
            assert family.example().density == family.density
        assert family.reading
