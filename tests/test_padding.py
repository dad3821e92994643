"""A trained tokenizer with a padding token of its own: batches of texts of several lengths, labels, `generate()`."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling

import hf_gpt
from hf_gpt.data.encoding import encoder_of
from hf_gpt.data.tokenizer import fingerprint, train_tokenizer
from hf_gpt.training.data import prepare_data

TEXT = "the <pad> cat sat on the mat, the <pad> rat ate <|endoftext|> it. " * 20


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("padding")
    (folder / "text.txt").write_text(TEXT)
    recipe = {
        "output_dir": str(folder / "run"),
        "model": {"context_length": 16, "emb_dim": 16, "n_layers": 1, "n_heads": 2, "drop_rate": 0.0},
        "tokenizer": {"train": {"vocab_size": 280, "pad_token": "<pad>"}},
        "data": {"source": str(folder / "text.txt")},
        "train": {"max_steps": 2, "batch_size": 2, "device": "cpu"},
        "evaluation": {"tokens": 64, "prompts": []},
    }
    return hf_gpt.train(recipe)


@pytest.fixture(scope="module", params=["as it is", "as a stock GPT-2"])
def loaded(run, request, tmp_path_factory):
    """The run's model with weights that tell tokens apart, and its tokenizer, from their files."""
    folder = run.checkpoints[-1]
    if request.param == "as a stock GPT-2":
        target = tmp_path_factory.mktemp("stock") / "model"
        hf_gpt.to_gpt2(str(folder), str(target))
        folder = target
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.manual_seed(0)
    for weight in model.parameters():
        weight.data.normal_(std=1.0)
    return model, AutoTokenizer.from_pretrained(folder)


def test_it_is_the_last_id_and_counted_in_the_vocabulary():
    tokenizer, without = train_tokenizer([TEXT], 270, "<pad>"), train_tokenizer([TEXT], 269)
    assert (len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id) == (270, 268, 269)
    assert (len(without), without.pad_token_id) == (269, None)
    assert tokenizer.pad_token != tokenizer.eos_token


def test_text_that_spells_it_stays_text(run):
    tokenizer = run.tokenizer
    (ids,) = encoder_of(tokenizer).encode([TEXT])
    assert not {tokenizer.pad_token_id, tokenizer.eos_token_id} & set(ids.tolist())
    assert tokenizer.decode(ids) == TEXT
    store = prepare_data(run.recipe).windows.store
    assert store.tokens.tolist() == ids.tolist()


@pytest.mark.parametrize(
    "token", ["pad", "<|endoftext|>", "", "< pad>", "<>", "[x", "<päd>", "Ġ>", "'s", "<" + "p" * 70 + ">"]
)
def test_what_ordinary_text_may_become_is_refused(token):
    with pytest.raises(hf_gpt.UserError, match=r"pad_token: (must stand in < > or|is the end of a text)"):
        train_tokenizer([TEXT], 280, token)


def test_there_must_be_room_for_it():
    assert len(train_tokenizer([TEXT], 258, "[PAD]")) == 258
    with pytest.raises(hf_gpt.UserError, match=r"256 bytes and <.endoftext.> and <pad> make at least 258"):
        train_tokenizer([TEXT], 257, "<pad>")
    with pytest.raises(hf_gpt.UserError, match="'vocab_size' must be at least 258"):
        hf_gpt.Recipe.from_dict({"tokenizer": {"train": {"vocab_size": 257, "pad_token": "<pad>"}}})


def test_the_cache_keeps_tokenizers_apart_that_differ_in_it(run):
    found = {}
    for token in (None, "<pad>", "[PAD]"):
        values = run.recipe.to_dict()
        values["tokenizer"]["train"]["pad_token"] = token
        values["model"].pop("vocab_size")
        found[token] = prepare_data(hf_gpt.Recipe.from_dict(values)).tokenizer
    assert {token: tokenizer.pad_token for token, tokenizer in found.items()} == {token: token for token in found}
    assert len({fingerprint(tokenizer) for tokenizer in found.values()}) == 3


def test_model_and_tokenizer_name_it(run, loaded):
    model, tokenizer = loaded
    pad = run.tokenizer.pad_token_id
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<pad>", pad)
    assert model.config.pad_token_id == model.generation_config.pad_token_id == pad == model.config.vocab_size - 1
    written = json.loads((run.checkpoints[-1] / "tokenizer_config.json").read_text())
    assert written["pad_token"] == "<pad>"
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_labels_at_padding_are_ignored_and_those_at_the_end_of_a_text_are_not(loaded):
    model, tokenizer = loaded
    end = tokenizer.eos_token_id
    rows = [[*tokenizer(text).input_ids, end] for text in ("the cat sat on the mat", "it")]
    batch = DataCollatorForLanguageModeling(tokenizer, mlm=False)([{"input_ids": row} for row in rows])
    padded = len(rows[0]) - len(rows[1])
    assert batch["input_ids"][1, -padded:].tolist() == [tokenizer.pad_token_id] * padded
    assert batch["labels"].tolist() == [rows[0], [*rows[1], *[-100] * padded]]
    with torch.inference_mode():
        loss = model(**batch).loss
        sums = [model(torch.tensor([row]), labels=torch.tensor([row])).loss * (len(row) - 1) for row in rows]
    torch.testing.assert_close(loss, sum(sums) / sum(len(row) - 1 for row in rows))


def test_a_padded_batch_generates_what_each_of_its_rows_does(loaded):
    model, tokenizer = loaded
    prompts = ["the cat sat on", "it"]
    batch = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
    assert batch["input_ids"][1, 0] == tokenizer.pad_token_id
    how = {"max_new_tokens": 4, "do_sample": False}
    alone = [model.generate(**tokenizer(prompt, return_tensors="pt"), **how)[0, -4:].tolist() for prompt in prompts]
    assert model.generate(**batch, **how)[:, -4:].tolist() == alone
    assert model.generate(batch["input_ids"], **how)[:, -4:].tolist() == alone  # the mask follows from the ids
    # A row that ends before the other is filled with padding, not with the end of a text.
    how["eos_token_id"] = next(token for token in alone[0][:2] if token not in alone[1])
    (stopped, other) = model.generate(**batch, **how)[:, -4:].tolist()
    at = stopped.index(how["eos_token_id"])
    assert other == alone[1]
    assert stopped[at + 1 :] == [tokenizer.pad_token_id] * (3 - at)
