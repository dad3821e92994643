"""The learning rate is a function of the step; weight decay falls where the recipe says."""

import copy

import pytest
import torch

from hf_gpt import GPTConfig, GPTForCausalLM
from hf_gpt.recipe import OptimizerRecipe, ScheduleRecipe
from hf_gpt.training import muon
from hf_gpt.training.muon import Muon, orthogonalized
from hf_gpt.training.optimizer import build_optimizer, learning_rate, set_learning_rate


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


def small_model(seed=0):
    torch.manual_seed(seed)
    return GPTForCausalLM(
        GPTConfig(vocab_size=65, context_length=16, emb_dim=32, n_layers=2, n_heads=2, qkv_bias=True)
    )


def updates_of(model, optimizer, count=3):
    """How each parameter of `model` changes over some steps."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    ids = torch.randint(65, (count, 4, 16), generator=torch.Generator().manual_seed(0))
    model.eval()
    for batch in ids:
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}


def test_muon_updates_matrices_of_blocks_and_adamw_everything_else():
    model = small_model()
    optimizer = build_optimizer(model, OptimizerRecipe(name="muon", lr=1e-3))
    names = {parameter: name for name, parameter in model.named_parameters()}
    orthogonal = {names[p] for group in optimizer.param_groups if group["orthogonal"] for p in group["params"]}
    kinds = (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    )
    assert orthogonal == {f"model.layers.{layer}.{kind}.weight" for layer in (0, 1) for kind in kinds}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)


def test_a_first_muon_step_leaves_adamws_parameters_where_adamw_does():
    ours, theirs = small_model(), small_model()
    of_muon = updates_of(ours, build_optimizer(ours, OptimizerRecipe(name="muon", lr=1e-3)), count=1)
    of_adamw = updates_of(theirs, build_optimizer(theirs, OptimizerRecipe(lr=1e-3)), count=1)
    same = {name for name in of_adamw if torch.equal(of_muon[name], of_adamw[name])}
    assert same == {name for name in of_adamw if not ("layers." in name and of_adamw[name].ndim == 2)}


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_is_torchs_but_for_bf16():
    ours, theirs = small_model(), small_model()
    recipe = OptimizerRecipe(name="muon", lr=1e-3, weight_decay=0.1)
    optimizer = build_optimizer(ours, recipe)
    for group in optimizer.param_groups:
        if not group["orthogonal"]:
            group["params"] = []
    matrices = [
        parameter for name, parameter in theirs.named_parameters() if "layers." in name and parameter.ndim == 2
    ]
    reference = torch.optim.Muon(matrices, lr=1e-3, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    ours, theirs = updates_of(ours, optimizer), updates_of(theirs, reference)
    for name in (name for name, update in theirs.items() if update.any()):
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0.1 * float(theirs[name].abs().max()))


def test_a_copied_muon_updates_as_the_original_does():
    model = small_model()
    pair = model, build_optimizer(model, OptimizerRecipe(name="muon"), "bf16")
    copied, original = updates_of(*copy.deepcopy(pair)), updates_of(*pair)
    assert all(torch.equal(copied[name], original[name]) for name in original)


@pytest.mark.parametrize(("has_units", "precision"), [(True, "bf16"), (True, "no"), (False, "bf16")])
def test_muon_orthogonalizes_in_bf16_where_that_is_fast_and_asked_for(has_units, precision, monkeypatch):
    monkeypatch.setattr(muon, "multiplies_bf16", lambda device_type: has_units)
    recipe = OptimizerRecipe(name="muon", lr=1e-3)
    models = small_model(), small_model()
    found, exact = (
        updates_of(model, build_optimizer(model, recipe, asked)) for model, asked in zip(models, (precision, "no"))
    )
    in_bf16 = has_units and precision == "bf16"
    for name in (name for name in exact if "layers." in name and exact[name].ndim == 2 and exact[name].any()):
        assert torch.equal(found[name], exact[name]) != in_bf16
        torch.testing.assert_close(found[name], exact[name], rtol=0, atol=0.1 * float(exact[name].abs().max()))


def test_orthogonalized_matrices_have_singular_values_near_one_and_do_not_know_of_each_other():
    matrices = (
        torch.randn(3, 24, 64, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    )
    for stack in (matrices, matrices.mT):
        together = orthogonalized(stack)
        values = torch.linalg.svdvals(together)
        assert ((values > 0.6) & (values < 1.3)).all()
        torch.testing.assert_close(together[1:2], orthogonalized(stack[1:2]), rtol=1e-5, atol=1e-6)
    assert not orthogonalized(torch.zeros(1, 3, 4)).any()


def test_muons_learning_rate_follows_the_schedule_at_its_own_height():
    optimizer = build_optimizer(small_model(), OptimizerRecipe(name="muon", lr=1e-3, muon_lr=4e-3))
    set_learning_rate(optimizer, 5e-4)  # half way
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([5e-4, 5e-4, 2e-3])


def test_muon_takes_only_matrices():
    with pytest.raises(ValueError, match="matrices"):
        Muon([{"params": [torch.nn.Parameter(torch.zeros(3))], "orthogonal": True}], lr=1e-3)
