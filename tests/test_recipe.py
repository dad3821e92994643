"""A recipe is typed, refuses what cannot be, and survives YAML and the command line."""

import functools
import operator

import pytest
import yaml

from hf_gpt.display import whole_number
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
        ({"seed": 2**63}, "seed: must be below 2**63"),
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


def test_in_python_a_path_is_a_text_too(tmp_path):
    recipe = Recipe(output_dir=tmp_path, data={"source": [tmp_path / "a.txt"]}, tokenizer={"name": tmp_path})
    assert (recipe.output_dir, recipe.data.source) == (str(tmp_path), [str(tmp_path / "a.txt")])
    assert recipe.tokenizer.name == str(tmp_path)


def test_a_recipe_shows_what_is_not_a_default():
    assert repr(Recipe(seed=5, data={"source": "x"}, checkpoint={"every": None})) == (
        "Recipe(seed=5, data.source=x, checkpoint.every=null)"
    )


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


@pytest.fixture
def read(tmp_path):
    """A recipe read from a text, changed by flags."""

    def read(text, *flags):
        (tmp_path / "r.yaml").write_text(text)
        return Recipe.from_yaml(tmp_path / "r.yaml", flags)

    return read


def value_of(recipe, name):
    return functools.reduce(operator.getitem, name.split("."), recipe.to_dict())


def test_every_count_may_be_written_with_a_letter(read):
    """What is read as the whole number 300 is a count."""
    counts = []
    for name, _, _ in fields_help():
        try:
            found = value_of(read("", f"--{name}=300"), name)
        except UserError:
            continue
        if type(found) is int:
            counts.append(name)
    assert {"seed", "train.max_steps", "evaluation.tokens", "checkpoint.keep", "train.batch_size"} <= set(counts)
    for name in counts:
        assert value_of(read("", f"--{name}=1.5k"), name) == 1500
        assert value_of(read("", f"--{name}=0.5M"), name) == 500_000
    assert read("model: {vocab_size: 50k}\ntokenizer: {train: {vocab_size: 4k}}").model.config == {
        "vocab_size": 50_000
    }
    assert read("train: {max_steps: 9007199.254740993B}").train.max_steps == 2**53 + 1


@pytest.mark.parametrize(
    ("text", "number"),
    [("10M", 10**7), ("1.23456789B", 1_234_567_890), ("1e6", 10**6), ("9007199254740993", 2**53 + 1), ("1_000", 1000)],
)
def test_whole_numbers_are_exact(text, number):
    assert whole_number(text) == number


@pytest.mark.parametrize("text", ["", "M", "0.5", "1.2345k", "1e-3", "0x5", "10m", "9" * 41, "1e", "ten"])
def test_what_is_no_whole_number_is_refused(text):
    with pytest.raises(ValueError, match="not a whole number"):
        whole_number(text)


@pytest.mark.parametrize(
    ("text", "flag", "wins"),
    [
        ("train: {epochs: 2}", "--train.max_steps=5", {"train.max_steps": 5, "train.epochs": None}),
        ("train: {max_steps: 5}", "--train.epochs=2", {"train.max_steps": None, "train.epochs": 2}),
        (
            "model: {from_pretrained: x, revision: v1}",
            "--model.preset=gpt2-124m",
            {"model.preset": "gpt2-124m", "model.from_pretrained": None, "model.revision": None},
        ),
        (
            "model: {preset: gpt2-124m}",
            "--model.from_pretrained=x",
            {"model.preset": None, "model.from_pretrained": "x"},
        ),
        ("model: {emb_dim: 32}", "--model.hidden_size=64", {"model.hidden_size": 64}),
        ("model: {config: {n_layers: 3}}", "--model.num_hidden_layers=2", {"model.num_hidden_layers": 2}),
        (
            "tokenizer: {name: x/y, revision: v1}",
            "--tokenizer.train.vocab_size=300",
            {"tokenizer.name": None, "tokenizer.revision": None, "tokenizer.train.vocab_size": 300},
        ),
        ("tokenizer: {train: {vocab_size: 300}}", "--tokenizer.name=gpt2", {"tokenizer.train": None}),
        (
            "data: {validation_split: v, validation_source: s}",
            "--data.validation_fraction=0.1",
            {"data.validation_split": None, "data.validation_source": None, "data.validation_fraction": 0.1},
        ),
        ("data: {validation_fraction: 0.1}", "--data.validation_split=v", {"data.validation_fraction": None}),
        (
            "train: {global_batch_size: 8}",
            "--train.gradient_accumulation_steps=2",
            {"train.global_batch_size": None, "train.gradient_accumulation_steps": 2},
        ),
        (
            "train: {gradient_accumulation_steps: 2}",
            "--train.global_batch_size=8",
            {"train.global_batch_size": 8, "train.gradient_accumulation_steps": None},
        ),
        ("data: {validation_fraction: 0.1}", "--data.validation_source=s", {"data.validation_fraction": None}),
        ("optimizer: {name: muon, muon_lr: 0.01}", "--optimizer.name=adamw", {"optimizer.muon_lr": None}),
        ("optimizer: {name: muon, muon_lr: 0.01}", "--optimizer.name=muon", {"optimizer.muon_lr": 0.01}),
    ],
)
def test_of_fields_that_exclude_each_other_the_flag_wins(read, text, flag, wins):
    recipe = read(text, flag)
    assert {name: value_of(recipe, name) for name in wins} == wins
    assert not {"emb_dim", "n_layers"} & recipe.model.config.keys()


@pytest.mark.parametrize(
    "flags",
    [
        ["--train.epochs=1", "--train.max_steps=5"],
        ["--model.emb_dim=32", "--model.hidden_size=32"],
        ["--tokenizer.name=gpt2", "--tokenizer.train.vocab_size=300"],
        ["--data.validation_fraction=0.1", "--data.validation_source=s"],
    ],
)
def test_two_flags_that_exclude_each_other_are_refused(read, flags):
    one, other = (".".join(flag[2:].partition("=")[0].split(".")[:2]) for flag in flags)
    with pytest.raises(UserError, match=rf"^--{one} and --{other} exclude each other; give one$"):
        read("", *flags)
    assert read("", flags[0], f"{flags[1].partition('=')[0]}=null")  # unset, so only one is given


def test_null_on_the_command_line_unsets(read):
    text = "train: {batch_size: 2, max_grad_norm: 3}\nmodel: {emb_dim: 32}\nevaluation: {prompts: [a]}\nseed: 5"
    flags = ["train.batch_size", "train.max_grad_norm", "model.emb_dim", "evaluation.prompts", "seed"]
    recipe = read(text, *(f"--{flag}=null" for flag in flags))
    assert (recipe.train.batch_size, recipe.train.max_grad_norm) == (8, None)  # where null is a value it is that
    assert (recipe.model.config, recipe.evaluation.prompts, recipe.seed) == ({}, ["Every effort moves you"], 123)
    assert read("tokenizer: {name: bytes}", "--tokenizer.train.vocab_size=null").tokenizer.name == "bytes"
    recipe = read("", "--train.max_grad_norm=null", "--checkpoint.every=null")  # in sections that the file lacks
    assert (recipe.train.max_grad_norm, recipe.checkpoint.every) == (None, None)


def test_a_text_is_a_list_of_one(read):
    for prompt in ("To be: or not", "[INST] who", "null and void", "# a heading", "2024"):
        assert read("", "--evaluation.prompts", prompt).evaluation.prompts == [prompt]
    assert read("", "--evaluation.prompts", "[a, 'b: c']").evaluation.prompts == ["a", "b: c"]
    assert read("evaluation: {prompts: once upon}\ntracking: {to: wandb}").evaluation.prompts == ["once upon"]


@pytest.mark.parametrize(
    "text", ["2001-12-14", "1:30", "010", "1e6", "0x", "=", "null", "no", "1_0", "a: b", "'", "10M"]
)
def test_text_that_yaml_takes_for_something_else_stays_text(read, text):
    recipe = read("", "--data.config", text) if text != "null" else Recipe.from_dict({"data": {"config": text}})
    assert recipe.data.config == text
    assert read(recipe.to_yaml()).data.config == text
    if text in ("2001-12-14", "1:30", "010", "="):
        assert read(f"data: {{config: {text}}}").data.config == text


def test_a_number_that_yaml_reads_otherwise_is_not_changed(read):
    assert read("seed: 010").seed == 10
    with pytest.raises(UserError, match="seed: must be a whole number, found '1:30'"):
        read("seed: 1:30")


def test_yaml_with_anchors_and_merges_is_read(read):
    recipe = read("train: &t {batch_size: 2}\nevaluation: {<<: {every: 5}, tokens: 7}\n")
    assert (recipe.train.batch_size, recipe.evaluation.every, recipe.evaluation.tokens) == (2, 5, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2", "the key 'seed' stands twice at line 2, column 1"),
        ("seed: &a [*a]", "nested too deeply, or endlessly at line 1"),
        (
            "a: &a [1, 1, 1, 1]\n"
            + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]\n" for a, b in zip("abcdef", "bcdefg")),
            "endlessly",
        ),
        ("a: " + "[" * 3000, "nested too deeply"),
        ("self: 1", "self: unknown key"),
        ("model: {config: [1]}", "model.config: must be a section with keys, found [1]"),
        ("model: {emb_dim: 1, config: {emb_dim: 2}}", "model: 'emb_dim' is given twice"),
        ('data: {source: "a\\0b"}', "data.source: is not text"),
        ('evaluation: {prompts: [a, "\\ud800"]}', "evaluation.prompts.1: is not text"),
        (
            "train: {batch_size: 10000000000000000000}",
            "train.batch_size: must be below 2**63, found a number of 64 bits",
        ),
        ("optimizer: {lr: .inf}", "optimizer.lr: must be a finite number"),
        ("tokenizer: {revision: v1}", "tokenizer: 'revision' goes with 'name'"),
        ("hub: {branch: a..b}", "hub.branch: must be a name such as training, found a..b"),
        ("hub: {license: MIT License}", "hub.license: must be a name such as mit"),
        ("schedule: {min_lr_ratio: 1.5}", "schedule.min_lr_ratio: must be at most 1, found 1.5"),
    ],
)
def test_files_that_cannot_be_are_refused_in_one_line(read, text, message):
    with pytest.raises(UserError) as error:
        read(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_file_is_not_blamed_for_a_flag(read):
    for flag in ("--evaluation.prompts=['']", "--hub.repo_id=x", "--seed="):
        with pytest.raises(UserError, match=f"^{flag.partition('=')[0]}"):
            read("seed: 1", flag)
    with pytest.raises(UserError, match=r"^--trian: unknown key; did you mean 'train'\?$"):
        read("seed: 1", "--trian.max_steps=3")


def test_differences_name_the_fields():
    old, new = Recipe.from_dict({"model": {"emb_dim": 64}}), Recipe.from_dict({"model": {"emb_dim": 128}, "seed": 1})
    assert differences(old, new) == {"seed": (123, 1), "model.emb_dim": (64, 128)}


def test_every_field_has_help():
    names = [name for name, _, text in fields_help() if text]
    assert len(names) == len(list(fields_help()))
    named = {"seed", "train.max_steps", "tokenizer.name", "data.source", "checkpoint.milestones.powers_of_two_until"}
    assert named <= set(names)


def test_a_recipe_that_publishes_can_be_tried_out_in_a_scratch_folder():
    recipe = Recipe.from_dict(
        {"hub": {"repo_id": "someone/my-gpt", "push_every": 500}, "checkpoint": {"every": 500, "resume": "hub"}}
    )
    scratch = scratch_recipe(recipe, "scratch")
    assert (scratch.output_dir, scratch.hub.repo_id, scratch.checkpoint.resume) == ("scratch", None, "auto")
