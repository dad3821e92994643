"""A recipe is typed, refuses what cannot be, and survives YAML and the command line."""

import pytest
import yaml

from hf_gpt.errors import UserError
from hf_gpt.recipe import ModelRecipe, Recipe, differences, fields_help
from hf_gpt.run import scratch_recipe


def test_defaults_are_a_whole_recipe():
    recipe = Recipe()
    assert recipe.tokenizer.name is None  # gpt2, or the tokenizer of model.from_pretrained
    assert recipe.train.max_steps == 1000
    assert recipe.optimizer.lr == 4e-4


def test_a_recipe_survives_yaml():
    recipe = Recipe.from_dict({"model": {"preset": "gpt2-124m", "context_length": 256}, "data": {"source": "a.txt"}})
    assert Recipe.from_dict(yaml.safe_load(recipe.to_yaml())) == recipe
    assert recipe.to_dict()["model"]["context_length"] == 256


def test_the_command_line_changes_a_file(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("optimizer: {lr: 4e-4}\ntrain: {max_steps: 5}\ndata: {validation_fraction: 0.1}\nschedule:\n")
    flags = [
        "--optimizer.lr=1e-3",
        "--train.max_steps",
        "7",
        "--data.validation_fraction",
        "null",
        "--model.emb_dim",
        "8",
    ]
    recipe = Recipe.from_yaml(path, flags)
    assert recipe.optimizer.lr == 1e-3
    assert recipe.train.max_steps == 7
    assert recipe.data.validation_fraction is None
    assert recipe.model.config == {"emb_dim": 8}


def test_sources_may_be_a_list(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("data: {source: [a.txt, 'b #2.txt'], validation_source: [c]}")
    recipe = Recipe.from_yaml(path)
    assert (recipe.data.source, recipe.data.validation_source) == (["a.txt", "b #2.txt"], ["c"])
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert Recipe.from_yaml(path, ["--data.source", "[x.txt, y z/*]"]).data.source == ["x.txt", "y z/*"]
    assert Recipe.from_yaml(path, ["--data.source", "[x].txt"]).data.source == "[x].txt"
    for wrong in ("[]", "[1]", "['']", "[[a]]"):
        with pytest.raises(UserError, match=r"data\.source"):
            Recipe.from_yaml(path, ["--data.source", wrong])


def test_text_on_the_command_line_is_taken_as_it_stands(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("seed: 1")
    flags = [
        "--data.source",
        "a.txt #2",
        "--output_dir",
        "2024",
        "--data.config",
        "x: y",
        "--evaluation.prompts",
        "[a]",
    ]
    recipe = Recipe.from_yaml(path, flags)
    assert (recipe.data.source, recipe.output_dir, recipe.data.config) == ("a.txt #2", "2024", "x: y")
    assert recipe.evaluation.prompts == ["a"]
    assert Recipe.from_yaml(path, ["--data.config", "null"]).data.config is None


@pytest.mark.parametrize("word", ["no", "off", "'no'", "False"])
def test_an_unquoted_no_means_no(tmp_path, word):
    path = tmp_path / "r.yaml"
    path.write_text(f"train: {{mixed_precision: {word}, compile: {word}}}")
    train = Recipe.from_yaml(path).train
    assert (train.mixed_precision, train.compile) == ("no", False)


@pytest.mark.parametrize("number", ["4e-4", "4.0e-4", "0.0004"])
def test_floats_may_be_written_without_a_point(tmp_path, number):
    path = tmp_path / "r.yaml"
    path.write_text(f"optimizer: {{lr: {number}}}")
    assert Recipe.from_yaml(path).optimizer.lr == 4e-4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tran": {}}, "tran: unknown key; did you mean 'train'?"),
        ({"train": {"max_step": 3}}, "train.max_step: unknown key; did you mean 'max_steps'?"),
        ({"tokenizer": {"train": {"vocab": 300}}}, "tokenizer.train.vocab: unknown key; did you mean 'vocab_size'?"),
        ({"train": {"max_steps": "many"}}, "train.max_steps: must be a whole number, found many"),
        ({"train": {"max_steps": True}}, "train.max_steps: must be a number, found true"),
        ({"train": {"batch_size": 2.5}}, "train.batch_size: must be a whole number, found 2.5"),
        ({"train": {"batch_size": 0}}, "train.batch_size: must be at least 1, found 0"),
        ({"train": {"compile": "maybe"}}, "train.compile: must be auto, true or false, found maybe"),
        ({"train": [1]}, "train: must be a section with keys, found [1]"),
        ({"train": {"max_steps": 1, "epochs": 2}}, "train: give 'max_steps' or 'epochs', not both"),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr: must be a finite number"),
        ({"seed": 2**63}, "seed: must be a finite number below 2**63"),
        ({"data": {"source": ""}}, "data.source: must not be empty"),
        ({"optimizer": {"name": "sgd"}}, "optimizer.name: must be 'adamw' or 'muon', found sgd"),
        ({"evaluation": {"prompts": [""]}}, "evaluation.prompts.0: must not be empty, found ''"),
        (
            {"evaluation": {"temperature": -1}},
            "evaluation.temperature: must be 0 (greedy), or 0.0001 to 1,000,000, found -1",
        ),
        ({"model": {"preset": "gpt2-124m", "from_pretrained": "x"}}, "model: give 'preset' or 'from_pretrained'"),
        (
            {"data": {"validation_split": "v", "validation_fraction": 0.1}},
            "data: give 'validation_split' or 'validation_fraction', not both",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(values, message):
    with pytest.raises(UserError) as error:
        Recipe.from_dict(values)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_section_built_in_python_is_checked_too():
    with pytest.raises(UserError, match=r"max_stepz: unknown key; did you mean 'max_steps'"):
        Recipe().train.__class__(max_stepz=3)
    assert ModelRecipe(preset="gpt2-124m", emb_dim=64).config == {"emb_dim": 64}


def test_files_that_are_no_recipes_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such recipe"):
        Recipe.from_yaml(tmp_path / "missing.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="not valid YAML"):
        Recipe.from_yaml(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(UserError, match="a mapping of sections"):
        Recipe.from_yaml(tmp_path / "list.yaml")
    (tmp_path / "code.yaml").write_text("a: !!python/object/apply:os.system ['true']")
    with pytest.raises(UserError, match="not valid YAML"):
        Recipe.from_yaml(tmp_path / "code.yaml")


def test_a_flag_without_a_value_or_a_section_is_refused(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("seed: 1")
    for flags, message in (
        (["--train.max_steps"], "needs a value"),
        (["max_steps=3"], "unexpected argument"),
        (["--seed.x", "3"], "not a section"),
    ):
        with pytest.raises(UserError, match=message):
            Recipe.from_yaml(path, flags)


def test_differences_name_the_fields():
    old, new = Recipe.from_dict({"model": {"emb_dim": 64}}), Recipe.from_dict({"model": {"emb_dim": 128}, "seed": 1})
    assert differences(old, new) == {"seed": (123, 1), "model.emb_dim": (64, 128)}


def test_every_field_has_help():
    names = [name for name, _, text in fields_help() if text]
    assert len(names) == len(list(fields_help()))
    assert {"seed", "train.max_steps", "tokenizer.name", "data.source"} <= set(names)


def test_a_recipe_that_publishes_can_be_tried_out_in_a_scratch_folder():
    recipe = Recipe.from_dict(
        {"hub": {"repo_id": "someone/my-gpt", "push_every": 500}, "checkpoint": {"every": 500, "resume": "hub"}}
    )
    scratch = scratch_recipe(recipe, "scratch")
    assert (scratch.output_dir, scratch.hub.repo_id, scratch.checkpoint.resume) == ("scratch", None, "auto")
