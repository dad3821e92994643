"""The seed of a run, and those of its weights and of its order alone."""

import pytest
import torch
from test_training import changed

import hf_gpt
from hf_gpt.recipe import Recipe
from hf_gpt.training.run_log import read_metrics
from hf_gpt.training.setup import prepare


def weights_and_order(recipe: dict) -> tuple[torch.Tensor, list[int]]:
    job = prepare(Recipe.from_dict(recipe))
    order = [index for step in (1, 2, job.plan.steps_per_epoch + 1) for index in job.plan.indices(step)]
    return torch.nn.utils.parameters_to_vector(job.model.parameters()).detach(), order


def test_weights_and_order_follow_their_own_seeds(tiny):
    weights, order = weights_and_order(tiny)
    other_weights, other_order = weights_and_order({**tiny, "seed": 5})
    assert not torch.equal(weights, other_weights)
    assert order != other_order
    for seeds, *expected in (
        ({"model__seed": 5}, other_weights, order),
        ({"data__seed": 5}, weights, other_order),
        ({"seed": 5, "model__seed": 123, "data__seed": 123}, weights, order),
    ):
        found = weights_and_order(changed(tiny, **seeds))
        assert torch.equal(found[0], expected[0])
        assert found[1] == expected[1]


def test_dropout_follows_the_seed_of_the_model(tiny):
    """Another dropout is another loss at step 1, where the weights and the windows are the same."""
    pretrained = changed(tiny, output_dir=tiny["output_dir"] + "-0", train__max_steps=0)
    start = {"from_pretrained": str(hf_gpt.train(pretrained).checkpoints[-1]), "dropout": 0.5}

    def first_loss(name: str, **seeds: int) -> float:
        recipe = changed({**tiny, "model": start}, output_dir=f"{tiny['output_dir']}-{name}", train__max_steps=1)
        return next(line["train_loss"] for line in hf_gpt.train(changed(recipe, **seeds)).metrics if line["step"] == 1)

    loss = first_loss("a")
    assert first_loss("b", model__seed=5) != loss
    assert first_loss("c", seed=5, model__seed=123, data__seed=123) == loss


def test_a_seed_that_is_spelled_out_resumes_the_run_and_another_is_refused(tiny):
    tiny = changed(tiny, schedule__name="constant")
    hf_gpt.train(changed(tiny, train__max_steps=8))
    for seeds, what in (
        ({"model__seed": 5}, r"model\.seed None -> 5"),
        ({"data__seed": 5}, r"data\.seed None -> 5"),
        ({"seed": 5, "model__seed": 123, "data__seed": 123}, "seed 123 -> 5"),
    ):
        with pytest.raises(hf_gpt.UserError, match=rf"holds a different run \({what}\)"):
            hf_gpt.train(changed(tiny, **seeds))
    resumed = hf_gpt.train(changed(tiny, model__seed=123, data__seed=123))
    whole = hf_gpt.train(changed(tiny, output_dir=tiny["output_dir"] + "-whole"))
    losses = [
        {line["step"]: line["train_loss"] for line in read_metrics(run.output_dir) if "train_loss" in line}
        for run in (resumed, whole)
    ]
    assert [*losses[0]] == [*range(1, 13)]
    assert losses[0] == losses[1]


def test_a_branch_may_see_another_order(tiny):
    hf_gpt.train(tiny)
    branch = changed(tiny, output_dir=tiny["output_dir"] + "-branch", data__seed=5)
    run = hf_gpt.train(branch, parent=f"{tiny['output_dir']}@8")
    assert [line["step"] for line in run.metrics if "train_loss" in line] == [9, 10, 11, 12]


def test_names_hold_the_seed(tmp_path):
    names = {"output_dir": "runs/small-{seed}", "hub": {"repo_id": "me/small-{seed}"}}
    recipe = Recipe(seed=7, model={"seed": 8}, **names)
    assert (recipe.output_dir, recipe.hub.repo_id) == ("runs/small-7", "me/small-7")
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert (recipe.model_seed, recipe.data_seed) == (8, 7)
    file = tmp_path / "recipe.yaml"
    file.write_text('seed: 1\noutput_dir: "runs/{seed}/{seed}"\nhub: {repo_id: "me/{seed}"}\n')
    recipe = Recipe.from_yaml(file, ["--seed", "2"])
    assert (recipe.output_dir, recipe.hub.repo_id) == ("runs/2/2", "me/2")
    shared = hf_gpt.recipe.HubRecipe(repo_id="me/{seed}")
    assert [Recipe(seed=seed, hub=shared).hub.repo_id for seed in (1, 2)] == ["me/1", "me/2"]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"hub": {"repo_id": "me/{sed}"}}, "hub.repo_id: must be OWNER/NAME"),
        ({"model": {"seed": -1}}, "model.seed: must be at least 0, found -1"),
        ({"data": {"seed": "x"}}, "data.seed: must be a whole number, found x"),
        ({"model": {"config": {"seed": 1}}}, "model: 'seed' is a field of the section"),
    ],
)
def test_seeds_that_cannot_be_are_refused(recipe, message):
    with pytest.raises(hf_gpt.UserError, match=message):
        Recipe.from_dict(recipe)
