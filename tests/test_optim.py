"""The learning rate is a function of the step; weight decay falls where the recipe says."""

import pytest
import torch

from hf_gpt.recipe import OptimizerRecipe, ScheduleRecipe
from hf_gpt.training.optim import build_optimizer, learning_rate


def rates(name, steps=100, **fields):
    schedule = ScheduleRecipe(name=name, warmup_steps=10, min_lr_ratio=0.1, **fields)
    return [learning_rate(step, steps, 1.0, schedule) for step in range(1, steps + 1)]


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "wsd"])
def test_every_schedule_warms_up_to_the_peak(name):
    warmup = rates(name)[:10]
    assert warmup == pytest.approx([step / 10 for step in range(1, 11)])


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_schedules_end_at_the_minimum_and_never_rise_after_warmup(name):
    after = rates(name)[10:]
    assert after[-1] == pytest.approx(0.1)
    assert after == sorted(after, reverse=True)


def test_cosine_is_half_way_down_in_the_middle():
    assert rates("cosine")[54] == pytest.approx(0.55)  # step 55 of 10..100


def test_wsd_is_stable_until_it_decays():
    stable = rates("wsd", decay_fraction=0.2)
    assert stable[10:80] == [1.0] * 70
    assert stable[89] == pytest.approx(0.55)


def test_constant_without_warmup_is_the_books():
    assert learning_rate(1, 90, 4e-4, ScheduleRecipe(name="constant")) == 4e-4


def test_weight_decay_spares_biases_and_norms_unless_asked():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    matrices = build_optimizer(model, OptimizerRecipe())
    assert [(len(g["params"]), g["weight_decay"]) for g in matrices.param_groups] == [(1, 0.1), (3, 0.0)]
    everything = build_optimizer(model, OptimizerRecipe(decay="all"))
    assert [(len(g["params"]), g["weight_decay"]) for g in everything.param_groups] == [(4, 0.1)]
