"""The losses are the textbook's, in value and in slope."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from torch.autograd import gradcheck

from jouleboard.training import losses
from jouleboard.training.losses import IGNORED, Weighting

ROWS, WIDTH = 150, 11
"""More rows than one piece has."""


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64) * 3
    teacher = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(0, WIDTH, (ROWS,), generator=generator)
    return student, teacher, labels


def textbook(student, teacher, labels, alpha: float, temperature: float) -> float:
    counted = labels.numpy() != IGNORED
    z, t, y = student.numpy()[counted], teacher.numpy()[counted], labels.numpy()[counted]
    entropy = -log_softmax(z, axis=-1)[np.arange(len(y)), y]
    divergence = rel_entr(softmax(t / temperature, axis=-1), softmax(z / temperature, axis=-1)).sum(-1)
    return float(np.mean(alpha * entropy + (1 - alpha) * temperature**2 * divergence))


@pytest.mark.parametrize(("alpha", "temperature"), [(0.0, 1.0), (1.0, 1.0), (0.3, 1.0), (0.0, 4.0), (0.7, 2.5)])
def test_the_response_loss_is_the_formula(logits, alpha, temperature):
    found = losses.response(*logits, Weighting(alpha=alpha, temperature=temperature))
    assert found.item() == pytest.approx(textbook(*logits, alpha, temperature), rel=1e-12)


@pytest.mark.parametrize(("alpha", "temperature"), [(0.0, 1.0), (1.0, 1.0), (0.4, 3.0)])
def test_the_slope_is_that_of_the_loss(logits, alpha, temperature):
    student, teacher, labels = (part[:6].clone() for part in logits)
    labels[2] = IGNORED
    weighting = Weighting(alpha=alpha, temperature=temperature)
    assert gradcheck(lambda z: losses.response(z, teacher, labels, weighting) * 2.5, (student.requires_grad_(),))


def test_a_position_that_is_masked_counts_neither_in_the_loss_nor_in_the_mean(logits):
    student, teacher, labels = logits
    weighting = Weighting(alpha=0.5, temperature=2.0)
    labels[::3] = IGNORED
    masked = losses.response(student.requires_grad_(), teacher, labels, weighting)
    assert masked.item() == pytest.approx(textbook(student.detach(), teacher, labels, 0.5, 2.0), rel=1e-12)
    masked.backward()
    assert not student.grad[::3].any()
    assert student.grad[1::3].any()


def test_where_no_position_counts_the_loss_is_zero_and_finite(logits):
    student, teacher, labels = logits
    found = losses.response(student.requires_grad_(), teacher, torch.full_like(labels, IGNORED), Weighting(alpha=0.5, temperature=1.0))
    found.backward()
    assert found.item() == 0.0
    assert not student.grad.any()


def test_the_gradients_size_hardly_depends_on_the_temperature(logits):
    student, teacher, labels = (logits[0] / 100, logits[1] / 100, logits[2])
    norms = []
    for temperature in (1.0, 10.0):
        z = student.clone().requires_grad_()
        losses.response(z, teacher, labels, Weighting(alpha=0.0, temperature=temperature)).backward()
        norms.append(float(z.grad.norm()))
    # Hinton et al. 2015, eq. 4: at a high temperature the slope tends to (z - t) / width, whatever the temperature is.
    assert norms[1] == pytest.approx(norms[0], rel=0.05)


def test_a_student_that_equals_its_teacher_has_no_divergence_and_no_slope(logits):
    _, teacher, labels = logits
    z = teacher.clone().requires_grad_()
    found = losses.response(z, teacher, labels, Weighting(alpha=0.0, temperature=2.0))
    found.backward()
    assert found.item() == pytest.approx(0.0, abs=1e-12)
    assert float(z.grad.abs().max()) < 1e-15


def test_bfloat16_logits_are_widened_before_they_are_compared(logits):
    student, teacher, labels = (logits[0].bfloat16(), logits[1].bfloat16(), logits[2])
    found = losses.response(student.requires_grad_(), teacher, labels, Weighting(alpha=0.5, temperature=2.0))
    found.backward()
    assert found.dtype == torch.float32
    assert student.grad.dtype == torch.bfloat16
    assert found.item() == pytest.approx(textbook(student.detach().double(), teacher.double(), labels, 0.5, 2.0), rel=1e-5)


def test_each_position_is_to_predict_the_next_one():
    assert losses.next_tokens(torch.tensor([[5, 6, 7], [8, 9, 1]])).tolist() == [[6, 7, IGNORED], [9, 1, IGNORED]]


def test_the_hidden_error_is_relative_at_each_position():
    teacher = torch.randn(2, 3, 8, dtype=torch.float64)
    teacher[0, 0] *= 1000
    counted = torch.tensor([[True, True, True], [True, True, False]])
    error = losses.hidden(teacher * 1.1, teacher, counted)
    assert float(error) == pytest.approx(0.01)
    state = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    want = np.mean([((state[i, j].detach().numpy() - teacher[i, j].numpy()) ** 2).mean() / (teacher[i, j].numpy() ** 2).mean()
                    for i in range(2) for j in range(3) if counted[i, j]])
    assert losses.hidden(state, teacher, counted).item() == pytest.approx(float(want), rel=1e-12)
    assert gradcheck(lambda h: losses.hidden(h, teacher, counted), (state,))
