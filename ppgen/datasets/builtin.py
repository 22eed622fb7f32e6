"""Real data that come inside a dependency: no download."""

from __future__ import annotations

import torch

from ppgen.datasets.partition import partition
from ppgen.datasets.split import DataSet, Split
from ppgen.datasets.values import grid

# The usual split of these data by rows: the last fifth is the test.
_NUM_TEST = 360
_NUM_VALIDATION = 144


def digits(*, seed: int = 0, dtype: torch.dtype = torch.float32) -> DataSet:
    """The 1797 handwritten digits of scikit-learn: 8 x 8 pixels of 17 grey levels.

    The test split is the last 360 rows. Of the first 1437, a class-balanced tenth (144 rows)
    validates and 1293 train;
    ``data.train.joined(data.validation)`` is all 1437, for methods that need no validation.

    Args:
        seed: chooses the validation rows.
        dtype: floating-point type of x.

    Returns:
        x of shape ``(N, 1, 8, 8)`` with values k/16, labels y (int64) of shape ``(N,)``.

    Source:
        E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine
        Learning Repository, 1998 (its test part, as ``sklearn.datasets.load_digits``).
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.tensor(raw.data, dtype=dtype).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(raw.target, dtype=torch.int64)
    num = len(x) - _NUM_TEST
    validation, train = partition(num, [_NUM_VALIDATION], seed, y[:num])

    def part(rows: torch.Tensor, role: str) -> Split:
        return Split(x[rows], y[rows], grid(17), f"digits {role}")

    return DataSet(
        name="digits",
        train=part(train, "train"),
        validation=part(validation, "validation"),
        test=part(torch.arange(num, len(x)), "test"),
        description=(
            f"1797 handwritten digits, 8 x 8 pixels, 17 grey levels. Test: the last {_NUM_TEST} rows; "
            f"of the first {num}, {_NUM_VALIDATION} class-balanced rows validate (seed {seed})."
        ),
    )
