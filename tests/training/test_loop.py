"""The optimiser's loop: its schedule, its float32 copies, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from jouleboard.training.loop import Schedule, Training

SCHEDULE = Schedule(steps=10, batch_size=2, accumulate=1, learning_rate=1.0, warm_up=0.2)
IDS = torch.arange(6).reshape(3, 2)


def never() -> bool:
    return False


def nobody(_step: int, _of: int) -> None:
    """Hear nothing."""


def test_the_rate_rises_and_falls_along_half_a_cosine():
    rates = [SCHEDULE.rate(step) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5)
    assert 0 < rates[9] < 0.05
    assert Schedule(steps=1, batch_size=1, accumulate=1, learning_rate=0.1, warm_up=0.0).rate(0) == 0.1


def test_updates_too_small_for_bfloat16_add_up():
    weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    # One step of Adam moves a weight by about the learning rate; bfloat16 has no number between 1 and 1.0078.
    training = Training({"w": weight}, Schedule(steps=40, batch_size=1, accumulate=1, learning_rate=1e-3, warm_up=0.0))
    training.run(IDS, lambda _ids: -weight.float().sum(), store=None, pause=never, progress=nobody)
    assert float(weight.detach().float().min()) > 1.01


def test_batches_are_read_in_order_and_begin_again_at_the_end():
    weight, seen = nn.Parameter(torch.ones(1)), []

    def loss(ids: torch.Tensor) -> torch.Tensor:
        seen.append(ids[:, 0].tolist())
        return weight.sum()

    training = Training({"w": weight}, Schedule(steps=2, batch_size=2, accumulate=2, learning_rate=1e-3, warm_up=0.0))
    piece = training.run(IDS, loss, store=None, pause=never, progress=nobody)
    assert seen == [[0, 2], [4, 0], [2, 4], [0, 2]]
    assert piece.steps == 2
    assert piece.finished


def test_the_loss_that_is_told_is_the_mean_over_accumulated_batches():
    weight = nn.Parameter(torch.ones(1))
    training = Training({"w": weight}, Schedule(steps=1, batch_size=1, accumulate=3, learning_rate=1e-3, warm_up=0.0))
    piece = training.run(IDS, lambda ids: weight.sum() * ids[0, 0], store=None, pause=never, progress=nobody)
    assert piece.first_loss == piece.last_loss == pytest.approx(2.0)


def test_gradients_are_clipped_together():
    weight = nn.Parameter(torch.zeros(4))
    training = Training({"w": weight}, Schedule(steps=1, batch_size=1, accumulate=1, learning_rate=1e-3, warm_up=0.0))
    kept = {}
    original = training._optimiser.step
    training._optimiser.step = lambda: (kept.update(norm=float(training._copies["w"].grad.norm())), original())
    training.run(IDS, lambda _ids: (weight * 1000).sum(), store=None, pause=never, progress=nobody)
    assert kept["norm"] == pytest.approx(1.0, rel=1e-4)
