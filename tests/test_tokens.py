"""The token store: the ids of the text as a whole, made once, found again, never trusted blindly."""

import json
import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_gpt.data import tokens
from hf_gpt.data.corpus import Corpus, load_corpora
from hf_gpt.data.tokens import fraction_of_split_characters, tokenize
from hf_gpt.errors import UserError
from hf_gpt.recipe import DataRecipe
from hf_gpt.tokenization import encode_ordinary, load_tokenizer, separator_id, train_tokenizer


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_GPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def bytes_tokenizer():
    return load_tokenizer("bytes")


@pytest.fixture(scope="module")
def trained_tokenizer():
    """A BPE with GPT-2's pattern, which joins white space across lines and so shows a wrong cut."""
    return train_tokenizer(["the cat\n\n  the hat \n\n\n the end  of  it\t\tall\r\n " * 20], 320)


@pytest.fixture
def gpt2(monkeypatch):
    if "HF_GPT_TEST_DATA" not in os.environ:
        pytest.skip("needs HF_GPT_TEST_DATA")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", os.path.join(os.environ["HF_GPT_TEST_DATA"], "tiktoken"))
    return load_tokenizer("gpt2")


def data(name: str) -> str:
    return os.path.join(os.environ["HF_GPT_TEST_DATA"], name)


def corpus_of(*pieces, separated=True, identity=None) -> Corpus:
    pieces = [piece for piece in pieces if separated or piece is not None]
    return Corpus("a corpus", identity or repr((pieces, separated)), separated, lambda: iter(pieces))


def expected_ids(tokenizer, pieces) -> list[int]:
    """Each document encoded at once, the separator's id between them."""
    documents = [""]
    for piece in pieces:
        documents.append("") if piece is None else documents.append(documents.pop() + piece)
    ids = [encode_ordinary(tokenizer, [text])[0].tolist() for text in documents if text]
    return [i for n, document in enumerate(ids) for i in ([separator_id(tokenizer)] if n else []) + document]


words = [
    "t",
    "h",
    "he",
    "the",
    " the",
    "cat",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "\x1c",
    "\u3000",
    "é",
    "漢",
    "'s",
    "1",
]
texts = st.lists(st.sampled_from([*words, "<|endoftext|>"]), max_size=6).map("".join)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.none() | texts, max_size=20))
def test_the_store_holds_the_ids_of_each_document_encoded_at_once(trained_tokenizer, bytes_tokenizer, pieces):
    for tokenizer in (trained_tokenizer, bytes_tokenizer):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tokens, "_CHUNK", 5)  # every text is cut many times
            patch.setattr(tokens, "_BATCH", 17)
            if not any(pieces):
                with pytest.raises(UserError, match="has no text"):
                    tokenize(corpus_of(*pieces), tokenizer)
                continue
            store = tokenize(corpus_of(*pieces), tokenizer)
        assert store.tokens.tolist() == expected_ids(tokenizer, pieces)
        text = "".join(piece for piece in pieces if piece)
        assert store.num_characters == len(text)
        assert store.num_bytes == len(text.encode())
        assert store.num_documents == sum(store.tokens == separator_id(tokenizer)) + 1


def test_the_book_has_5145_tokens_and_wikitext_is_cut_nowhere(gpt2):
    (verdict, _) = load_corpora(DataRecipe(source=data("the-verdict.txt")))
    store = tokenize(verdict, gpt2)
    assert (store.num_tokens, store.num_characters, store.num_documents) == (5145, 20479, 1)
    assert store.tokens.dtype == np.uint16
    recipe = DataRecipe(source=data("wikitext"), config="wikitext-2-v1", train_split="test")
    (wikitext, _) = load_corpora(recipe)
    text = "".join(wikitext.pieces())
    assert np.array_equal(tokenize(wikitext, gpt2).tokens, encode_ordinary(gpt2, [text], 1)[0])


def test_end_of_text_written_in_a_corpus_stays_text(gpt2):
    store = tokenize(corpus_of("a<|endoftext|>b", None, "c"), gpt2)
    assert (store.tokens == 50256).sum() == 1
    assert gpt2.decode(store.tokens.tolist()) == "a<|endoftext|>b<|endoftext|>c"


def test_the_second_run_reads_no_text(bytes_tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("some text " * 100)
    os.utime(tmp_path / "a.txt", (1e9, 1e9 + 0.5))
    recipe = DataRecipe(source=str(tmp_path / "a.txt"), validation_fraction=0.25)
    made = [tokenize(corpus, bytes_tokenizer) for corpus in load_corpora(recipe)]

    def unread():
        raise AssertionError("the corpus was read")

    for corpus, store in zip(load_corpora(recipe), made):
        again = tokenize(Corpus("another name", corpus.identity, corpus.separated, unread), bytes_tokenizer)
        assert np.array_equal(again.tokens, store.tokens)
        assert (store.from_cache, again.from_cache) == (False, True)
        assert again.name == "another name"


def test_another_recipe_never_gets_the_wrong_store(bytes_tokenizer, trained_tokenizer):
    pieces = ("the cat ", None, "the hat")
    paths = {
        tokenize(corpus, tokenizer).path
        for tokenizer in (bytes_tokenizer, trained_tokenizer)
        for corpus in (corpus_of(*pieces), corpus_of(*pieces, separated=False), corpus_of("the cat"))
    }
    assert len(paths) == 6


@pytest.mark.parametrize("damage", ["flip", "cut", "meta", "gone", "format"])
def test_a_damaged_store_is_made_again(bytes_tokenizer, damage):
    corpus = corpus_of("some text " * 1000)
    store = tokenize(corpus, bytes_tokenizer)
    expected = store.tokens.tolist()
    file, meta = store.path / "tokens.bin", store.path / "store.json"
    if damage == "flip":
        content = bytearray(file.read_bytes())
        content[7777] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        os.truncate(file, file.stat().st_size - 2)
    elif damage == "meta":
        meta.write_text(meta.read_text()[:-5])
    elif damage == "gone":
        meta.unlink()
    else:
        meta.write_text(json.dumps({**json.loads(meta.read_text()), "format": 0}))
    again = tokenize(corpus, bytes_tokenizer)
    assert not again.from_cache
    assert again.tokens.tolist() == expected
    assert tokenize(corpus, bytes_tokenizer).from_cache


def test_a_run_that_dies_while_tokenising_leaves_nothing_that_counts(bytes_tokenizer, tmp_path):
    script = """
import os
from hf_gpt.data import tokens
from hf_gpt.data.corpus import Corpus
from hf_gpt.tokenization import load_tokenizer
def pieces():
    yield "x" * tokens._BATCH
    yield "y" * tokens._BATCH
    os._exit(9)
tokens.tokenize(Corpus("c", "i", True, pieces), load_tokenizer("bytes"))
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == 9
    folder = tmp_path / "cache" / "tokens"
    assert list(folder.glob("*.part"))
    store = tokenize(corpus_of("whole", identity="i"), bytes_tokenizer)
    assert store.num_tokens == 5
    assert sorted(path.suffix for path in folder.iterdir()) == ["", ".lock"]


def _tokenize_slowly(results, barrier):
    def pieces():
        results.put("read")
        yield "text " * 100_000

    barrier.wait()
    store = tokenize(Corpus("c", "i", True, pieces), load_tokenizer("bytes"))
    results.put(store.num_tokens)


def test_of_two_processes_one_tokenises_and_both_have_the_result():
    context = multiprocessing.get_context("fork")
    results, barrier = context.Queue(), context.Barrier(2)
    workers = [context.Process(target=_tokenize_slowly, args=(results, barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in range(3)]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert found.count("read") == 1
    assert found.count(500_000) == 2


def test_a_tokenizer_without_separator_is_refused_only_when_one_is_needed(bytes_tokenizer, monkeypatch):
    monkeypatch.setattr(tokens, "separator_id", lambda tokenizer: None)
    with pytest.raises(UserError, match=r"set data\.separator to false"):
        tokenize(corpus_of("a", None, "b"), bytes_tokenizer)
    assert tokenize(corpus_of("a", None), bytes_tokenizer).num_tokens == 1


def test_a_cache_that_cannot_be_written_is_named(bytes_tokenizer, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_GPT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="set HF_GPT_CACHE"):
        tokenize(corpus_of("a"), bytes_tokenizer)


def test_progress_counts_every_character(bytes_tokenizer):
    seen = []
    tokenize(corpus_of("x" * 5_000_000, None, "y" * 5_000_000), bytes_tokenizer, progress=seen.append)
    assert sum(seen) == 10_000_000
    assert len(seen) > 1


def test_gpt2_cuts_chinese_characters_apart_and_english_not(gpt2):
    chinese = "天地玄黃宇宙洪荒日月盈昃辰宿列張寒來暑往秋收冬藏閏餘成歲律呂調陽雲騰致雨露結為霜。" * 20
    assert fraction_of_split_characters(tokenize(corpus_of(chinese), gpt2), gpt2) > 0.5
    (verdict, _) = load_corpora(DataRecipe(source=data("the-verdict.txt")))
    assert fraction_of_split_characters(tokenize(verdict, gpt2), gpt2) < 0.01


PEAK = """
import itertools, resource, sys
from hf_gpt.data.corpus import Corpus
from hf_gpt.data.tokens import tokenize
from hf_gpt.tokenization import load_tokenizer
text = "To be, or not to be. " * 50_000
corpus = Corpus("c", sys.argv[1], False, lambda: itertools.repeat(text, int(sys.argv[1])))
tokenize(corpus, load_tokenizer("bytes"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_memory_does_not_grow_with_the_corpus():
    def peak(megabytes: int) -> float:
        command = [sys.executable, "-c", PEAK, str(megabytes)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert peak(56) - peak(8) < 30  # MiB; to hold the text would take 48 more, to hold the ids 96
