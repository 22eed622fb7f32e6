"""Tools that test generative models: the contract suite and statistical assertions."""

from ppgen.testing.contract import CHECKS, check_contract
from ppgen.testing.statistics import (
    FALSE_ALARM_RATE,
    assert_close_to,
    assert_mean,
    assert_same_distribution,
)

__all__ = [
    "CHECKS",
    "FALSE_ALARM_RATE",
    "assert_close_to",
    "assert_mean",
    "assert_same_distribution",
    "check_contract",
]
