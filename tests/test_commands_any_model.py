"""The commands take any causal language model of transformers: what they say of it is what it computes."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from any_model import TYPES, WINDOW, save, tiny
from huggingface_hub import ModelCard
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import hf_gpt
from hf_gpt import UserError, checkpoint, generate_text, load_tokenizer
from hf_gpt.checkpoint import load_model
from hf_gpt.cli import main
from hf_gpt.demo.answers import Answers
from hf_gpt.explain.decoding import next_token_logits
from hf_gpt.explain.scores import explain
from hf_gpt.generation import stream_text, token_ids, try_out
from hf_gpt.hub.card import _shape, write_card
from hf_gpt.storage import write_json

PROMPT = "Every effort moves"
any_type = pytest.mark.parametrize("name", TYPES)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    return {name: str(save(tiny(name), tmp_path_factory.mktemp(name))) for name in TYPES}


@torch.no_grad()
def greedy(model, ids: list[int], num_tokens: int) -> list[int]:
    """The book's loop: the whole text through the model for each token."""
    for _ in range(num_tokens):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids = [*ids, int(logits.argmax())]
        if ids[-1] == model.config.eos_token_id:
            break
    return ids


# Commands


@any_type
def test_what_is_written_and_shown_is_what_the_model_computes(folders, name, capsys, tmp_path):
    model, tokenizer = load_model(folders[name], "cpu")
    ids = tokenizer(PROMPT).input_ids
    text = tokenizer.decode(greedy(model, ids, 10), skip_special_tokens=True)
    assert main(["generate", folders[name], "--prompt", PROMPT, "--max-new-tokens", "10", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == text + "\n"
    assert PROMPT + [*stream_text(model, tokenizer, PROMPT, max_new_tokens=10)][-1].text == text

    with torch.no_grad():
        outputs = model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids]))
    assert main(["explain", folders[name], "--text", PROMPT, "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(outputs.loss.item(), rel=1e-5)
    assert torch.allclose(next_token_logits(model, tokenizer, PROMPT), outputs.logits[0, -1], atol=1e-5)
    assert main(["decode", folders[name], "--prompt", PROMPT, "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)["tokens"]
    assert found[0]["logit"] == pytest.approx(outputs.logits[0, -1].max().item(), rel=1e-5)

    answers = Answers(folders[name])
    assert f"{model.num_parameters():,} parameters" in answers.facts()
    assert ("context length" in answers.facts()) == (name != "mamba")
    settings = {"temperature": 0, "top_k": 0, "top_p": 1}
    (stage,) = answers.stages
    *_, last = answers.texts(PROMPT, [stage], **settings, max_new_tokens=10, seed=1)
    assert last[stage][0] == text
    assert "the model sees" not in answers.bars("x" * (WINDOW - 1), stage, *settings.values())

    assert main(["convert", folders[name], str(tmp_path / "out"), "--to", "gpt2"]) == 2
    assert f"has model_type='{name}', which is not a model of this package" in capsys.readouterr().err


@any_type
def test_generation_settings_that_came_with_a_model_change_nothing(name):
    tokenizer, model = load_tokenizer("bytes"), tiny(name)
    text = generate_text(model, tokenizer, PROMPT, max_new_tokens=8)
    for setting in ({"cache_implementation": "static"}, {"use_cache": False}, {"num_beams": 3}, {"do_sample": True}):
        model = tiny(name)
        model.generation_config.update(**setting)
        assert generate_text(model, tokenizer, PROMPT, max_new_tokens=8) == text


# Past the window

_NO_LIMIT = {"bloom": {"hidden_size": 16, "n_layer": 1, "n_head": 2}}
_LOOKED_UP = {
    "opt": {"hidden_size": 16, "word_embed_proj_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "gptj": {"n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4},
    "gpt_neo": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "attention_types": [[["global"], 1]]},
}  # fmt: skip


def of_type(name: str):
    if name in TYPES:
        return tiny(name)
    fields = {**_NO_LIMIT, **_LOOKED_UP}[name]
    ids = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": None}
    config = AutoConfig.for_model(name, vocab_size=257, max_position_embeddings=WINDOW, **ids, **fields)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("name", [*TYPES, *_NO_LIMIT, *_LOOKED_UP])
def test_past_the_window_only_what_would_fail_is_refused(name):
    """What is refused fails in the model itself, and what is not refused is what the model goes on with."""
    model, tokenizer = of_type(name), load_tokenizer("bytes")
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    tokenizer.eos_token = None
    for window in (WINDOW, WINDOW + 9):
        ids, error = [65] * 20, None
        with contextlib.suppress(IndexError, RuntimeError):
            error = "refused"
            ids, error = greedy(model, ids, window + 1 - 20), None
        assert (error is not None) == (window > WINDOW and name in {"gpt2", *_LOOKED_UP})
        if error:
            with pytest.raises(
                UserError, match=rf"make 42 tokens, and this {name} model has 32 positions, for up to 33"
            ):
                generate_text(model, tokenizer, "A" * 20, max_new_tokens=22)
            with pytest.raises(UserError, match=r"with the next token it makes 34 tokens"):
                next_token_logits(model, tokenizer, "A" * 33)
        else:
            new = window + 1 - 20
            assert generate_text(model, tokenizer, "A" * 20, max_new_tokens=new) == tokenizer.decode(ids)
            try_out(model, tokenizer, ["A" * 20], seed=1, max_new_tokens=new)


# Tokenizers that add something


def llama_tokenizer(ends: str = "") -> PreTrainedTokenizerFast:
    """Of Llama 2's kind: bytes and letters, a space before the text, BOS before it (and an EOS after it)."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"eginostw"]
    backend = Tokenizer(
        models.BPE({piece: id for id, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.post_processor = processors.TemplateProcessing(f"<s> $A{ends}", special_tokens=[("<s>", 1), ("</s>", 2)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("ends", ["", " </s>"])
def test_a_prompt_begins_as_a_document_does_and_does_not_end_as_one(ends):
    tokenizer = llama_tokenizer(ends)
    model = tiny("llama", vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2)
    plain = tokenizer("we go", add_special_tokens=False).input_ids
    assert token_ids(model, tokenizer, "we go") == [1, *plain]
    assert token_ids(model, tokenizer, "<s>we go")[:2] != [1, 1]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[1, *plain]])).logits[0]
    assert torch.allclose(next_token_logits(model, tokenizer, "we go"), logits[-1], atol=1e-5)
    found = explain(model, tokenizer, "we go")  # the first token is predicted too, from the BOS
    assert [token.id for token in found.tokens] == [1, *plain]
    assert found.tokens[1].loss == pytest.approx(-logits[0].log_softmax(-1)[plain[0]].item(), rel=1e-5)
    assert generate_text(model, tokenizer, "we go", max_new_tokens=5) == tokenizer.decode(
        greedy(model, [1, *plain], 5), skip_special_tokens=True
    )


def test_a_tokenizer_that_adds_nothing_gets_nothing(parts):
    model, tokenizer = parts
    assert token_ids(model, tokenizer, "Once") == [*b"Once"]
    gpt2 = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>")
    assert token_ids(model, gpt2, "Once") == [*b"Once"]


@pytest.mark.parametrize("streamed", [False, True])
def test_the_space_before_the_first_new_word_stays(streamed):
    tokenizer = llama_tokenizer()
    model = tiny("llama", vocab_size=len(tokenizer), eos_token_id=2)
    space, w = tokenizer.convert_tokens_to_ids(["▁", "w"])
    model.generation_config.sequence_bias = [[[w, space], 1e3], [[space, w], 1e3]]  # "▁" after "w", "w" after "▁"
    if streamed:
        pieces = [piece.text for piece in stream_text(model, tokenizer, "go w", max_new_tokens=4)]
        assert pieces[-1] == " w w"
        assert all(pieces[-1].startswith(piece) for piece in pieces)
    else:
        assert generate_text(model, tokenizer, "go w", max_new_tokens=4) == "go w w w"


# The card


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A short run, whose checkpoint the tests exchange for one of another type."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text("".join(f"Line {i}: {i * i} lazy dogs.\n" for i in range(100)))
    run = hf_gpt.train(
        {
            "output_dir": str(folder / "run"),
            "model": {"context_length": 16, "emb_dim": 16, "n_layers": 1, "n_heads": 2},
            "tokenizer": {"name": "bytes"},
            "data": {"source": str(folder / "text.txt"), "validation_fraction": 0.1},
            "train": {"max_steps": 2, "batch_size": 2, "device": "cpu"},
            "evaluation": {"tokens": 64, "prompts": ["Line"], "sample_tokens": 4},
        }
    )
    return run.output_dir


def exchanged(run_dir: Path, tmp_path: Path, model) -> tuple[Path, Path]:
    """A copy of the run with the checkpoint that a run of such a model would have: the run and the checkpoint."""
    run_dir = shutil.copytree(run_dir, tmp_path / "run")
    (saved,) = checkpoint.checkpoints(run_dir)
    kept = {"loss.png", "tokenizer.json", "tokenizer_config.json", "training_state"}
    for path in saved.iterdir():
        if path.name not in kept:
            path.unlink()
    model.save_pretrained(saved)
    (saved / checkpoint.MANIFEST).unlink()
    write_json(saved / checkpoint.MANIFEST, checkpoint._describe(saved))
    return run_dir, saved


SHOWN = {
    "llama": ["heads per layer | 2", "key-value heads | 1", "activation | silu", "layers | 2"],
    "qwen3": ["width of a head | 8", "width | 16"],
    "gpt2": [
        "heads per layer | 2",
        "width | 16",
        "layers | 2",
        "activation | gelu_new",
        "output head | the token emb",
    ],
    "gemma2": ["attention window | 16", "activation | gelu_pytorch_tanh"],
    "granite": ["width inside the feed-forward layers | 32", "key-value heads | 1"],
    "mixtral": ["experts | 4", "experts for a token | 2"],
    "mamba": ["size of the state | 4", "width inside the feed-forward layers | 32", "layers | 2"],
}


@any_type
def test_the_card_of_a_stock_type_names_it_and_needs_no_code(run_dir, tmp_path, name, capsys):
    model = tiny(name)
    card = write_card(*exchanged(run_dir, tmp_path, model)[::-1]).read_text()
    data = ModelCard(card).data.to_dict()
    assert (data["library_name"], data["pipeline_tag"], data["tags"]) == (
        "transformers",
        "text-generation",
        ["hf_gpt", name],
    )
    assert f"A language model (`{type(model).__name__}`) with " in card
    for row in SHOWN.get(name, []):
        assert f"\n| {row}" in card
    for other in (
        "GPT-2's kind",
        "trust_remote_code",
        "modeling_gpt",
        "import hf_gpt",
        "hf-gpt convert",
        "GPT language",
    ):
        assert other not in card
    (code,) = [part.partition("```")[0] for part in card.split("```python\n")[1:]]
    path = str(checkpoint.checkpoints(tmp_path / "run")[0])
    torch.manual_seed(0)
    exec(code.replace("path/to/this/model", path), {})
    assert capsys.readouterr().out.startswith("Line")

    assert f"| Parameters | {model.num_parameters():,} |" in card
    context = (
        "32 tokens, trained on windows of 16" if name != "mamba" else "no limit of positions, trained on windows of 16"
    )
    assert f"| Context | {context}" in card


def test_sizes_that_differ_between_layers_are_shown_once_or_left_out():
    config = AutoConfig.for_model("gemma3n_text")
    assert _shape(config, {"float32"})["width inside the feed-forward layers"] == "16384"
    several = AutoConfig.for_model("gemma4_text")  # transformers refuses to name one width of a head
    assert "width of a head" not in _shape(several, {"float32"})
    assert _shape(several, {"float32"})["layers"] == several.num_hidden_layers


def test_a_card_names_what_was_continued_and_its_licence(run_dir, tmp_path):
    run_dir, saved = exchanged(run_dir, tmp_path, tiny("qwen3").bfloat16())
    environment = json.loads((run_dir / "environment.json").read_text())
    base = {"hub": "owner/base", "revision": "0123abcd" * 5, "license": "other", "license_name": "its-own"}
    write_json(run_dir / "environment.json", {**environment, "sources": {**environment["sources"], "model": base}})
    recipe = (run_dir / "recipe.yaml").read_text()
    (run_dir / "recipe.yaml").write_text(recipe.replace("from_pretrained: null", "from_pretrained: owner/base"))
    card = write_card(saved, run_dir).read_text()
    data = ModelCard(card).data.to_dict()
    assert [data[key] for key in ("base_model", "license", "license_name")] == ["owner/base", "other", "its-own"]
    assert "| Licence | `other`, that of the model it was trained from |" in card
    assert "| weights in | bfloat16, trained in float32 |" in card
    assert "It was not tuned to follow instructions" not in card  # who knows what its base was tuned to
    (run_dir / "recipe.yaml").write_text(
        (run_dir / "recipe.yaml").read_text().replace("license: null", "license: mit")
    )
    data = ModelCard(write_card(saved, run_dir).read_text()).data.to_dict()
    assert (data["license"], data.get("license_name")) == ("mit", None)


def test_a_run_records_the_licence_of_the_model_it_continues(tiny, tmp_path):
    base = hf_gpt.train({**tiny, "hub": {"license": "cc-by-4.0"}, "train": {**tiny["train"], "max_steps": 1}})
    recipe = {**tiny, "output_dir": str(tmp_path / "more"), "tokenizer": {}}
    recipe |= {"model": {"from_pretrained": str(base.checkpoints[-1])}, "train": {**tiny["train"], "max_steps": 1}}
    more = hf_gpt.train(recipe)
    card = ModelCard((more.checkpoints[-1] / "README.md").read_text())
    assert card.data.license == "cc-by-4.0"
