"""Encoding: the ids of the tokenizer, faster; cuts that change nothing; what a tokenizer is, read from its content."""

import json
import os
import random
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from hf_gpt.data import encoding
from hf_gpt.data.encoding import encoder_of
from hf_gpt.data.tokenizer import END_OF_TEXT, fingerprint, load_tokenizer, separator_id, train_tokenizer, vocab_size

CORPUS = [
    "It was the best of times, it was the worst of times, it was the age of wisdom. " * 3,
    "def times(worst):\n    return  worst * 2  # the times table\n\n" * 3,
    "天地玄黃、宇宙洪荒。日月盈昃、辰宿列張。天地玄黃。\n" * 3 + "don't, we'll, it's 1234 5678 1234\r\n" * 2,
]

ends = ["<|endof", "text|>", END_OF_TEXT]
scripts = ["天地玄黃", "👩‍👩‍👧‍👦", "🇨🇳", "e\u0301\u0323", "\U0001d4b3", "'s", "'ll", "the", " times", "12", "!?"]
spaces = [" ", "  ", "\t", "\r", "\r\n", "\n\n", "\u00a0", "\u3000", "\u2028", "\x85", "\x1c", "\x00", "\ufeff"]
snippets = st.sampled_from([*ends, *scripts, *spaces])
unicode_text = st.lists(snippets | st.text(max_size=8), max_size=12).map("".join)
examples = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def gpt2():
    data = os.environ.get("HF_GPT_TEST_DATA")
    if not data:
        pytest.skip("needs real data: set HF_GPT_TEST_DATA to its folder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", os.path.join(data, "tiktoken"))
        yield load_tokenizer("gpt2")


@pytest.fixture(scope="module")
def bytewise():
    return load_tokenizer("bytes")


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(CORPUS, 320)


@pytest.fixture(scope="module", params=["gpt2", "bytewise", "trained"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return encoder_of(tokenizer)


def ordinary(tokenizer, text):
    return encoder_of(tokenizer).encode([text])[0].tolist()


def reloaded(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    return load_tokenizer(str(folder))


@examples
@given(unicode_text)
def test_ordinary_ids_are_those_of_the_backend_without_special_tokens(tokenizer, encoder, text):
    expected = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert encoder.encode([text])[0].tolist() == expected


def test_threads_and_division_change_nothing(tokenizer, encoder):
    draw = random.Random(0)
    texts = ["".join(draw.choices(CORPUS, k=draw.choice([0, 1, 3]))) for _ in range(40)]
    texts += ["".join(draw.choices(CORPUS, k=2000)), "", "x" * 200_000]
    for text, ids in zip(texts, encoder.encode(texts), strict=True):
        assert ids.dtype == encoder.dtype
        assert ids.tolist() == tokenizer(text, split_special_tokens=True, verbose=False)["input_ids"]
    assert encoder.encode([]) == []


@pytest.mark.parametrize("broken", ["a\ud800b", "\udc00", "\ud83d\ude00", " \ud83d", "x\ude00\ud83dy"])
def test_surrogates_are_repaired_as_tiktoken_does(tokenizer, broken):
    repaired = broken.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert ordinary(tokenizer, broken) == ordinary(tokenizer, repaired)
    normalized = train_tokenizer(CORPUS, 300)
    normalized.backend_tokenizer.normalizer = normalizers.NFC()
    assert ordinary(normalized, broken) == ordinary(normalized, repaired)
    train_tokenizer([broken], 300)


def test_a_tokenizer_that_changes_is_read_again():
    tokenizer = train_tokenizer(CORPUS, 320)
    marks, ids = {fingerprint(tokenizer)}, ordinary(tokenizer, "the times")
    assert ordinary(tokenizer, "THE times") != ids
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert ordinary(tokenizer, "THE times") == ids
    marks.add(fingerprint(tokenizer))
    tokenizer.add_tokens(["times"])
    assert ordinary(tokenizer, "the times")[-1] == 320
    assert (encoder_of(tokenizer).safe_cuts, vocab_size(tokenizer)) == ("never", 321)
    assert len(marks | {fingerprint(tokenizer)}) == 3


@pytest.mark.parametrize(("highest", "dtype"), [(2**16 - 1, np.uint16), (2**16, np.uint32)])
def test_the_dtype_is_the_smallest_that_holds_every_id(trained, highest, dtype):
    assert encoder_of(trained).dtype == np.uint16
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": highest}, "a")))
    assert (vocab_size(words), encoder_of(words).dtype) == (highest + 1, dtype)  # whatever the number of words
    assert ordinary(words, "b") == [highest]


@examples
@given(st.lists(unicode_text, max_size=4), st.integers(1, 12))
@example(["  a", " b ", "", "\x1c c\x1c", " \u3000"], 1)
@example(["don", "'t ", "\n", "x\n\n y"], 2)
def test_cutting_never_changes_the_tokens(tokenizer, encoder, texts, size):
    assert encoder.safe_cuts != "never"
    pieces = list(encoder.cut(texts, size))
    assert "".join(pieces) == "".join(texts)
    assert all(pieces)
    whole = tokenizer("".join(texts), split_special_tokens=True)["input_ids"]
    assert [i for p in pieces for i in tokenizer(p, split_special_tokens=True)["input_ids"]] == whole


@examples
@given(unicode_text)
def test_every_place_before_whitespace_is_safe(trained, text):
    whole = ordinary(trained, text)
    for place in re.finditer(r"(?<=\S)(?=[ \t\n\r\u00a0\u3000\u2028\x85])", text):
        assert ordinary(trained, text[: place.start()]) + ordinary(trained, text[place.start() :]) == whole


def test_pieces_come_while_the_text_is_still_being_read(encoder):
    taken = []

    def endless():
        while True:
            taken.append("some words and " * 10)
            yield taken[-1]

    pieces = encoder.cut(endless(), 1000)
    lengths = [len(next(pieces)) for _ in range(5)]
    assert all(1000 <= n <= 1010 for n in lengths)
    assert len(taken) * 150 < 5 * 1010 + 300


def test_a_surrogate_pair_is_not_cut_apart(bytewise):
    assert list(encoder_of(bytewise).cut(["ab\ud83d", "\ude00cd"], 3)) == ["ab\ud83d\ude00", "cd"]


def test_no_cut_is_known_for_other_tokenizers(trained, tmp_path):
    other = reloaded(trained, tmp_path)
    other.backend_tokenizer.normalizer = normalizers.NFKC()
    assert encoder_of(other).safe_cuts == "never"
    assert list(encoder_of(other).cut(["a b ", "c d"], 1)) == ["a b c d"]


def test_saving_changes_neither_the_encoder_nor_the_separator(tokenizer, encoder, tmp_path):
    again = reloaded(tokenizer, tmp_path / "renamed")
    from_file = load_tokenizer(str(tmp_path / "renamed" / "tokenizer.json"))
    for loaded in (again, from_file):
        assert encoder_of(loaded) is encoder_of(tokenizer)
        assert ordinary(loaded, CORPUS[0] + END_OF_TEXT) == encoder.encode([CORPUS[0] + END_OF_TEXT])[0].tolist()
        assert separator_id(loaded) == separator_id(tokenizer)


def test_a_bpe_that_tiktoken_cannot_repeat_keeps_its_own_ids(trained, tmp_path):
    """Merges in another order than the ids, as an edited or foreign vocabulary may have them."""
    trained.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["merges"].reverse()
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    edited = load_tokenizer(str(tmp_path))
    texts = [*CORPUS, f"the {END_OF_TEXT} times"]
    ids = [ordinary(edited, text) for text in texts]
    assert ids == [edited(text, split_special_tokens=True)["input_ids"] for text in texts]
    assert ids != [ordinary(trained, text) for text in texts]  # or the edit would have been none


def test_a_tokenizer_saved_as_gpt2s_class_is_recognised(trained, tmp_path, monkeypatch):
    """As the repositories of GPT-2 and its kin have it: `vocab.json` and `merges.txt`."""
    model = json.loads(trained.backend_tokenizer.to_str())["model"]
    vocab = {**model["vocab"], END_OF_TEXT: len(model["vocab"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in model["merges"]) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    monkeypatch.setattr(encoding, "_encode_with_backend", None)
    loaded = load_tokenizer(str(tmp_path))
    assert ordinary(loaded, CORPUS[1]) == ordinary(trained, CORPUS[1])
    assert fingerprint(reloaded(loaded, tmp_path / "again")) == fingerprint(loaded)
