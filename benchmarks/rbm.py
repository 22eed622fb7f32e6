"""Persistent contrastive divergence, one epoch, against scikit-learn's BernoulliRBM.

The 1797 digits of 8 x 8 pixels in [0, 1] and 128 hidden units; one sweep of block Gibbs a step,
as many chains as the batch has data, plain gradient descent. Batches of 10 (scikit-learn's
default) and of 100, in float32 on our side and in both dtypes on the other. ``stepper`` is the
loop ``for batch in x.split(size): step.step(batch)`` over the objective's public stepper; ``fit``
is :func:`ppgen.fit` with all that it adds: shuffling, finite-loss checks, snapshots, set-up.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from benchmarks.timing import interleaved

_EPOCHS = 5
_HIDDEN = 128
_RATE = 0.05
_TARGET = 0.5


def run() -> list[dict[str, Any]]:
    """Milliseconds of one epoch, the median over rounds of five epochs, on one thread."""
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            return [
                _row("stepper", 10, "float64", _TARGET),
                _row("stepper", 10, "float32", None),
                _row("stepper", 100, "float64", _TARGET),
                _row("stepper", 100, "float32", None),
                _row("fit", 10, "float64", None),
                _row("fit", 100, "float64", None),
            ]
    finally:
        torch.set_num_threads(threads)


def _row(path: str, batch_size: int, peer_dtype: str, target: float | None) -> dict[str, Any]:
    from sklearn.datasets import load_digits
    from sklearn.neural_network import BernoulliRBM

    pixels = load_digits().data / 16
    peer = BernoulliRBM(_HIDDEN, batch_size=batch_size, learning_rate=_RATE, n_iter=_EPOCHS, random_state=0)
    peer_pixels = pixels.astype(peer_dtype)
    make = _stepper if path == "stepper" else _fit
    ours = make(torch.as_tensor(pixels, dtype=torch.float32), batch_size)
    ours_ms, peer_ms = interleaved(ours, lambda: peer.fit(peer_pixels))
    return {
        "benchmark": "rbm PCD epoch",
        "case": f"1797x64, {_HIDDEN} hidden, batch {batch_size}, {path}",
        "ours_ms": ours_ms / _EPOCHS,
        "peer_ms": peer_ms / _EPOCHS,
        "peer": f"scikit-learn {peer_dtype}",
        "ratio": ours_ms / peer_ms,
        "target": target,
    }


def _stepper(x: torch.Tensor, batch_size: int) -> Any:
    from ppgen.inference.objectives.base import StepOptions
    from ppgen.inference.objectives.contrastive_divergence import ContrastiveDivergence
    from ppgen.models import RBM

    rbm = RBM((x.shape[1],), num_hidden=_HIDDEN)
    optimizer = functools.partial(torch.optim.SGD, lr=_RATE)
    objective = ContrastiveDivergence(k=1, persistent=True)
    step = objective.stepper(rbm.model, rbm.guide, StepOptions(list(rbm.parameters()), optimizer))

    def epochs() -> None:
        for _ in range(_EPOCHS):
            for batch in x.split(batch_size):
                step.step(batch)

    return epochs


def _fit(x: torch.Tensor, batch_size: int) -> Any:
    import ppgen
    from ppgen.datasets.split import Split
    from ppgen.datasets.values import BINARY
    from ppgen.inference.objectives.contrastive_divergence import ContrastiveDivergence
    from ppgen.models import RBM

    data = Split(x.round(), values=BINARY)

    def epochs() -> None:
        ppgen.fit(
            RBM((x.shape[1],), num_hidden=_HIDDEN),
            data,
            objective=ContrastiveDivergence(k=1, persistent=True),
            optimizer=torch.optim.SGD,
            learning_rate=_RATE,
            epochs=_EPOCHS,
            batch_size=batch_size,
            device="cpu",
            progress=False,
        )

    return epochs
