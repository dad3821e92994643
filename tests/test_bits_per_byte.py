"""bits_per_byte divides by the UTF-8 bytes of the very text that was evaluated."""

import dataclasses
import math
from functools import partial
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import hf_gpt
from hf_gpt.data.byte_counts import scored_bytes
from hf_gpt.data.corpus import Corpus, load_corpora
from hf_gpt.data.token_store import tokenize
from hf_gpt.data.tokenizer import byte_characters, load_tokenizer, train_tokenizer
from hf_gpt.evaluation import bits_per_byte, targets_and_bytes
from hf_gpt.recipe import DataRecipe
from hf_gpt.text_evaluation import evaluate_corpus
from hf_gpt.training.data import prepare_data


@pytest.mark.parametrize("vocabulary", ["bytes", 300])
def test_bits_per_byte_are_those_of_the_text_that_was_evaluated(tiny, vocabulary):
    if vocabulary != "bytes":
        tiny["tokenizer"] = {"train": {"vocab_size": vocabulary}}
    Path(tiny["data"]["source"]).write_text("Zürich, 東京 und Ωmega. " * 400, encoding="utf-8")
    run = hf_gpt.train(tiny)
    windows = prepare_data(run.recipe).evaluated["validation"]
    ids = windows.store.tokens[1 : min(len(windows), 512 // 32) * 32 + 1].tolist()
    num_bytes = len(run.tokenizer.decode(ids).replace("\ufffd", "").encode())  # characters cut in two at the ends:
    targets, counted = targets_and_bytes(windows, run.tokenizer, 512)
    assert targets == len(ids)
    assert 0 <= counted - num_bytes <= 4
    loss, found = run.metrics[-1]["validation_loss"], run.metrics[-1]["bits_per_byte"]
    assert found == pytest.approx(loss * len(ids) / math.log(2) / counted)
    if vocabulary == "bytes":
        assert found == pytest.approx(loss / math.log(2))
    assert bits_per_byte(loss, targets, counted) == found


def test_bytes_that_cannot_be_counted_are_left_out(tiny):
    data = prepare_data(hf_gpt.Recipe.from_dict(tiny))
    windows = data.evaluated["validation"]
    other = dataclasses.replace(windows.store, num_bytes=windows.store.num_bytes + 1)
    assert targets_and_bytes(dataclasses.replace(windows, store=other), data.tokenizer) is None


def test_separators_are_no_bytes(tmp_path, tiny):
    data, folder = prepare_data(hf_gpt.Recipe.from_dict(tiny)), tmp_path / "texts"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.txt").write_text("Some words. " * 40)
    corpus, _ = load_corpora(DataRecipe(source=str(folder)))
    store = tokenize(corpus, data.tokenizer)
    windows = dataclasses.replace(data.evaluated["validation"], store=store)
    targets, num_bytes = targets_and_bytes(windows, data.tokenizer)
    assert targets <= store.num_tokens - 1
    assert num_bytes == len(data.tokenizer.decode(store.tokens[1 : targets + 1], skip_special_tokens=True))


# A text from its second token on ------------------------------------------------------------------------------------


def llama_like(prefix: str = "▁") -> PreTrainedTokenizerFast:
    """Characters, and bytes for those that are not in the vocabulary."""
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz", "漢"]
    model = models.BPE({name: i for i, name in enumerate(names)}, [], byte_fallback=True, unk_token="<unk>")
    backend = Tokenizer(model)
    prepend = [normalizers.Prepend(prefix)] if prefix else []
    backend.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def bert_like() -> PreTrainedTokenizerFast:
    """Words, in lower case and without accents."""
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "e": 2, "cafe": 3}, "[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens([AddedToken("[SEP]")])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def bytes_from_the_second_token(tokenizer, text: str) -> int:
    corpus = Corpus("a text", repr(text), False, lambda: iter([text]))
    store = tokenize(corpus, tokenizer)
    return scored_bytes(store, corpus, tokenizer, len(store.tokens))


@pytest.fixture(scope="module")
def byte_level():
    """The tokenizers whose every token is some bytes of the text."""
    return load_tokenizer("bytes"), train_tokenizer(["é ü 漢字 the cat 👩 " * 9, " the the"], 300)


characters = st.sampled_from([*"aé漢字👩 ü\n\u0301\u3000", " the", "\ud800", "\ud83d\ude00", "<|endoftext|>"])
some_text = st.lists(characters | st.characters(), min_size=2, max_size=6).map("".join)


@settings(max_examples=40)
@given(some_text)
@example("é!")
@example("\ud83d\ude00!")
def test_the_bytes_of_all_tokens_but_the_first_are_counted(byte_level, text):
    spelled = {char: byte for byte, char in enumerate(byte_characters())}
    for tokenizer in byte_level:
        ids = tokenizer(text, split_special_tokens=True)["input_ids"] if _is_utf8(text) else None
        found = bytes_from_the_second_token(tokenizer, text)
        if ids is not None:
            parts = [bytes(map(spelled.get, name)) for name in tokenizer.convert_ids_to_tokens(ids)]
            assert b"".join(parts) == text.encode()
            assert found == len(b"".join(parts[1:]))
        assert found >= 0


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


@pytest.mark.parametrize(
    ("make", "text", "num_bytes"),
    [
        (llama_like, "ab", 2),  # ▁ a b: the first stands for nothing of the text
        (llama_like, "é!", 3),
        (llama_like, "漢a", 4),
        (partial(llama_like, ""), "é!", 2),
        (partial(llama_like, ""), "漢é", 2),
        (partial(llama_like, ""), " é", 2),
        (bert_like, "the café", 6),  # " café"
        (bert_like, "Café é", 3),
        (bert_like, "漢字", 3),
        (bert_like, "   the e", 2),
        (bert_like, "👩👩 the", 4),
    ],
)
def test_bytes_of_other_vocabularies_are_counted_by_the_places_of_their_tokens(make, text, num_bytes):
    assert bytes_from_the_second_token(make(), text) == num_bytes


def test_a_text_that_begins_with_another_character_than_ascii(folder, tmp_path):
    (tmp_path / "é.txt").write_text("é")
    found = evaluate_corpus(folder, str(tmp_path / "é.txt"))
    assert (found.tokens, found.scored_tokens, found.bytes) == (2, 1, 1)
    assert found.bits_per_byte == pytest.approx(found.loss / math.log(2))
