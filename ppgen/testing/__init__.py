"""Tools that test models and methods: the contract suite, kernels, calibration, statistical assertions."""

from ppgen.testing.calibration import Calibration, one_by_one, sbc
from ppgen.testing.contract import CHECKS, check_contract
from ppgen.testing.geweke import assert_leaves_invariant
from ppgen.testing.joint import Joint, joint_from_functions, joint_from_model
from ppgen.testing.statistics import (
    FALSE_ALARM_RATE,
    assert_close_to,
    assert_mean,
    assert_same_distribution,
)

__all__ = [
    "CHECKS",
    "FALSE_ALARM_RATE",
    "Calibration",
    "Joint",
    "assert_close_to",
    "assert_leaves_invariant",
    "assert_mean",
    "assert_same_distribution",
    "check_contract",
    "joint_from_functions",
    "joint_from_model",
    "one_by_one",
    "sbc",
]
