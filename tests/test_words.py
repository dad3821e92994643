"""Words: how many begin in each token, whatever the tokenizer, and how many a step has seen."""

import json
import random

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hf_gpt.data import token_store, words
from hf_gpt.data.batches import BatchPlan, Windows
from hf_gpt.data.corpus import load_corpora
from hf_gpt.data.encoding import encoder_of
from hf_gpt.data.token_store import tokenize
from hf_gpt.data.tokenizer import load_tokenizer, train_tokenizer
from hf_gpt.data.words import WordCounter, words_in, words_of_windows
from hf_gpt.errors import UserError
from hf_gpt.recipe import DataRecipe
from hf_gpt.training.seen import count_until, first_steps, words_of_step

# Blanks of one, two and three bytes, characters that share their first bytes with these, and text without a blank.
PARTS = ["a", "bc", "é", " ", "  ", "\n", "\xa0", "\u3000", "\u2003", "\u2028", "\x85", "\x1c", "\u2019", "\u201c"]
PARTS += ["日本", "あ", "ア", "😀", "x,", "don't", "\u1680", "\u205f"]


def text(rng: random.Random, size: int) -> str:
    return "".join(rng.choice(PARTS) for _ in range(size))


def byte_level(merges_across_blanks: bool = False) -> PreTrainedTokenizerFast:
    if not merges_across_blanks:
        return train_tokenizer([text(random.Random(1), 3000)], 400)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
    backend.train_from_iterator(["a bc a bc x, don't " * 50], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


def sentencepiece_bpe() -> PreTrainedTokenizerFast:
    """As Llama's: blanks are U+2581, one is put before each text, and rare characters are bytes."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, limit_alphabet=12)
    backend.train_from_iterator([text(random.Random(2), 3000)], trainer)
    content = json.loads(backend.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["content"].startswith("<0x")]
    backend = Tokenizer.from_str(json.dumps(content))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def unigram() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>", "</s>"], unk_token="<unk>")
    backend.train_from_iterator([text(random.Random(3), 3000)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def word_piece() -> PreTrainedTokenizerFast:
    """As BERT's: blanks are lost, so only the backend knows where a token stands."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[SEP]"])
    backend.train_from_iterator([text(random.Random(4), 3000)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[SEP]")


TOKENIZERS = {
    "bytes": lambda: load_tokenizer("bytes"),
    "byte-level BPE": byte_level,
    "merges across blanks": lambda: byte_level(merges_across_blanks=True),
    "SentencePiece BPE": sentencepiece_bpe,
    "Unigram": unigram,
    "WordPiece": word_piece,
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_each_word_of_split_begins_in_one_token(kind):
    tokenizer, rng = TOKENIZERS[kind](), random.Random(5)
    encoder, counter = encoder_of(tokenizer), WordCounter(tokenizer)
    for _ in range(100):
        documents = [text(rng, rng.randint(1, 30)) for _ in range(rng.randint(1, 4))]
        texts = [part for document in documents for part in (document, None)][:-1]
        encoded = iter(encoder.encode(documents))
        ids = [np.array([1], encoder.dtype) if part is None else next(encoded) for part in texts]
        counts = np.split(counter.count("", texts, ids), np.cumsum([*map(len, ids)])[:-1])
        found = [int(count.sum()) for count, part in zip(counts, texts) if part is not None]
        assert found == [len(document.split()) for document in documents]


def test_a_word_belongs_to_the_token_with_its_first_byte():
    tokenizer = load_tokenizer("bytes")
    encoder, counter = encoder_of(tokenizer), WordCounter(tokenizer)
    written = "é ab\xa0日\u3000c"
    counts = counter.count("", [written], encoder.encode([written]))
    assert counts.tolist() == [1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    (ids,) = encoder.encode(["bc d"])
    assert counter.count("a", ["bc d"], [ids]).tolist() == [0, 0, 0, 1]  # in the middle of a word
    assert counter.count(" ", ["bc d"], [ids]).tolist() == [1, 0, 0, 1]


def test_what_a_vocabulary_does_not_spell_is_looked_up_in_the_text():
    """White space without a token is an unknown one, and SentencePiece's mark, where it is written, is no blank."""
    for tokenizer in (unigram(), sentencepiece_bpe()):
        encoder, counter = encoder_of(tokenizer), WordCounter(tokenizer)
        for written in ("a\tb\r\u200ac q", "\t", "a \u2581 b", "\u2581a\u2581b", "a\u2603 b \u2603\u2603"):
            assert counter.count("", [written], encoder.encode([written])).sum() == len(written.split()), written


def test_a_token_may_begin_two_words():
    tokenizer = byte_level(merges_across_blanks=True)
    encoder, counter = encoder_of(tokenizer), WordCounter(tokenizer)
    counts = counter.count("", ["a bc a bc"], encoder.encode(["a bc a bc"]))
    assert counts.max() > 1
    assert counts.sum() == 4


@pytest.fixture
def documents() -> list[str]:
    rng = random.Random(6)
    return ["a bc a bc", *(text(rng, rng.randint(1, 60)) for _ in range(200))]


@pytest.fixture
def corpus(documents, tmp_path):
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": one}) for one in documents))
    corpus, _ = load_corpora(DataRecipe(source=str(tmp_path / "texts.jsonl")))
    return corpus


@pytest.mark.parametrize("kind", ["bytes", "byte-level BPE", "merges across blanks", "WordPiece"])
def test_a_store_keeps_the_counts_however_it_was_divided(kind, corpus, documents, tmp_path, monkeypatch):
    tokenizer = TOKENIZERS[kind]()
    monkeypatch.setenv("HF_GPT_CACHE", str(tmp_path / "whole"))
    whole = tokenize(corpus, tokenizer)
    assert whole.num_words == sum(len(one.split()) for one in documents) == int(whole.words[:].sum())
    for name in ("_CHUNK", "_BATCH", "_SHARD"):
        monkeypatch.setattr(token_store, name, 20)
    monkeypatch.setenv("HF_GPT_CACHE", str(tmp_path / "divided"))
    divided = tokenize(corpus, tokenizer)
    assert divided.num_words == whole.num_words
    assert (divided.words[:] == whole.words[:]).all()
    names = {path.name for path in whole.path.iterdir()} & {"words.bin", "word_bits.bin"}
    assert names == {"words.bin" if whole.words[:].max() > 1 else "word_bits.bin"}
    for start, stop in ((0, 1), (3, 3), (5, 29), (8, 16), (1001, whole.num_tokens)):
        assert (divided.words[start:stop] == whole.words[:][start:stop]).all()


@pytest.fixture
def plan(corpus):
    store = tokenize(corpus, load_tokenizer("bytes"))
    return BatchPlan(Windows(store, 16, stride=12), batch_size=3, accumulation=2, seed=7)


def test_what_a_step_sees_is_counted_by_its_targets(plan, monkeypatch):
    windows, store = plan.windows, plan.windows.store
    counts = store.words[:]
    by_hand = [int(counts[start + 1 : start + 17].sum()) for start in range(0, store.num_tokens - 16, 12)]
    monkeypatch.setattr(words, "_MOST", 100)  # tokens at once
    assert words_of_windows(windows).tolist() == by_hand
    assert words_in(windows, np.array([3, 0, 5])) == by_hand[3] + by_hand[0] + by_hand[5]
    steps = range(1, 2 * plan.steps_per_epoch + 3)  # two epochs, of other orders, and a bit
    by_step = [sum(by_hand[index] for index in plan.indices(step)) for step in steps]
    assert [words_of_step(plan, step) for step in steps] == by_step
    assert [count_until(plan, "words", step) for step in (0, *steps)] == [0, *np.cumsum(by_step)]
    assert by_step[: plan.steps_per_epoch] != by_step[plan.steps_per_epoch : 2 * plan.steps_per_epoch]


@pytest.mark.parametrize("seen", ["tokens", "words"])
def test_the_first_step_at_or_past_a_number_is_found(plan, seen):
    steps = 2 * plan.steps_per_epoch + 2
    of_step = {"tokens": plan.num_targets, "words": lambda step: words_of_step(plan, step)}[seen]
    sums = np.cumsum([0, *map(of_step, range(1, steps + 1))])
    values = sorted({0, 1, *sums[1:].tolist(), *(sums[1:-1] + 1).tolist()})
    expected = [int(np.flatnonzero(sums >= value)[0]) for value in values]
    assert first_steps(plan, seen, values) == expected
    with pytest.raises(UserError, match=rf"train\.max_{seen}: .* is more than 1,000,000 epochs of "):
        first_steps(plan, seen, [10**14])
    assert first_steps(plan, seen, values, 5) == [step if step <= 5 else None for step in expected]
    assert [count_until(plan, seen, step) for step in range(steps + 1)] == sums.tolist()
