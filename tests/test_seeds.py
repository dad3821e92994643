"""The seed of a run, those of its weights and of its order alone, and runs that differ in nothing else."""

import json
import math
from statistics import mean, stdev

import pytest
import torch
from test_report_page import Page
from test_training import changed

import hf_gpt
from hf_gpt.cli import main
from hf_gpt.recipe import Recipe
from hf_gpt.report.page import plot
from hf_gpt.report.plots import curve_names, loss_plots
from hf_gpt.report.records import read_run
from hf_gpt.report.seeds import seed_groups
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


# Drawn together -----------------------------------------------------------------------------------------------------

LOSSES = [4.0, 2.0, 3.0, 2.5, 3.5]  # at step 10, by seed


def write_seed(folder, seed, last_loss, recipe="", environment=None, steps=(0, 5, 10)):
    """A run that begins at a loss of 5 and ends at another."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(f"seed: {seed}\noutput_dir: {folder}\nhub: {{repo_id: me/{seed}}}\n{recipe}")
    (folder / "environment.json").write_text(json.dumps(environment or {}))
    lines = [
        {"step": step, "tokens": 64 * step, "seconds": seed + step, "epoch": step / 10, "eval_train_loss": 1.0}
        | {"validation_loss": 5 + step / 10 * (last_loss - 5), "words": step}
        for step in steps
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize("num_seeds", [2, 4, 5])
def test_a_mean_has_a_band_and_few_seeds_their_curves(tmp_path, num_seeds):
    losses = LOSSES[:num_seeds]
    runs = [read_run(write_seed(tmp_path / f"{seed}", seed, loss)) for seed, loss in enumerate(losses)]
    shown, perplexity, training = loss_plots(runs, "seconds")
    *single, curve = shown.curves
    assert curve.label == f"1-{num_seeds}. mean of {num_seeds} seeds"
    assert curve.y.tolist() == pytest.approx([5, (5 + mean(losses)) / 2, mean(losses)])
    assert curve.deviation.tolist() == pytest.approx([0, stdev(losses) / 2, stdev(losses)])
    assert curve.x.tolist() == [mean(range(num_seeds)) + step for step in (0, 5, 10)]  # the mean time of each step
    assert len(single) == (num_seeds if num_seeds < 5 else 0)
    assert all(one.label.startswith("_") and one.deviation is None for one in single)  # in no legend
    assert perplexity.curves[-1].y[-1] == pytest.approx(mean(map(math.exp, losses)))
    assert training.curves[-1].deviation.tolist() == [0, 0, 0]


def test_plot_prints_the_figures_over_seeds(tmp_path, capsys):
    runs = [write_seed(tmp_path / f"{seed}", seed, loss) for seed, loss in enumerate(LOSSES)]
    assert main(["plot", *map(str, runs), "--output", str(tmp_path / "all"), "--log"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "1-5. mean of 5 seeds: eval_train_loss 1.0000 ± 0.0000 at step 10",
        "1-5. mean of 5 seeds: validation_loss 3.0000 ± 0.7906 at step 10",
        "1-5. mean of 5 seeds: lowest validation_loss 3.0000 ± 0.7906 at step 10",
        *(str(tmp_path / "all" / name) for name in ("report.html", "loss.png")),
    ]
    words = Page(tmp_path / "all" / "report.html").words
    assert "1-5. mean of 5 seeds validation_loss 3.0000 0.7906 5 10" in words
    assert plot(runs[0]).figures == []


def test_runs_are_grouped_by_what_differs(tmp_path):
    slow, fast = "optimizer: {lr: 0.001}\n", "optimizer: {lr: 0.002}\ncheckpoint: {every: 5}\ntracking: {to: [x]}\n"
    kept = "checkpoint: {every: 9}\n"  # is no difference
    runs = [
        write_seed(tmp_path / "a", 1, 4.0, slow),
        write_seed(tmp_path / "b", 1, 3.0, fast),
        write_seed(tmp_path / "c", 2, 2.0, slow + kept),
        write_seed(tmp_path / "d", 1, 2.5, fast + "model: {seed: 5}\n"),
        write_seed(tmp_path / "e", 2, 1.0, slow + "model: {seed: 1}\ndata: {seed: 2}\n"),
        write_seed(tmp_path / "same seeds as c", 7, 9.0, slow + "model: {seed: 2}\ndata: {seed: 2}\n"),
        write_seed(tmp_path / "another text", 3, 9.0, slow, {"text": {"eval_train": "2"}}),
        write_seed(tmp_path / "a branch", 4, 9.0, slow, {"parent": {"run": "a", "step": 5}}),
    ]
    records = [read_run(run) for run in runs]
    assert seed_groups(records) == [[0, 2, 4], [1, 3], [5], [6], [7]]
    assert [name for name, _ in curve_names(records[:4])] == [
        "1, 3. mean of 2 seeds: optimizer.lr 0.001",
        "2, 4. mean of 2 seeds: optimizer.lr 0.002",
    ] * 2
    figures = plot(runs[:5], tmp_path / "all").figures
    assert [(f.label[:7], f.mean, f.num_runs) for f in figures if f.name == "validation_loss"] == [
        ("1, 3, 5", pytest.approx(7 / 3), 3),
        ("2, 4. m", 2.75, 2),
    ]


def test_the_lowest_loss_is_of_the_text_that_best_follows(tmp_path):
    recipe = "evaluation: {datasets: {poems: p.txt}, best_on: poems}\n"
    runs = [write_seed(tmp_path / f"{seed}", seed, 4.0, recipe) for seed in (1, 2)]
    for run, lowest in zip(runs, (2.0, 3.0)):
        path = run / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        losses = (5.0, lowest, lowest + 1)
        lines = [{**line, "validation/poems_loss": loss} for line, loss in zip(lines, losses)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures = {figure.name: figure.mean for figure in plot(runs, tmp_path / "all").figures}
    assert figures["validation/poems_loss"] == 3.5
    assert figures["lowest validation/poems_loss"] == 2.5
    assert "lowest validation_loss" not in figures


def test_a_run_that_is_not_as_far_is_compared_where_it_is(tmp_path):
    runs = [write_seed(tmp_path / "a", 1, 4.0), write_seed(tmp_path / "b", 2, 2.0, steps=(0, 5))]
    found = {figure.name: figure for figure in plot(runs, tmp_path / "all").figures}["validation_loss"]
    assert (found.step, found.mean) == (5, 4.0)
    *single, curve = loss_plots([read_run(run) for run in runs])[0].curves
    assert curve.x.tolist() == [0, 5]
    assert [one.x.tolist() for one in single] == [[0, 5, 10], [0, 5]]


def test_runs_without_a_recipe_are_not_seeds_of_one(tmp_path):
    runs = [write_seed(tmp_path / name, 1, 4.0) for name in "ab"]
    for run in runs:
        (run / "recipe.yaml").unlink()
    assert seed_groups([read_run(run) for run in runs]) == [[0], [1]]
