"""Odd values in every field of a recipe and every flag of every command, and model folders of other shapes.

Fields and flags are found by walking the dataclasses and the parsers, so new ones are tried by themselves. Each value
is accepted where it is valid, or ends in one line, exit code 2, with nothing left behind. Commands run as they are, up
to where their work would begin: a run is built whole, with its optimizer and its first batch, and not trained.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import GPT2Config, GPT2LMHeadModel

import hf_gpt
from hf_gpt import GPTConfig, GPTForCausalLM, UserError, cli, load_tokenizer
from hf_gpt.recipe import Recipe, fields_help
from hf_gpt.training.loop import TrainingRun

WORDS = [
    "",
    " ",
    "null",
    "true",
    "[]",
    "[[",
    "[1]",
    "{a: 1}",
    "2001-13-45",
    "1:30",
    "&a [*a]",
    "!!python/object:x",
    "日本",
]
NUMBERS = ["0", "1", "-1", "0.5", "1e-5", "1e400", ".nan", "10M", "9" * 13, str(2**63 - 1), "9" * 20, "9" * 400, "0x_"]
PATHS = ["a\0b", "\ud800", "a" * 300, "b/" * 3000, "~nouser/x", "/proc/x", "/dev/null", "*[", "nobody/nothing"]
ODD = [*WORDS[:3], *NUMBERS[:8], *NUMBERS[-4:], *PATHS, "[[", "日本", "2001-13-45"]  # for flags, which are not YAML
FIELDS = [name for name, _, _ in fields_help()] + [f"model.{name}" for name in sorted(GPTConfig._own_names())]
FIELDS += ["tokenizer.train.vocab_size", "model.config", "model.zzz", "self", "model.self", "train.__dataclass_self__"]


class Stopped(Exception):
    """The command would begin its work now."""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a text, a recipe, our model `ours`, a stock `gpt2` and a run `done`, which tests run in."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "text.txt").write_text("It was a dark and stormy night. " * 50)
    recipe = {
        "output_dir": "run",
        "model": {"context_length": 16, "emb_dim": 16, "n_layers": 1, "n_heads": 2},
        "tokenizer": {"name": "bytes"},
        "data": {"source": "text.txt", "validation_fraction": 0.1},
        "train": {"max_steps": 2, "batch_size": 2, "device": "cpu"},
        "evaluation": {"prompts": ["It"], "sample_tokens": 2},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    torch.manual_seed(0)
    ours = {"vocab_size": 257, "context_length": 16, "emb_dim": 16, "n_layers": 2, "n_heads": 2, "eos_token_id": 256}
    stock = {"vocab_size": 257, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "eos_token_id": 256}
    GPTForCausalLM(GPTConfig(**ours)).save_pretrained(folder / "ours")
    GPT2LMHeadModel(GPT2Config(**stock, bos_token_id=256)).save_pretrained(folder / "gpt2")
    for name in ("ours", "gpt2"):
        load_tokenizer("bytes").save_pretrained(folder / name)
    before = os.getcwd()
    os.chdir(folder)
    hf_gpt.train({**recipe, "output_dir": "done"})
    yield folder
    os.chdir(before)


@pytest.fixture
def no_work(workplace, monkeypatch):
    """Commands stop where their work would begin; the machine has a gigabyte of memory."""
    import hf_gpt.checkpoint
    import hf_gpt.generation
    import hf_gpt.hub.push
    import hf_gpt.replay
    import hf_gpt.run
    import hf_gpt.text_evaluation
    import hf_gpt.training.data

    def build(job, observers=(), until=None):
        training = TrainingRun(job, [])
        list(job.describe())
        job.plan.micro_batches(1)
        training.learning_rate(1), training.evaluates_at(1), training.saves_at(1)
        raise Stopped

    def stop(*arguments, **options):
        raise Stopped

    generate = hf_gpt.generation.generate
    load_model = functools.lru_cache(hf_gpt.checkpoint.load_model)
    monkeypatch.setattr(hf_gpt.run, "run", build)
    monkeypatch.setattr(hf_gpt.replay, "run", build)
    monkeypatch.setattr(hf_gpt.hub.push, "_commit", stop)
    for name in ("demo.page.serve", "demo.space._copy_model", "explain.chart.chart", "report.page.run_page"):
        monkeypatch.setattr(f"hf_gpt.{name}", stop)
    monkeypatch.setattr("hf_gpt.conversion.gpt2.convert_model", stop)
    for module in (hf_gpt.checkpoint, hf_gpt.text_evaluation):
        monkeypatch.setattr(module, "load_model", load_model)
    monkeypatch.setattr(
        hf_gpt.generation,
        "generate",
        lambda *a, **options: stop() if options["max_new_tokens"] > 10 else generate(*a, **options),
    )
    for module in (hf_gpt.loading, hf_gpt.training.data):
        monkeypatch.setattr(module, "memory_of_machine", lambda: 2**30)
    return workplace


def outcome(arguments: list[str], may_write: tuple[str, ...] = ()) -> str | None:
    """What is wrong with how a command ends, if anything is; what it may write is removed."""
    out, err, before = io.StringIO(), io.StringIO(), sorted(os.listdir())
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(arguments)
    except Stopped:
        return None
    except SystemExit as stopped:  # --help
        code = stopped.code
    except BaseException as error:
        return f"{shown(arguments)}: {type(error).__name__}: {str(error)[:200]}"
    finally:
        left = set(os.listdir()) - set(before)
        for name in left:
            shutil.rmtree(name) if os.path.isdir(name) else os.unlink(name)
    lines = err.getvalue().splitlines()
    if code == 0:
        return None
    if code != 2 or len(lines) > 3 or not lines[-1].startswith("hf-gpt: ") or max(map(len, lines)) > 1000:
        return f"{shown(arguments)}: exit code {code}: {err.getvalue()[:300]}"
    if left:
        return f"{shown(arguments)}: left {left} behind"
    return None


def shown(arguments: list[str]) -> str:
    return " ".join(ascii(argument)[1:-1][:60] for argument in arguments)


def test_every_field_takes_a_value_or_refuses_it_in_one_line(no_work):
    """Of the values that a recipe takes, the extreme ones and the paths go on to where training would begin."""
    tried, paths = {"0", str(2**63 - 1)}, {"a" * 300, "~nouser/x", "/proc/x"}
    of_paths = {"output_dir", "data.source", "data.validation_source", "tokenizer.name", "model.from_pretrained"}
    Path("short.yaml").write_text("data: {source: text.txt}")
    problems, counts = [], {"refused": 0, "accepted": 0}
    for name in FIELDS:
        for value in [*WORDS, *NUMBERS, *PATHS]:
            try:
                Recipe.from_yaml("short.yaml", [f"--{name}={value}"])
            except UserError as error:
                counts["refused"] += 1
                if "\n" in str(error) or len(str(error)) > 500:
                    problems.append(f"{name}={value[:40]!r}: {str(error)[:300]}")
                continue
            counts["accepted"] += 1
            if value in (tried | paths if name in of_paths else tried):
                problems += filter(None, [outcome(["train", "recipe.yaml", f"--{name}={value}"])])
    assert not problems, "\n".join(problems)
    assert min(counts.values()) > 500  # both happen


def test_a_recipe_of_odd_values_in_a_file_is_read_or_refused_in_one_line(no_work):
    texts = ["self: 1", "model: {config: [1]}", "seed: &a [*a]", "seed: 2001-13-45", "seed: 0x_", "a: [" * 2000]
    texts += ["seed: 1\nseed: 2", f"seed: {'9' * 5000}", "? [1]\n: 2", "{1: 2}", "train: {1: 2}"]
    texts += ["model: [1]", "model: 3", "data: text.txt", "- 1", "text", "\0"]
    texts += [
        'evaluation: {prompts: ["\\ud800"]}',
        "a: !!int x",
        "a: !!binary x",
        "a: *x",
        "<<: [1]",
        "---\n---\na: 1",
    ]
    texts += ["model: {n_layers: 1, config: {n_layers: 2}}", "tokenizer: {train: 5}", "tokenizer: {train: {self: 1}}"]
    texts += [
        "optimizer: {betas: [1]}",
        "optimizer: {betas: [0.1, 0.2, 0.3]}",
        "optimizer: {betas: 0.1}",
        "data: !!set {a}",
    ]
    problems = []
    for text in texts:
        Path("odd.yaml").write_text(text)
        with pytest.raises(UserError):
            Recipe.from_yaml("odd.yaml")
        problems += filter(None, [outcome(["train", "odd.yaml"])])
    Path("odd.yaml").unlink()
    assert not problems, "\n".join(problems)
    problems = [
        outcome(["train", path]) for path in (*PATHS, "/", "ours", "text.txt", "ours/model.safetensors", "/dev/zero")
    ]
    assert not any(problems), problems


# A call of each command that works, but for those that need the network.
WORKING = {
    "train": ["recipe.yaml"],
    "tokenize": ["recipe.yaml"],
    "estimate": ["recipe.yaml", "--device", "H100"],
    "replay": ["done"],
    "batch": ["done", "--step", "1"],
    "plot": ["done"],
    "evaluate": ["ours", "--text", "text.txt"],
    "generate": ["ours", "--prompt", "It", "--max-new-tokens", "2"],
    "explain": ["ours", "--text", "It was"],
    "decode": ["ours", "--prompt", "It"],
    "demo": ["ours"],
    "convert": ["ours", "new", "--to", "gpt2"],
    "push": ["ours", "someone/x"],
}


def commands() -> dict[str, argparse.ArgumentParser]:
    subparsers = next(a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    return subparsers.choices


def test_every_command_is_tried():
    assert WORKING.keys() == commands().keys()


@pytest.mark.parametrize("command", sorted(WORKING))
def test_every_flag_takes_a_value_or_refuses_it_in_one_line(command, no_work, monkeypatch):
    if command == "estimate":  # seconds each, and the recipe's fields are those of `train`
        monkeypatch.setattr(
            "hf_gpt.estimate.forecast.memory_of_run", lambda *a, **options: (_ for _ in ()).throw(Stopped)
        )
    arguments, problems, actions = WORKING[command], [], commands()[command]._actions
    positionals = [action for action in actions if not action.option_strings]
    for action in actions:
        flag = action.option_strings[-1] if action.option_strings else None
        if flag in ("-h", "--help") or action.nargs == 0:
            continue
        for value in ODD:
            if flag:
                changed = [command, *arguments, f"{flag}={value}"]
            else:
                place = positionals.index(action)
                if value.startswith("-"):
                    continue
                changed = [command, *arguments[:place], value, *arguments[place + 1 :]]
            problems += filter(None, [outcome(changed)])
    assert not problems, "\n".join(problems)


# Model folders ------------------------------------------------------------------------------------------------------


def write(name: str, content: str):
    return lambda folder: (folder / name).write_text(content)


def change(name: str, **values):
    def apply(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))

    return apply


JSON = ["", "null", "[]", "3", '"x"', "{", "[" * 100_000, '{"a": ' * 5000, '{"a": ' + "9" * 5000 + "}"]
FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors"]
READERS = [
    ["generate", "odd", "--prompt", "It", "--max-new-tokens", "2"],
    ["evaluate", "odd", "--text", "text.txt"],
    ["explain", "odd", "--text", "It was"],
    ["decode", "odd", "--prompt", "It"],
    ["convert", "odd", "new", "--to", "gpt2"],
    ["convert", "odd", "new", "--from", "gpt2"],
    ["push", "odd", "someone/x"],
    ["push", "odd", "someone/x", "--format", "gpt2"],
    ["train", "continue.yaml"],
]
SIZES = {
    "ours": ["num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "max_position_embeddings"],
    "gpt2": ["n_layer", "n_embd", "vocab_size", "n_head", "n_positions"],
}
SHAPES = [(name, write(name, content)) for name in FILES for content in JSON]
SHAPES += [(f"no {name}", lambda folder, name=name: (folder / name).unlink()) for name in FILES]
SHAPES += [("an index", write("model.safetensors.index.json", content)) for content in JSON]
SHAPES += [("architectures", change("config.json", architectures=value)) for value in (None, 3, ["X"], ["BertModel"])]
SHAPES += [
    ("model_type", change("config.json", model_type=value)) for value in (None, 3, "llama", "bert", "clip", "x")
]
SHAPES += [("dtype", change("config.json", dtype=value)) for value in (3, "float99", [])]
SHAPES += [("eos", change("generation_config.json", eos_token_id=value)) for value in ("x", -1, 10**12, {"a": 1})]
SHAPES += [("top_k", change("generation_config.json", suppress_tokens=value)) for value in ("x", -1, [10**12], [[1]])]
SHAPES += [("class", change("tokenizer_config.json", tokenizer_class=value)) for value in (3, "BertTokenizer", "x")]


@pytest.mark.parametrize("base", ["ours", "gpt2"])
def test_a_folder_of_another_shape_is_refused_in_one_line(base, workplace, monkeypatch):
    """Each shape is read by one of the commands, in turn, so that each of them meets most kinds."""
    monkeypatch.setattr("hf_gpt.run.run", lambda *a: (_ for _ in ()).throw(Stopped))
    monkeypatch.setattr("hf_gpt.hub.push._commit", lambda *a: (_ for _ in ()).throw(Stopped))
    recipe = {**yaml.safe_load(Path("recipe.yaml").read_text()), "model": {"from_pretrained": "odd"}, "tokenizer": {}}
    Path("continue.yaml").write_text(yaml.safe_dump(recipe))
    shapes, problems = [*SHAPES], []
    for name in SIZES[base]:
        for value in (None, "2", [1], -1, 0, 1.5, True, 1, 4, 64, 10**9, 10**13, 10**30):
            shapes.append((f"{name} {value}", change("config.json", **{name: value})))
    for number, (what, apply) in enumerate(shapes):
        shutil.copytree(base, "odd")
        apply(Path("odd"))
        problem = outcome(READERS[number % len(READERS)])
        problems += [f"{what}: {problem}"] if problem else []
        shutil.rmtree("odd")
    Path("continue.yaml").unlink()
    assert not problems, "\n".join(problems)


def test_weights_that_do_not_match_are_named_in_one_line(workplace, capfd):
    for values in ({"hidden_size": 32}, {"num_hidden_layers": 3}, {"vocab_size": 300}):
        shutil.copytree("ours", "odd")
        change("config.json", **values)(Path("odd"))
        capfd.readouterr()
        assert cli.main(READERS[0]) == 2
        out, err = capfd.readouterr()
        assert (out, err.count("\n")) == ("", 1), err
        assert "more of the model's weights" in err
        shutil.rmtree("odd")
    shutil.copytree("ours", "odd")
    change("config.json", num_hidden_layers=1)(Path("odd"))
    assert cli.main(READERS[0]) == 0
    err = capfd.readouterr().err
    assert err.startswith("odd: warning: model.layers.1.input_layernorm.bias and ")
    assert err.endswith(" of its weights have no place in the model of its config.json, and are left out\n")
    shutil.rmtree("odd")


@pytest.mark.parametrize(("base", "field"), [("ours", "num_hidden_layers"), ("gpt2", "n_layer")])
def test_a_hostile_number_of_layers_is_refused_at_once(base, field, workplace):
    shutil.copytree(base, "odd")
    change("config.json", **{field: 10**9})(Path("odd"))
    kind = ["--from", "gpt2"] if base == "gpt2" else ["--to", "gpt2"]
    for arguments in (READERS[0], ["convert", "odd", "new", *kind]):
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            assert cli.main(arguments) == 2
        assert "1,000,000,000 layers" in err.getvalue()
    shutil.rmtree("odd")
