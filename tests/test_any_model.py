"""Any causal language model of transformers is trained as exactly as our own; a line in `any_model` adds a type."""

import json
import shutil
from pathlib import Path

import pytest
import stock_tokenizers
import torch
from any_model import TYPES, WINDOW, save, tiny
from forking import recipe_file
from safetensors.torch import load_file
from test_kills import left_behind
from test_processes import Workers
from tokenizers import processors
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BertConfig, BertLMHeadModel

import hf_gpt
from hf_gpt import checkpoint, probing
from hf_gpt.conversion import from_gpt2
from hf_gpt.data.corpus import load_corpora
from hf_gpt.data.token_store import tokenize
from hf_gpt.data.tokenizer import begin_id, save_tokenizer
from hf_gpt.errors import UserError
from hf_gpt.recipe import DataRecipe, Recipe
from hf_gpt.replay import replay
from hf_gpt.run import prepare_run

STEPS = 8
ALIKE = {"qwen3", "gpt2", "gemma2", "granite"}  # as Llama is, where runs are concerned
EACH_TYPE_TRAINED = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ALIKE)) for name in TYPES]
)


@pytest.fixture
def recipe(tmp_path):
    """A recipe for a type: eight steps with accumulation, and dropout where the type has some."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {i}: the quick brown fox jumps over {i * i} lazy dogs.\n" for i in range(60)))

    def make(name: str, **sections) -> dict:
        dropout = {"attention_dropout": 0.1} if "attention_dropout" in AutoConfig.for_model(name).to_dict() else {}
        made = {
            "output_dir": str(tmp_path / "run"),
            "model": {"model_type": name, **TYPES[name], **dropout},
            "tokenizer": {"name": "bytes"},
            "data": {"source": str(text), "validation_fraction": 0.2, "context_length": WINDOW},
            "optimizer": {"lr": 3e-3},
            "train": {
                "max_steps": STEPS,
                "batch_size": 2,
                "gradient_accumulation_steps": 2,
                "log_every": 1,
                "device": "cpu",
            },
            "evaluation": {"every": 4, "tokens": 256, "prompts": ["Line"], "sample_tokens": 4, "temperature": 1.0},
            "checkpoint": {"every": 4, "keep": None},
        }
        return {**made, **{key: {**made.get(key, {}), **value} for key, value in sections.items()}}

    return make


def weights(run_dir: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints" / checkpoint.name_of(step) / "model.safetensors")


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def prepared(recipe: dict, **sections):
    """What a run of `recipe` would train."""
    return prepare_run(Recipe.from_dict({**recipe, **{k: {**recipe.get(k, {}), **v} for k, v in sections.items()}}))


# Trained from scratch


@EACH_TYPE_TRAINED
def test_a_killed_run_repeats_the_uninterrupted_one_and_is_replayed(name, recipe, one_thread, forks, tmp_path):
    file = recipe_file(recipe(name), tmp_path / "recipe.yaml")
    whole, killed = tmp_path / "whole", tmp_path / "run"
    code, printed = forks.run("train", file, "--output_dir", whole)
    assert code == 0, printed
    assert f"model      {type(tiny(name)).__name__}, " in printed

    command = forks.start("train", file, "--output_dir", killed)
    first = killed / "checkpoints" / checkpoint.name_of(4)
    command.wait_until(lambda: first.is_dir() or not Path(f"/proc/{command.pid}").exists())
    command.send(9)
    assert command.wait() == -9, command.printed
    code, printed = forks.run("train", file, "--output_dir", killed)
    assert code == 0, printed
    assert "resuming after step 4" in printed
    assert left_behind(killed) == left_behind(whole)

    found = replay(whole, start=4)
    assert [step for step in found if step > 4] == [5, 6, 7, 8]
    assert all(one.repeated == one.published for step in found.values() for one in step)
    branch = hf_gpt.train({**recipe(name), "output_dir": str(tmp_path / "branch")}, parent=f"{whole}@4")
    assert same(weights(branch.output_dir), weights(whole))


@EACH_TYPE_TRAINED
def test_two_processes_learn_what_one_does(name, recipe, forks, tmp_path):
    values = recipe(name, train={"global_batch_size": 4, "gradient_accumulation_steps": None})
    values["model"].pop("attention_dropout", None)  # each process draws its own
    values["model"] |= {key: 0.0 for key in AutoConfig.for_model(name).to_dict() if key.endswith("_pdrop")}
    file = recipe_file(values, tmp_path / "recipe.yaml")
    losses = []
    for count in (1, 2):
        run_dir = tmp_path / f"run-{count}"
        workers = Workers(forks, count, file, "--output_dir", run_dir)
        assert workers.wait() == [0] * count, workers[0].printed
        lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
        losses.append([value for line in lines for key, value in line.items() if key.endswith("_loss")])
    assert len(losses[0]) >= STEPS
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("name", TYPES)
def test_each_is_evaluated(name, tmp_path, forks):
    model = tiny(name)
    folder = save(model, tmp_path / "model")
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer_config, "model_max_length": WINDOW}))
    text = "the quick brown fox jumps over the lazy dog. " * 4
    (tmp_path / "text.txt").write_text(text)
    code, printed = forks.run("evaluate", folder, "--text", tmp_path / "text.txt", "--json")
    assert code == 0, printed
    found = json.loads(printed.splitlines()[-1])
    ids = torch.tensor(list(text.encode()))
    total = 0.0
    for start in [*range(0, len(ids) - 1 - WINDOW, WINDOW), len(ids) - 1 - WINDOW]:
        rows = ids[start : start + WINDOW + 1]
        scored = rows[1:].clone()
        if start % WINDOW:  # the last window reaches back
            scored[: WINDOW - start % WINDOW] = -100
        with torch.no_grad():
            logits = model(rows[:-1].unsqueeze(0)).logits[0].float()
        total += torch.nn.functional.cross_entropy(logits, scored, ignore_index=-100, reduction="sum").item()
    assert found["context_length"] == WINDOW
    assert found["loss"] == pytest.approx(total / (len(ids) - 1), rel=1e-5)


def test_a_new_model_has_its_types_own_initialisation_and_no_tokens_that_its_tokenizer_lacks(recipe):
    job = prepared(recipe("llama"))
    torch.manual_seed(Recipe().seed)
    config = AutoConfig.for_model("llama", vocab_size=257, bos_token_id=256, eos_token_id=256, **TYPES["llama"])
    theirs = AutoModelForCausalLM.from_config(config).state_dict()
    assert same(job.model.state_dict(), theirs)
    gemma = prepared(recipe("gemma2")).model
    assert (gemma.config.pad_token_id, gemma.config.bos_token_id, gemma.config.eos_token_id) == (None, 256, 256)
    assert gemma.get_input_embeddings().padding_idx is None


def test_a_qwen2_is_trained_with_a_tokenizer_of_its_kind(recipe, tmp_path):
    tokenizer = stock_tokenizers.write("qwen", tmp_path / "tokenizer")
    values = {**recipe("llama"), "model": {**TYPES["llama"], "model_type": "qwen2"}}
    run = hf_gpt.train({**values, "tokenizer": {"name": str(tokenizer)}})
    loaded, text = AutoTokenizer.from_pretrained(run.checkpoints[-1]), "It's 123 cafe\u0301s,  no?"
    assert loaded(text).input_ids == AutoTokenizer.from_pretrained(tokenizer)(text).input_ids


_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        pytest.param("mamba2", {"state_size": 4, "head_dim": 8, "num_heads": 4, "n_groups": 1}, id="a tuple"),
        pytest.param("qwen3_moe", {**TYPES["llama"], **_EXPERTS}, id="a field with two names"),
    ],
)
def test_odd_fields_are_read_again(name, fields, recipe, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1}
    values = {**recipe("mamba", train={"max_steps": 2}), "model": {"model_type": name, **fields, **sizes}}
    run = hf_gpt.train({**values, "checkpoint": {"every": 1}})
    branch = hf_gpt.train({**values, "output_dir": str(tmp_path / "branch")}, parent=f"{run.output_dir}@1")
    assert same(weights(branch.output_dir, 2), weights(run.output_dir, 2))
    assert all(one.repeated == one.published for step in replay(run.output_dir, start=1).values() for one in step)


def test_every_row_of_the_embeddings_learns_also_that_of_padding(recipe):
    job = prepared(recipe("llama", model={"pad_token_id": 32, "tie_word_embeddings": False}))
    job.model(torch.full((1, 4), 32), labels=torch.full((1, 4), 5)).loss.backward()
    assert job.model.get_input_embeddings().weight.grad[32].abs().max() > 0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"model_type": "lama"}, r"no causal language model lama; did you mean 'llama'"),
        ({"model_type": "vit"}, r"no causal language model vit"),
        ({"model_type": "t5"}, r"no causal language model t5$"),
        ({"model_type": "llama", "hiden_size": 8}, r"model.hiden_size: unknown key; did you mean 'hidden_size'"),
        ({"model_type": "llama", "emb_dim": 8}, r"model.emb_dim: unknown key"),
        ({"model_type": "llama", "num_attention_heads": 3, "hidden_size": 16}, r"model: no model can have"),
        ({"model_type": "gpt2", "n_embd": 8, "hidden_size": 16}, r"model.n_embd: 8 and, by another name, 16"),
        ({"emb_dim": 8, "hidden_size": 16}, r"model.hidden_size: 8 and, by another name, 16"),
        ({"model_type": "llama", "preset": "gpt2-124m"}, r"give 'preset' or 'model_type', not both"),
        ({"model_type": "bert", "hidden_size": 16, "num_attention_heads": 2}, r"a bert model .* not causal"),
        ({"model_type": "bart"}, r"a bart model is an encoder with a decoder"),
        ({"model_type": "gemma3"}, r"a gemma3 model takes more than text"),
        (  # transformers splits text as Qwen2 does, whatever the tokenizer's files say
            {**TYPES["llama"], "model_type": "qwen2"},
            r"tokenizer: transformers makes a Qwen2Tokenizer of every qwen2 model's",
        ),
        (  # its later layers' weights are halved while it is evaluated, and were saved so
            {"model_type": "rwkv", "hidden_size": 16, "num_hidden_layers": 7},
            r"evaluating a rwkv model changes its weights.*set model.rescale_every to 0",
        ),
    ],
)
def test_what_cannot_be_trained_from_scratch_is_refused_in_one_line(model, message, recipe):
    values = {**recipe("llama"), "model": model}
    with pytest.raises(UserError, match=message) as caught:
        prepared(values)
    assert "\n" not in str(caught.value)


def test_names_of_before_transformers_5_are_taken_and_the_class_is_named(recipe):
    job = prepared(recipe("llama", model={"rope_theta": 1e6}))
    assert job.model.config.rope_parameters["rope_theta"] == 1e6
    assert type(prepared(recipe("gpt2")).model).__name__ == "GPT2LMHeadModel"
    assert "GPT2LMHeadModel" in "\n".join(prepared(recipe("gpt2")).describe())
    stock = prepared(recipe("gpt2", model={"hidden_size": 16, "n_embd": 16}))  # two names of one field
    assert stock.model.config.n_embd == 16


# Windows


def test_windows_are_as_long_as_the_recipe_says(recipe):
    job = prepared(recipe("llama", data={"context_length": 16}))
    assert (job.data.windows.context_length, job.model.config.max_position_embeddings) == (16, WINDOW)
    assert job.data.tokenizer.model_max_length == job.recipe.data.context_length == 16
    open_length = recipe("llama", data={"context_length": 24})
    del open_length["model"]["max_position_embeddings"]
    assert prepared(open_length).model.config.max_position_embeddings == 24
    ours = prepared({**recipe("llama", data={"context_length": 24}), "model": {"emb_dim": 8, "n_heads": 1}})
    assert ours.model.config.max_position_embeddings == ours.data.windows.context_length == 24
    shortest = prepared({**recipe("llama", data={"context_length": 1}), "model": {"emb_dim": 8, "n_heads": 1}})
    assert shortest.model.config.max_position_embeddings == 1  # fewer than the model is tried with
    assert prepared(recipe("llama", data={"context_length": None})).data.windows.context_length == WINDOW
    mpt = {**open_length, "model": {"model_type": "mpt", "d_model": 16, "n_layers": 1, "n_heads": 2}}
    assert prepared(mpt).model.config.max_seq_len == 24


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"data": {"context_length": 64}}, r"data.context_length: 64, and the model has 32 positions"),
        ("mpt", {"model": {"max_seq_len": 16}}, r"data.context_length: 32, and the model has 16 positions"),
        ("mamba", {"data": {"context_length": None}}, r"data.context_length: is missing: a mamba model"),
        (
            "llama",
            {"data": {"context_length": None}, "model": {"max_position_embeddings": 8193}},
            r"data.context_length: is missing: a llama model takes texts of up to 8,193 tokens",
        ),
    ],
)
def test_a_length_that_cannot_be_is_refused(name, changes, message, recipe):
    values = recipe(name, **changes) if name in TYPES else {**recipe("llama"), "model": {"model_type": name}}
    with pytest.raises(UserError, match=message):
        prepared({**values, "model": {**values["model"], **changes.get("model", {})}})


def test_documents_are_isolated_where_positions_can_carry_it(recipe):
    assert prepared(recipe("qwen3", data={"isolate_documents": True})).recipe.data.isolate_documents
    with pytest.raises(UserError, match=r"data.isolate_documents True: .*a mamba model"):
        prepared(recipe("mamba", data={"isolate_documents": True}))


# Documents


def tokenizer_with_bos(folder: Path) -> Path:
    """The `bytes` tokenizer with Llama's manners: BOS before a text, and an end of its own."""
    tokenizer = hf_gpt.load_tokenizer("bytes")
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    save_tokenizer(tokenizer, folder)
    return folder


def test_documents_begin_with_bos_where_the_tokenizer_adds_it_and_end_with_eos(tmp_path, recipe):
    tokenizer = hf_gpt.load_tokenizer(str(tokenizer_with_bos(tmp_path / "tokenizer")))
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert begin_id(tokenizer) == bos
    assert begin_id(hf_gpt.load_tokenizer("bytes")) is None
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("ab", "c", "de" * 40)))
    store = tokenize(load_corpora(DataRecipe(source=str(texts)))[0], tokenizer)
    expected = [bos, 97, 98, eos, bos, 99, eos, bos, *b"de" * 40]
    assert store.tokens.tolist() == expected
    assert (store.num_documents, store.num_characters, store.begin_id, store.separator_id) == (3, 83, bos, eos)

    values = recipe("llama", data={"source": str(texts), "validation_fraction": None, "isolate_documents": True})
    values["tokenizer"] = {"name": str(tmp_path / "tokenizer")}
    job = prepared(values)
    assert f"documents, each from <s> ({bos}) to </s> ({eos})" in "\n".join(job.describe())
    positions = job.data.windows.batch(torch.arange(1).numpy())["position_ids"][0]
    assert positions[:10].tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2]


def test_an_eos_after_a_text_is_no_bos_though_they_are_one_token(tmp_path):
    tokenizer = hf_gpt.load_tokenizer("bytes")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", tokenizer.eos_token_id)]
    )
    assert tokenizer("").input_ids == [tokenizer.bos_token_id]
    assert begin_id(tokenizer) is None


def test_a_mixture_in_bf16_is_causal_and_a_bert_is_not():
    """Experts are given more or fewer tokens, and on some processors their sums are then rounded otherwise."""
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 8}
    sizes |= {"num_hidden_layers": 4, "num_local_experts": 8, "initializer_range": 0.05}
    mixture = tiny("mixtral", seed=1, **sizes).bfloat16()
    assert not probing._looks_ahead(mixture)  # is asked where they are
    probing.refuse_later_tokens(mixture, "it")
    bert = BertConfig(vocab_size=257, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(UserError, match=r"a bert model .* not causal"):
        probing.refuse_later_tokens(BertLMHeadModel(bert).bfloat16().eval(), "it")


def test_a_text_after_bos_is_scored_from_its_first_byte(tmp_path):
    folder = tmp_path / "model"
    tiny("llama", vocab_size=259).save_pretrained(folder)
    tokenizer_with_bos(folder)
    (tmp_path / "text.txt").write_text("the quick brown fox")
    found = hf_gpt.evaluate_corpus(str(folder), str(tmp_path / "text.txt"))
    assert (found.tokens, found.scored_tokens, found.bytes) == (20, 19, 19)


# Continued


def test_a_model_of_transformers_is_continued_as_what_it_is(recipe, tmp_path):
    source = save(tiny("gpt2"), tmp_path / "source")
    values = {**recipe("gpt2"), "model": {"from_pretrained": str(source)}, "tokenizer": {}}
    job = prepared(values)
    assert type(job.model).__name__ == "GPT2LMHeadModel"
    assert same(job.model.state_dict(), AutoModelForCausalLM.from_pretrained(source).state_dict())
    result = hf_gpt.train(values)
    loaded = AutoModelForCausalLM.from_pretrained(result.checkpoints[-1])
    assert type(loaded).__name__ == "GPT2LMHeadModel"
    assert same(loaded.state_dict(), result.model.state_dict())


def test_a_head_of_its_own_is_said_to_be_one(recipe, tmp_path):
    """A config.json may call it tied: transformers 5 leaves it apart, 4 would put the embeddings in its place."""
    source = save(tiny("llama", tie_word_embeddings=False), tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    values = {**recipe("llama", train={"max_steps": 4}), "model": {"from_pretrained": str(source)}, "tokenizer": {}}
    run = hf_gpt.train(values)
    assert json.loads((run.checkpoints[-1] / "config.json").read_text())["tie_word_embeddings"] is False
    assert "lm_head.weight" in weights(run.output_dir, 4)
    resumed = hf_gpt.train({**values, "train": {**values["train"], "max_steps": 6}})
    assert "lm_head.weight" in weights(resumed.output_dir, 6)


def test_a_run_does_not_go_on_with_another_model_than_it_began_with(recipe, tmp_path):
    """The source was changed in its place, as a branch of the Hub may be; so may a default of transformers."""
    source = save(tiny("llama"), tmp_path / "source")
    values = {**recipe("llama", train={"max_steps": 4}), "model": {"from_pretrained": str(source)}, "tokenizer": {}}
    run = hf_gpt.train(values)
    config = json.loads((source / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 5e5
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"the run's model has rope_parameters .*10000.0.* has .*500000.0.* now"):
        hf_gpt.train({**values, "train": {**values["train"], "max_steps": 6}})
    assert run.checkpoints[-1].name == checkpoint.name_of(4)


def test_what_cannot_be_continued_is_refused_in_one_line(recipe, tmp_path):
    bert = BertLMHeadModel(
        BertConfig(
            vocab_size=257, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=WINDOW
        )
    )
    save(bert, tmp_path / "bert")
    code = save(tiny("llama"), tmp_path / "code")
    config = json.loads((code / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.Own", "AutoModelForCausalLM": "code.OwnModel"}}
    (code / "config.json").write_text(json.dumps(config))
    (code / "code.py").write_text("raise SystemExit('it ran')")
    for name, message in {
        "bert": "a bert model .* not causal",
        "code": "is a own model, which transformers does not have; the code that comes with it is never run",
    }.items():
        values = {
            **recipe("llama"),
            "model": {"from_pretrained": str(tmp_path / name)},
            "tokenizer": {"name": "bytes"},
        }
        with pytest.raises(UserError, match=message) as caught:
            prepared(values)
        assert "\n" not in str(caught.value)


def test_a_gpt2_that_an_earlier_version_converted_goes_on_as_our_gpt(recipe, tmp_path):
    source = save(tiny("gpt2"), tmp_path / "source")
    values = {**recipe("gpt2"), "model": {"from_pretrained": str(source)}, "tokenizer": {}}
    ours = from_gpt2(str(source), str(tmp_path / "converted"), tokenizer="none").destination
    converted = {**values, "model": {"from_pretrained": ours}, "tokenizer": {"name": "bytes"}}
    run = hf_gpt.train(converted)
    whole = weights(run.output_dir)
    # Its recipe named the GPT-2 itself.
    written = (run.output_dir / "recipe.yaml").read_text()
    (run.output_dir / "recipe.yaml").write_text(written.replace(ours, str(source)))
    shutil.rmtree(run.checkpoints[-1])
    resumed = hf_gpt.train(run.output_dir / "recipe.yaml")
    assert type(resumed.model) is hf_gpt.GPTForCausalLM
    assert same(weights(resumed.output_dir), whole)
    found = replay(resumed.output_dir, start=4)
    assert all(one.repeated == one.published for step in found.values() for one in step)
    branch = {**values, "output_dir": str(tmp_path / "branch"), "tokenizer": {"name": "bytes"}}
    assert type(hf_gpt.train(branch, parent=f"{resumed.output_dir}@4").model) is hf_gpt.GPTForCausalLM


def test_the_line_of_the_front_page_makes_a_llama_of_the_quickstart(tmp_path):
    root = Path(__file__).parent.parent
    readme, quickstart = (root / "README.md").read_text(), (root / "configs" / "quickstart.yaml").read_text()
    line = next(line for line in readme.splitlines() if line.startswith("model: {model_type: llama"))
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "".join(f"{line}\n" if old.startswith("model:") else f"{old}\n" for old in quickstart.splitlines())
    )
    job = prepare_run(Recipe.from_yaml(file, ["--output_dir", str(tmp_path / "run"), "--train.device", "cpu"]))
    assert type(job.model).__name__ == "LlamaForCausalLM"
    assert job.model.config.hidden_size == 288
    assert job.data.windows.context_length == job.model.config.max_position_embeddings == 128
