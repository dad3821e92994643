"""A run overfits where validation loss turns while training loss falls, and that is not said before it is clear."""

import math
import random

import pytest

from hf_gpt.report.overfitting import LossTrend, loss_trend


def evaluations(validation: list[float], training: list[float] | None = None) -> list[dict]:
    training = training or [5 / (1 + step / 4) for step in range(len(validation))]
    return [
        {"step": 10 * number, "validation_loss": v, "eval_train_loss": t}
        for number, (v, t) in enumerate(zip(validation, training))
    ]


def turning_point(metrics: list[dict]) -> LossTrend | None:
    found = loss_trend(metrics)
    return found if found is not None and found.kind == "overfitting" else None


def test_a_loss_that_falls_for_ever_is_not_marked():
    falls = [2 + 5 / math.sqrt(1 + step) for step in range(50)]
    assert all(turning_point(evaluations(falls[:length])) is None for length in range(51))


def test_the_books_run_turns_at_step_55():
    """Chapter 5 of Build a Large Language Model From Scratch, as printed there: every five steps."""
    validation = [9.933, 8.339, 7.048, 6.616, 6.600, 6.348, 6.278, 6.226, 6.160]
    validation += [6.179, 6.141, 6.134, 6.233, 6.238, 6.242, 6.293, 6.393, 6.452]
    training = [9.781, 8.111, 6.661, 5.961, 5.726, 5.201, 4.417, 4.069, 3.732]
    training += [2.850, 2.427, 2.104, 1.882, 1.320, 0.985, 0.717, 0.541, 0.391]
    lines = evaluations(validation, training)
    found = [turning_point(lines[:length]) for length in range(len(lines) + 1)]
    assert found[:14] == [None] * 14  # up to the first evaluation that is higher
    assert {turn.step for turn in found[14:]} == {110}  # the twelfth evaluation: step 55 in the book
    assert found[-1].validation_loss == 6.134
    assert found[-1].rise == pytest.approx((6.293 + 6.393 + 6.452) / 3 - 6.141)


def test_few_evaluations_are_enough_where_the_turn_is_plain():
    assert turning_point(evaluations([7.0, 4.3, 4.0, 4.4])) is None  # one more may fall again
    assert turning_point(evaluations([7.0, 4.3, 4.0, 4.4, 4.9])).step == 20


@pytest.mark.parametrize(("noise", "at_most"), [(0.005, 0), (0.02, 0), (0.05, 2)])
def test_noise_is_no_turn(noise, at_most):
    draw = random.Random(1)
    falls = [[3 + 4 / math.sqrt(1 + step) + draw.gauss(0, noise) for step in range(40)] for _ in range(50)]
    assert sum(turning_point(evaluations(curve)) is not None for curve in falls) <= at_most


def test_a_turn_is_found_in_noise():
    draw = random.Random(1)
    for _ in range(50):
        turns = [3 + abs(step - 20) / 10 + draw.gauss(0, 0.05) for step in range(40)]
        assert abs(turning_point(evaluations(turns)).step - 200) <= 20


def test_a_run_that_diverges_does_not_overfit():
    turns = [3 + abs(step - 20) / 10 for step in range(40)]
    assert turning_point(evaluations(turns)) is not None
    assert turning_point(evaluations(turns, training=turns)) is None
    assert loss_trend(evaluations(turns, training=turns)).kind == "diverging"


def test_a_run_that_has_memorized_its_text_still_overfits():
    turns = [7.0, 5.0, 4.0, 3.9, 4.2, 4.5, 4.9]
    assert turning_point(evaluations(turns, training=[7.0, 5.0, 4.0, 1.0, 1.005, 1.0, 1.002])).step == 30


@pytest.mark.parametrize(
    ("losses", "at"),
    [
        ([7, 5, 7, 4, 3.5, 3.2, 3.0, 3.4, 3.8, 4.2, 4.6], 6),  # a spike while it fell
        ([7, 5, 4, 3.5, 3.2, 3.0, 3.5, 4.0, 4.4, 3.8, 3.8, 3.9], 5),  # a dip while it rose
    ],
)
def test_one_spike_hides_no_turn(losses, at):
    assert turning_point(evaluations(losses)).step == 10 * at


@pytest.mark.parametrize(
    ("losses", "trend"),
    [
        ([7], "too early"),
        ([7, 8], "too early"),
        ([7, 5, 4], "falling"),
        ([7, 5, 4, 4.02], "falling"),
        ([7, 5, 4, 4.3], "unclear"),  # one evaluation is no turn
        ([7, 5, 4, 3.5, 3.2, 3.0, 4.0, 3.1], "unclear"),  # it has almost come back
        ([7, 5, 4, 4.5, 5], "overfitting"),
    ],
)
def test_the_trend_of_a_few_evaluations(losses, trend):
    assert loss_trend(evaluations(losses)).kind == trend


def test_lines_that_are_no_evaluation_do_not_count():
    turned = evaluations([7.0, 4.3, 4.0, 4.4, 4.9])
    odd = [{"step": 1, "train_loss": 3.0}, {"step": 2, "validation_loss": math.nan, "eval_train_loss": 1.0}]
    assert turning_point([*odd, *turned]) == turning_point(turned)
    assert turning_point([]) is None
