"""Pictures of a report: what is drawn for whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ppgen.models import RBM, VAE
from ppgen.ops.random import forked_rng
from ppgen.plots.curves import curves
from ppgen.report import pictures


def test_a_training_loss_of_another_kind_has_axes_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[list[str], bool]] = []
    plain = curves

    def spy(series: dict[str, Any], *, apart: bool = False, **options: Any) -> Any:
        drawn.append((list(series), apart))
        return plain(series, apart=apart, **options)

    monkeypatch.setattr(pictures, "curves", spy)
    history = [{"epoch": float(i), "loss": 20.0 - i, "validation_loss": 21.0 - i} for i in range(1, 4)]
    with forked_rng(0):
        machine, autoencoder = RBM((4,), num_hidden=2), VAE((4,), hidden=(4,))
    pictures.draw_curves(tmp_path, history, machine)
    assert drawn[0] == (["training (free-energy gap)", "validation"], True)
    drawn.clear()
    pictures.draw_curves(tmp_path, history, autoencoder)
    assert drawn[0] == (["training", "validation"], False)
