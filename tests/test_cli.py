"""The command line: what it prints where, and that bad input ends in one line and exit code 2."""

import json
import os
import random
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

import hf_gpt.training
from hf_gpt.checkpoint import resolve_model
from hf_gpt.cli import main
from hf_gpt.data.tokenizer import train_tokenizer
from hf_gpt.hub.background import _HF_GPT

# Runs a command as a user does, in a process of its own.
HF_GPT = [sys.executable, "-m", "hf_gpt.cli"]

_COMMANDS = ["train", "tokenize", "estimate", "replay", "plot", "evaluate", "generate", "explain", "decode", "demo"]
_COMMANDS += ["convert", "push", "batch"]
_WITH_A_DEVICE = ["generate --prompt a", "decode --prompt a", "explain --text ab", "evaluate --text T"]


@pytest.fixture
def recipe(tiny, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny))
    return str(path)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A small trained run that several tests look at."""
    folder = tmp_path_factory.mktemp("cli")
    # 29 characters: windows of 32 begin everywhere in it.
    (folder / "text.txt").write_text("It was a dark, stormy night. " * 200)
    hf_gpt.train(
        {
            "output_dir": str(folder / "run"),
            "model": {"context_length": 32, "emb_dim": 32, "n_layers": 1, "n_heads": 2},
            "tokenizer": {"name": "bytes"},
            "data": {"source": str(folder / "text.txt"), "validation_fraction": 0.1},
            "train": {"max_steps": 150, "batch_size": 4, "device": "cpu"},
            "optimizer": {"lr": 1e-2},
            "evaluation": {"every": 150, "tokens": 320, "prompts": []},
        }
    )
    return str(folder / "run")


def refused(capsys, *arguments: str) -> str:
    """The one line that a command ends in, with exit code 2."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("hf-gpt: ")
    assert err.count("\n") == 1, err
    return err


def test_train_says_where_things_are(recipe, tiny, capsys):
    assert main(["train", recipe, "--train.max_steps", "4"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert f"model      {tiny['output_dir']}/checkpoints/step-00000004" in err
    assert f"loss plot  {tiny['output_dir']}/loss.png" in err
    assert "\x1b" not in err  # no terminal, no control characters
    assert "\r" not in err


def test_evaluate_prints_three_figures(run_dir, capsys):
    text = f"{run_dir}/../text.txt"
    assert main(["evaluate", run_dir, "--text", text, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["tokens"] == result["scored_tokens"] + 1 == 29 * 200
    assert main(["evaluate", run_dir, "--text", text]) == 0
    out, err = capsys.readouterr()
    assert f"perplexity      {result['perplexity']:.2f}" in out
    assert f"bits per byte   {result['bits_per_byte']:.4f}" in out
    assert "5,799 of 5,800 tokens scored" in err
    assert main(["evaluate", run_dir, "--text", text, "--stride", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] < result["loss"]  # more context


def test_evaluate_takes_the_first_tokens_and_leaves_blank_lines_out(run_dir, tmp_path, capsys):
    def evaluate(name, text, *flags):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert main(["evaluate", run_dir, "--text", str(tmp_path / name), "--json", "--device", "cpu", *flags]) == 0
        return json.loads(capsys.readouterr().out)

    line = "It was a dark, stormy night.\n"
    whole = evaluate("whole.txt", line * 3)
    assert evaluate("long.txt", line * 20, "--tokens", str(3 * len(line))) == whole
    assert evaluate("long.txt", line * 3, "--tokens", "10000") == whole
    assert evaluate("blank.txt", (line + " \n\n") * 3, "--drop-blank-lines") == whole
    assert evaluate("blank.txt", (line + " \n\n") * 3)["tokens"] == whole["tokens"] + 9
    cut = evaluate("characters.txt", "東京" * 20, "--tokens", "5")  # a whole character and two bytes of the next
    assert (cut["tokens"], cut["scored_tokens"], cut["bytes"]) == (5, 4, 4)


def test_evaluate_counts_bytes_of_a_vocabulary_that_is_not_of_bytes(run_dir, tmp_path, capsys):
    """A tokenizer of words and characters: the figures are those of the text that the scored tokens spell."""
    model = shutil.copytree(resolve_model(run_dir), tmp_path / "model")
    shutil.rmtree(model / "training_state")
    words = {"<unk>": 0, "<|endoftext|>": 1, "caf\u00e9": 2, "and": 3, "tea": 4}
    backend = Tokenizer(WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = Whitespace(), Fuse()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(model)
    (tmp_path / "text.txt").write_text("caf\u00e9 and tea and tea", encoding="utf-8")
    assert main(["evaluate", str(model), "--text", str(tmp_path / "text.txt"), "--json", "--tokens", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["tokens"], found["bytes"]) == (3, len("and") + len("tea"))


@pytest.mark.parametrize(
    "command", ["generate --prompt a", "decode --prompt a", "explain --text ab", "evaluate --text T"]
)
def test_a_device_is_named_and_must_be_here(run_dir, tmp_path, capsys, command, monkeypatch):
    (tmp_path / "text.txt").write_text("It was a dark, stormy night. ")
    name, *flags = command.replace("T", str(tmp_path / "text.txt")).split()
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    for device, message in (("cuda:1", "is not available here"), ("tpu", "is no device"), ("meta", "is no device")):
        assert f"--device: {device} {message}" in refused(capsys, name, run_dir, *flags, "--device", device)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # what auto would take
    assert main([name, run_dir, *flags, "--device", "cpu"]) == 0


def test_generate_is_greedy_unless_asked(run_dir, capsys):
    def generate(*flags):
        assert main(["generate", run_dir, "--prompt", "It was", "--max-new-tokens", "40", *flags]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert out.startswith("It was")
        return out

    assert generate() == generate("--temperature", "0") == generate("--top-k", "1")
    sampled = generate("--temperature", "5", "--seed", "1")
    assert sampled == generate("--temperature", "5", "--seed", "1")
    assert sampled != generate("--temperature", "5", "--seed", "2")
    assert len(generate()) > 40  # past the window of 32


def test_tokenize_says_what_training_will_see(recipe, capsys):
    assert main(["tokenize", recipe]) == 0
    err = capsys.readouterr().err
    for words in ("characters", "tokens", "windows of 32", "steps on one process", "input ", "target ", "Line 0"):
        assert words in err
    assert main(["tokenize", recipe, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["first_target"] == facts["first_input"][1:] + facts["first_target"][-1]
    assert facts["training"]["characters_per_token"] == 1.0


def test_tokenize_says_what_is_left_out(recipe, tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(f"Book {name}. " * 50)
        (tmp_path / name / f"{name}.tok").write_text("beside it")
    assert main(["tokenize", recipe, "--data.source", f"[{tmp_path}/one, {tmp_path}/two]"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("training   one, two (training text): ") for line in lines)
    notes = [line for line in lines if line.startswith("note       ")]
    assert notes == [f"note       {tmp_path}/{name}: left out {name}.tok" for name in ("one", "two")]


def test_tokenize_suggests_a_vocabulary_where_characters_are_cut_apart(recipe, tmp_path, capsys):
    characters = random.Random(1).choices([chr(0x4E00 + i) for i in range(50)], k=4000)  # of three bytes each
    (tmp_path / "zh.txt").write_text("\n".join("".join(characters[i : i + 9]) for i in range(0, 4000, 9)))
    assert main(["tokenize", recipe, "--data.source", str(tmp_path / "zh.txt")]) == 0
    assert "wants a vocabulary of its own" in capsys.readouterr().err
    own = ["--tokenizer.name", "null", "--tokenizer.train.vocab_size", "400"]
    assert main(["tokenize", recipe, "--data.source", str(tmp_path / "zh.txt"), *own]) == 0
    assert "wants a vocabulary of its own" not in capsys.readouterr().err


def test_a_tokenizer_that_was_trained_on_the_text_is_not_advised_to_be_trained(recipe, tmp_path, capsys):
    characters = [chr(0x4E00 + i) for i in range(3000)]  # more than 300 entries can hold
    (tmp_path / "zh.txt").write_text("\n".join("".join(characters[i : i + 9]) for i in range(0, 3000, 9)) * 2)
    own = ["--data.source", str(tmp_path / "zh.txt"), "--tokenizer.name", "null", "--tokenizer.train.vocab_size"]
    assert main(["tokenize", recipe, *own, "300"]) == 0
    printed = capsys.readouterr().err
    assert "a larger tokenizer.train.vocab_size keeps more of them whole" in printed
    assert "wants a vocabulary of its own" not in printed
    (tmp_path / "zh.txt").write_text("".join(characters))  # nothing occurs twice but beginnings of characters
    assert main(["tokenize", recipe, *own, "20000"]) == 0
    assert "note" not in capsys.readouterr().err


def test_the_separator_has_the_name_that_the_tokenizer_gives_it_and_text_shows_itself(recipe, tmp_path, capsys):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(
            models.WordLevel({"</s>": 0, "[UNK]": 1, "a": 2, "\u3000": 3, "\u202e": 4}, "[UNK]")
        ),
        eos_token="</s>",
    )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save_pretrained(tmp_path / "words")
    rows = [{"text": "a\u3000\u202e" * 30}] * 30
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--tokenizer.name", str(tmp_path / "words"), "--data.source", str(tmp_path / "rows.jsonl")]
    assert main(["tokenize", recipe, *words]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert "read as    documents, </s> (0) between them; stride 32; vocabulary 5" in lines
    assert "input      'a \u3000 \\u202e a" in next(line for line in lines if line.startswith("input"))
    assert main(["tokenize", recipe, *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["separator"] == "</s>"


def test_a_tokenizer_larger_than_the_model_that_is_continued(tiny, folder, tmp_path, capsys):
    large = train_tokenizer(["the quick brown fox " * 9], 262)
    large.save_pretrained(tmp_path / "large")
    recipe = {**tiny, "model": {"from_pretrained": folder}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    own = ["tokenize", str(tmp_path / "recipe.yaml")]
    assert main([*own, "--tokenizer.name", str(tmp_path / "large")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"hf-gpt: tokenizer: has {len(large)} entries, and the model to continue knows 257; leave tokenizer out "
        "(null) to use the one it was trained with, or name one with at most 257"
    )
    assert main([*own, "--tokenizer.name", "null"]) == 0  # the advice works


def test_help_lists_the_recipe_fields(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "--optimizer.lr VALUE" in out
    assert "peak learning rate (default: 0.0004)" in out


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_command_explains_itself(command, capsys):
    for arguments in ([command, "--help"], ["help", command]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: hf-gpt {command} ")


def test_the_quickstart_hands_its_flags_to_the_run_and_to_nothing_else(tmp_path):
    root = Path(__file__).parents[1]
    for name in ("scripts/quickstart.sh", "scripts/setup.sh", "scripts/constraints.txt", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((root / name).read_bytes())
    for name in ("python", "hf-gpt"):
        program = tmp_path / ".venv" / "bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text('#!/bin/sh\necho "$0 $*"\n')
        program.chmod(0o755)
    command = ["bash", "scripts/quickstart.sh", "--seed", "5"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
    assert printed[0].endswith("--editable .")
    assert printed[1] == ".venv/bin/hf-gpt train configs/quickstart.yaml --seed 5"


def test_the_library_names_arguments_where_the_command_line_names_flags(run_dir, capsys):
    with pytest.raises(hf_gpt.UserError, match=r"^stride 0: must be 1 or more$") as error:
        hf_gpt.evaluate_corpus(run_dir, f"{run_dir}/recipe.yaml", stride=0)
    assert (error.value.field, error.value.value) == ("stride", 0)
    line = refused(capsys, "evaluate", run_dir, "--text", f"{run_dir}/recipe.yaml", "--stride", "0")
    assert line == "hf-gpt: --stride 0: must be 1 or more\n"


def test_a_push_in_the_background_loads_no_torch():
    """It runs beside training, and importing torch takes a core for seconds."""
    standard_input, held_open = os.pipe()  # a push ends when its parent, who holds this, does
    package = os.path.dirname(hf_gpt.__file__)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", _HF_GPT, package, "push", "./nowhere", "someone/x", "--json"],
        stdin=standard_input,
        capture_output=True,
        text=True,
    )
    os.close(standard_input), os.close(held_open)
    assert done.returncode == 2
    assert "nowhere" in json.loads(done.stdout)["error"]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "hf_gpt.cli.push" in imported
    assert not imported & {"torch", "transformers"}


def test_importing_loads_nothing_heavy():
    heavy = "datasets accelerate matplotlib tiktoken pydantic pandas pyarrow"
    code = f"import sys, hf_gpt, hf_gpt.cli; sys.exit(' '.join(m for m in '{heavy}'.split() if m in sys.modules))"
    loaded_by_transformers = f"import sys; from transformers import GPT2LMHeadModel, AutoModelForCausalLM;\
        sys.exit(' '.join(m for m in '{heavy}'.split() if m in sys.modules))"
    ours, theirs = (
        subprocess.run([sys.executable, "-c", c], capture_output=True, text=True, check=False).stderr.split()
        for c in (code, loaded_by_transformers)
    )
    assert set(ours) <= set(theirs)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.source", "missing.txt"], "missing.txt: no such file"),
        (["--data.source", "EMPTY"], "empty"),
        (["--data.source", "LATIN"], "byte 3"),
        (["--data.source", "SHORT"], "lower data.context_length"),
        (["--data.source", "ROWS", "--data.text_column", "story"], "title"),
        (["--data.validation_fraction", "0.001"], "lower data.context_length"),
        (["--train.max_step", "3"], "did you mean 'max_steps'?"),
        (["--train.max_steps", "soon"], "--train.max_steps: must be a whole number, found soon"),
        (["--model.emb_dims", "3"], "did you mean 'emb_dim'?"),
        (["--model.hidden_size", "64", "--model.emb_dim", "64"], "--model.emb_dim and --model.hidden_size exclude"),
        (["--model.n_heads", "5"], "num_attention_heads (5) must divide hidden_size (32)"),
        (["--model.preset", "gpt2-124"], "presets: 'gpt2-124m'"),
        (["--model.vocab_size", "100"], "smaller than the tokenizer's 257"),
        (["--tokenizer.name", "./nowhere"], "no such file or directory"),
        (["--model.from_pretrained", "./nowhere"], "no such directory"),
        (["--train.device", "cuda"], "train.device: cuda is not available here"),
        (["--train.attn_implementation", "magic"], "magic"),
        (["--tracking.to", "[abacus]"], "unknown tracker 'abacus'"),
        (["--evaluation.prompts", "['']"], "--evaluation.prompts.0: must not be empty"),
        (["--evaluation.temperature", "-1"], "evaluation.temperature"),
        (["--evaluation.temperature", "1e-5"], "--evaluation.temperature: must be 0 (greedy), or 0.0001 to 1,000,000"),
        (["--evaluation.prompts", "\ud800"], "--evaluation.prompts: is not text"),
        (["--output_dir", "/proc/x"], "output_dir: /proc cannot be written to"),
        (["--output_dir", "~nouser/x"], "output_dir: ~nouser/x: nobody's home folder"),
        (["--data.source", "~nouser/x"], "~nouser/x: nobody's home folder"),
        (["--tokenizer.name", "~nouser/x"], "~nouser/x: nobody's home folder"),
        (["--data.source", "a" * 300], "File name too long"),
        (["--train.attn_implementation", "flex_attention"], "flex_attention: it cannot be trained on cpu; use sdpa"),
        (["--train.attn_implementation", "owner/kernel"], "owner/kernel: there is no such attention; use eager"),
        (["--model.eos_token_id", "300"], "model.eos_token_id: there is no token 300; ids are 0 to 256"),
        (["--model.n_layers", "1B"], "1,000,000,000 layers, of at most 10,000"),
        (["--model.emb_dim", "4T"], "no model can have its configuration"),
        (["--model.vocab_size", "100B"], "and this machine has"),
        (["--train.batch_size", "1T"], "train.batch_size: the token ids of 1,000,000,000,000 windows exceed"),
        (["extra"], "unexpected argument 'extra'"),
    ],
)
def test_bad_recipes_are_refused_before_anything_is_written(recipe, tiny, tmp_path, capsys, flags, message):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait" * 100)
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "rows.jsonl").write_text('{"title": "a", "body": "b"}\n' * 5)
    names = {"EMPTY": "empty.txt", "LATIN": "latin.txt", "SHORT": "short.txt", "ROWS": "rows.jsonl"}
    flags = [str(tmp_path / names[flag]) if flag in names else flag for flag in flags]
    assert message in refused(capsys, "train", recipe, *flags)
    assert not os.path.exists(tiny["output_dir"])


def test_fields_may_stand_before_the_recipe(recipe, capsys):
    def windows(*arguments):
        assert main(["tokenize", *arguments]) == 0
        return json.loads(capsys.readouterr().out)["training"]["windows"]

    fields = ["--data.stride", "16", "--data.validation_fraction=0.5"]
    assert (
        windows(*fields, recipe, "--json")
        == windows(recipe, "--json", *fields)
        == windows(*fields[:2], recipe, "--json", fields[2])
    )
    assert windows(*fields, recipe, "--json") != windows(recipe, "--json")


def test_a_recipe_that_is_missing_is_asked_for(recipe, tmp_path, capsys):
    line = refused(capsys, "train", "--data.source", "text.txt")
    assert line.endswith("as in: hf-gpt train configs/quickstart.yaml --data.source text.txt\n")
    (tmp_path / "prose.txt").write_text("Once upon a time")
    assert "text to train on is data.source" in refused(capsys, "train", str(tmp_path / "prose.txt"))
    assert "--data.source needs a value" in refused(capsys, "train", recipe, "--data.source", "--seed", "3")


def test_a_generation_config_that_fails_is_refused_before_training(recipe, tiny, folder, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    (model / "generation_config.json").write_text('{"suppress_tokens": ["x"]}')
    flags = ["--model", "{}", "--model.from_pretrained", str(model)]
    line = refused(capsys, "train", recipe, *flags, "--evaluation.first", "10", "--data.validation_fraction", "null")
    assert "generate(): fails with this model and its generation config" in line
    assert not os.path.exists(tiny["output_dir"])


def test_without_a_home_no_folder_of_that_name_is_made(recipe, tmp_path, monkeypatch, capsys):
    """Where a user has no home, expanduser leaves `~` as it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_GPT_CACHE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", "~/.cache/huggingface")
    before = sorted(os.listdir())
    assert "there is no home folder to keep the cache in; set HF_GPT_CACHE" in refused(capsys, "tokenize", recipe)
    assert sorted(os.listdir()) == before

    def nobody(path):
        if str(path).startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return path

    monkeypatch.setattr("pathlib.Path.expanduser", nobody)
    monkeypatch.setenv("HF_GPT_CACHE", "~/cache")
    assert "~/cache: nobody's home folder is known by that name" in refused(capsys, "tokenize", recipe)
    assert sorted(os.listdir()) == before


def test_a_folder_that_holds_another_run_is_refused(recipe, tiny, capsys):
    assert main(["train", recipe, "--train.max_steps", "4"]) == 0
    before = sorted(os.listdir(tiny["output_dir"]))
    assert "(seed 123 -> 5)" in refused(capsys, "train", recipe, "--train.max_steps", "4", "--seed", "5")
    assert sorted(os.listdir(tiny["output_dir"])) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "RUN", "--prompt", ""], "--prompt: it is empty"),
        (["generate", "RUN", "--prompt", "a", "--temperature", "-1"], "--temperature -1"),
        (["generate", "RUN", "--prompt", "a", "--temperature", "nan"], "--temperature: 'nan' is not a finite number"),
        (["generate", "RUN", "--prompt", "a", "--temperature", "1e-42"], "--temperature 1e-42"),
        (["generate", "RUN", "--prompt", "a", "--top-k", "5", "--seed", "9" * 30], "--seed"),
        (["generate", "RUN", "--prompt", "a", "--top-k", "0"], "--top-k 0"),
        (["generate", "RUN", "--prompt", "a", "--top-p", "1.5"], "--top-p 1.5"),
        (["generate", "RUN", "--prompt", "a", "--max-new-tokens", "0"], "--max-new-tokens 0"),
        (["generate", "RUN", "--prompt", "a", "--max-new-tokens", "x"], "--max-new-tokens: 'x' is not a whole number"),
        (["generate", "./nowhere", "--prompt", "a"], "no such directory"),
        (["generate", "nobody/nothing", "--prompt", "a"], "nobody/nothing"),
        (["generate", "NOT_A_MODEL", "--prompt", "a"], "not a model"),
        (["evaluate", "RUN", "--text", "missing.txt"], "missing.txt"),
        (["evaluate", "RUN", "--text", "RUN/recipe.yaml", "--stride", "0"], "--stride 0"),
        (["evaluate", "RUN", "--text", "RUN/recipe.yaml", "--tokens", "1"], "--tokens 1: must be 2 or more"),
        (["evaluate", "RUN", "--text", "RUN/samples.jsonl", "--split", "test"], "--split: "),
        (["evaluate", "RUN", "--text", "RUN/metrics.jsonl", "--text-column", "story"], "--text-column: no 'story'"),
        (["train", "RUN/recipe.yaml", "--output_dir", "NOT_A_MODEL/run", "--from", "NOT_A_MODEL"], "no run with a"),
        (["decode", "RUN", "--prompt", "a", "--draws", "-1"], "--draws -1: must be 0 to 1,000,000"),
        (["demo", "RUN", "--port", "0"], "--port 0: must be 1 to 65535"),
        (["convert", "RUN", "NOT_A_MODEL", "--to", "gpt2", "--heads", "2"], "go with --from book"),
        (["evaluate", "RUN", "--split", "test"], "--split: goes with a text or a dataset that is named"),
        (["evaluate", "RUN/missing"], "missing: is not a run, whose validation text would be known; name a text"),
        (["evaluate", "RUN", "--text", ""], "source: must not be empty"),
        (["train", "NOT_A_MODEL"], "is a folder and no recipe; text to train on is data.source"),
        (["fly"], "invalid choice: 'fly'"),
        (["help", "fly"], "invalid choice: 'fly'"),
        ([], "required: COMMAND"),
    ],
)
def test_bad_arguments_are_refused(run_dir, tmp_path, capsys, arguments, message):
    names = {"RUN": run_dir, "NOT_A_MODEL": str(tmp_path)}
    for name, path in names.items():
        arguments = [a.replace(name, path) for a in arguments]
    assert message in refused(capsys, *arguments)


def test_a_broken_checkpoint_is_refused(run_dir, tmp_path, capsys):
    broken = tmp_path / "model"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    assert "cannot be loaded" in refused(capsys, "generate", str(broken), "--prompt", "a")


def test_a_refusal_is_one_line_whatever_the_libraries_say(recipe):
    """In a process of its own, where the libraries' loggers print too."""
    done = subprocess.run([*HF_GPT, "train", recipe, "--model.vocab_size", "100"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr


def test_output_that_cannot_be_written_is_refused_first(recipe, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "file is a file" in refused(capsys, "train", recipe, "--output_dir", str(tmp_path / "file" / "run"))


def test_a_result_that_has_no_place_is_an_error(run_dir, capsys, monkeypatch):
    """`>&-`, for which Python has no stdout, and a full disk."""
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["evaluate", run_dir, "--text", f"{run_dir}/../text.txt", "--json"]) == 1
    assert capsys.readouterr().err == "hf-gpt: stdout: it is closed, and the result has no other place\n"
    if os.path.exists("/dev/full"):
        with open("/dev/full", "w") as full:
            monkeypatch.setattr(sys, "stdout", full)
            assert main(["generate", run_dir, "--prompt", "It was"]) == 1
        assert capsys.readouterr().err == "hf-gpt: No space left on device\n"


def test_streams_that_a_shell_closed():
    """In a process of its own, with a command that loads no torch."""
    package = os.path.dirname(hf_gpt.__file__)
    command = [sys.executable, "-c", _HF_GPT, package, "push", "./nowhere", "someone/x", "--json"]
    with subprocess.Popen(
        ["sh", "-c", f"exec {shlex.join(command)} >&-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr.read() == "hf-gpt: stdout: it is closed, and the result has no other place\n"
        assert process.wait() == 1


def test_an_interrupt_while_the_libraries_load_is_one_line_too(tmp_path):
    (tmp_path / "transformers.py").write_text("raise KeyboardInterrupt")
    path = os.pathsep.join([str(tmp_path), os.path.dirname(os.path.dirname(hf_gpt.__file__))])
    done = subprocess.run([*HF_GPT, "--help"], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "hf-gpt: interrupted; nothing was done\n"


@pytest.mark.parametrize("place", ["pipe", "/dev/full"])
def test_a_run_whose_stderr_is_gone_trains_and_saves(recipe, tiny, monkeypatch, place):
    """`hf-gpt train ... 2>&1 | head`, and a log on a full disk."""
    reader, writer = os.pipe()
    os.close(reader)
    if place != "pipe":
        if not os.path.exists(place):
            pytest.skip("this system has no full device")
        os.close(writer)
        writer = os.open(place, os.O_WRONLY)
    with open(writer, "w", buffering=1) as gone:
        monkeypatch.setattr(sys, "stderr", gone)
        assert main(["train", recipe, "--train.max_steps", "4"]) == 0
        assert sys.stderr is gone
    assert os.path.isdir(f"{tiny['output_dir']}/checkpoints/step-00000004")
    assert os.path.isfile(f"{tiny['output_dir']}/report.html")


def test_debug_shows_the_traceback():
    with pytest.raises(hf_gpt.UserError):
        main(["train", "missing.yaml", "--debug"])


@pytest.mark.parametrize(("variable", "told"), [(None, 3), ("MALLOC_ARENA_MAX", 0), ("GLIBC_TUNABLES", 0)])
def test_malloc_keeps_what_a_step_freed_unless_the_environment_says_otherwise(variable, told, monkeypatch, capsys):
    calls = []
    library = SimpleNamespace(mallopt=lambda parameter, value: calls.append((parameter, value)))
    monkeypatch.setattr("ctypes.CDLL", lambda name: library)
    for name in [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)
    if variable:
        monkeypatch.setenv(variable, "1")
    assert main(["train", "no-such.yaml"]) == 2
    assert len(calls) == told
