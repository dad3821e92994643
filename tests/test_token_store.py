"""The token store: the ids of the whole text, made once, found again, checked before it is used."""

import io
import itertools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from hf_gpt.data import progress, token_store
from hf_gpt.data.corpus import Corpus, load_corpora
from hf_gpt.data.encoding import Encoder, encoder_of
from hf_gpt.data.token_store import fraction_of_split_characters, tokenize
from hf_gpt.data.tokenizer import load_tokenizer, separator_id, train_tokenizer
from hf_gpt.errors import UserError
from hf_gpt.recipe import DataRecipe


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
def gpt2(data_dir):
    return load_tokenizer("gpt2")


@pytest.fixture
def encoded(monkeypatch):
    """How many characters each call of the encoder was given."""
    sizes, encode = [], Encoder.encode

    def counted(self, texts):
        sizes.append(sum(map(len, texts)))
        return encode(self, texts)

    monkeypatch.setattr(Encoder, "encode", counted)
    return sizes


def corpus_of(*pieces, separated=True, identity=None) -> Corpus:
    pieces = [piece for piece in pieces if separated or piece is not None]
    return Corpus("a corpus", identity or repr((pieces, separated)), separated, lambda: iter(pieces))


def expected_ids(tokenizer, pieces) -> list[int]:
    """Each document encoded at once, the separator's id between them."""
    documents = [""]
    for piece in pieces:
        documents.append("") if piece is None else documents.append(documents.pop() + piece)
    ids = [tokenizer(text, split_special_tokens=True)["input_ids"] for text in documents if text]
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
]
texts = st.lists(st.sampled_from([*words, "<|endoftext|>"]), max_size=6).map("".join)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.none() | texts, max_size=20))
def test_the_store_holds_the_ids_of_each_document_encoded_at_once(trained_tokenizer, bytes_tokenizer, pieces):
    for tokenizer in (trained_tokenizer, bytes_tokenizer):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(token_store, "_CHUNK", 5)  # every text is cut many times
            patch.setattr(token_store, "_BATCH", 17)
            if not any(pieces):
                with pytest.raises(UserError, match="there is no text in it"):
                    tokenize(corpus_of(*pieces), tokenizer)
                continue
            store = tokenize(corpus_of(*pieces), tokenizer)
        assert store.tokens.tolist() == expected_ids(tokenizer, pieces)
        text = "".join(piece for piece in pieces if piece)
        assert store.num_characters == len(text)
        assert store.num_bytes == len(text.encode())
        assert store.num_documents == sum(store.tokens == separator_id(tokenizer)) + 1


def test_the_book_has_5145_tokens_and_wikitext_is_cut_nowhere(gpt2, data_dir):
    (verdict, _) = load_corpora(DataRecipe(source=str(data_dir / "the-verdict.txt")))
    store = tokenize(verdict, gpt2)
    assert (store.num_tokens, store.num_characters, store.num_documents) == (5145, 20479, 1)
    assert store.tokens.dtype == np.uint16
    recipe = DataRecipe(source=str(data_dir / "wikitext"), config="wikitext-2-v1", train_split="test")
    (wikitext, _) = load_corpora(recipe)
    text = "".join(wikitext.pieces())
    assert np.array_equal(tokenize(wikitext, gpt2).tokens, encoder_of(gpt2).encode([text])[0])


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
def test_a_damaged_store_is_made_again(bytes_tokenizer, encoded, damage):
    corpus = corpus_of("some text " * 1000)
    store = tokenize(corpus, bytes_tokenizer)
    expected = store.tokens.tolist()
    encoded.clear()
    file, meta = store.path / "tokens.bin", store.path / "entry.json"
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
    for _ in range(2):
        assert tokenize(corpus, bytes_tokenizer).tokens.tolist() == expected
    assert len(encoded) == 1


# Killed while it is made ---------------------------------------------------------------------------------------------

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of about 4,000 characters, so that a small text has many."""
    for name, size in {"_CHUNK": 300, "_BATCH": 1000, "_SHARD": 4000}.items():
        monkeypatch.setattr(token_store, name, size)


@pytest.fixture
def many_files(tmp_path) -> Corpus:
    """A folder of text files of several lengths, some shorter and some longer than a shard: 100,000 characters."""
    folder = tmp_path / "texts"
    folder.mkdir()
    text = "".join(f"the cat {n} \n\n\n the hat\t{n * n}  the \u00e9nd \u6f22\r\n" for n in range(4000))
    ends = [0, 1, 500, 20_000, 20_001, 23_000, 90_000, 100_000]
    for number, (start, end) in enumerate(itertools.pairwise(ends)):
        (folder / f"{number}.txt").write_bytes(text[start:end].encode())
    return load_corpora(DataRecipe(source=str(folder)))[0]


def content(store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.path.iterdir())}


def made_elsewhere(corpus, tokenizer, tmp_path, monkeypatch) -> dict[str, bytes]:
    """The store as it is made without interruption, in another cache."""
    with monkeypatch.context() as patch:
        patch.setenv("HF_GPT_CACHE", str(tmp_path / "uninterrupted"))
        return content(tokenize(corpus, tokenizer))


def num_shards(cache) -> int:
    """Finished shards of the unfinished store in a cache."""
    lines = [path.read_bytes().splitlines() for path in cache.glob("tokens-2/*.part/shards.jsonl")]
    return len(lines[0]) if lines else 0


def test_killed_at_random_again_and_again_it_gives_the_same_bytes_and_encodes_nothing_finished_twice(
    small_shards, encoded, many_files, trained_tokenizer, tmp_path, monkeypatch
):
    expected = made_elsewhere(many_files, trained_tokenizer, tmp_path, monkeypatch)
    ends = [0, *(json.loads(line)["num_characters"] for line in expected["shards.jsonl"].splitlines())]  # of 24 shards
    random, finished = Random(0), [0]
    for _ in range(5):
        blocked = _blocked_after(ends[finished[-1] + 4], many_files)  # however fast it is, it is not done when killed
        worker = FORK.Process(target=tokenize, args=(blocked, trained_tokenizer))
        worker.start()
        stop_at = finished[-1] + random.randint(0, 2)
        while num_shards(tmp_path / "cache") < stop_at:
            time.sleep(0.0005)
        time.sleep(random.random() * 0.01)
        worker.kill()
        worker.join()
        finished.append(num_shards(tmp_path / "cache"))
    assert finished == sorted(finished)  # no shard was lost
    encoded.clear()
    assert content(tokenize(many_files, trained_tokenizer)) == expected
    assert sum(encoded) == 100_000 - ends[finished[-1]]
    assert sorted(path.suffix for path in (tmp_path / "cache" / "tokens-2").iterdir()) == ["", ".lock"]


def _blocked_after(num_characters: int, corpus: Corpus) -> Corpus:
    """The same corpus in small pieces, which stop coming after so many characters."""

    def pieces():
        left = num_characters
        for piece in corpus.pieces():
            if piece is None:
                yield None
                continue
            for start in range(0, len(piece), 100):
                while left <= 0:
                    time.sleep(60)
                yield piece[start : start + 100]
                left -= 100

    return Corpus(corpus.name, corpus.identity, corpus.separated, pieces)


def _killed_at(count: int, corpus, tokenizer):
    """Tokenise, and die when something is forced to disk for the `count`-th time."""
    calls, fsync = itertools.count(1), os.fsync

    def deadly(descriptor):
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = deadly
    tokenize(corpus, tokenizer)


def test_killed_at_any_moment_that_matters_it_gives_the_same_bytes(
    small_shards, bytes_tokenizer, tmp_path, monkeypatch
):
    corpus = corpus_of("one " * 1500, None, "two " * 50, None, "three " * 1500)
    expected = made_elsewhere(corpus, bytes_tokenizer, tmp_path, monkeypatch)
    for count in itertools.count(1):
        monkeypatch.setenv("HF_GPT_CACHE", str(tmp_path / f"cache-{count}"))
        worker = FORK.Process(target=_killed_at, args=(count, corpus, bytes_tokenizer))
        worker.start()
        worker.join()
        assert content(tokenize(corpus, bytes_tokenizer)) == expected
        if worker.exitcode == 0:
            break
    assert count > 11


@pytest.mark.parametrize("damage", ["flip", "words", "cut", "more", "torn line", "not a line", "all"])
def test_shards_that_are_not_what_was_written_are_made_again(
    small_shards, encoded, bytes_tokenizer, tmp_path, monkeypatch, damage
):
    corpus = corpus_of("text " * 6000)
    expected = made_elsewhere(corpus, bytes_tokenizer, tmp_path, monkeypatch)
    worker = FORK.Process(target=_killed_at, args=(18, corpus, bytes_tokenizer))
    worker.start()
    worker.join()
    assert num_shards(tmp_path / "cache") == 5
    (part,) = (tmp_path / "cache" / "tokens-2").glob("*.part")
    ids, lines = part / "tokens.bin", part / "shards.jsonl"
    if damage == "flip":
        changed = bytearray(ids.read_bytes())
        changed[2 * 16_000] ^= 1  # in the fourth
        ids.write_bytes(changed)
    elif damage == "words":
        changed = bytearray((part / "words.bin").read_bytes())
        changed[16_000] ^= 1
        (part / "words.bin").write_bytes(changed)
    elif damage == "cut":
        os.truncate(ids, 2 * 16_000)
    elif damage == "more":
        ids.write_bytes(ids.read_bytes() + b"written and never entered" * 10_000)
    elif damage == "torn line":
        os.truncate(lines, lines.stat().st_size - 7)
    elif damage == "not a line":
        lines.write_bytes(lines.read_bytes() + b"[1]\n")
    else:
        ids.write_bytes(b"")
    encoded.clear()
    store = tokenize(corpus, bytes_tokenizer)
    assert content(store) == expected
    kept = {"flip": 3, "words": 3, "cut": 3, "more": 5, "torn line": 4, "not a line": 5, "all": 0}[damage]
    ends = [0, *(json.loads(line)["num_characters"] for line in expected["shards.jsonl"].splitlines())]
    assert sum(encoded) == 30_000 - ends[kept]


def test_an_error_on_the_way_keeps_what_is_finished_and_leaves_nothing_when_nothing_is(
    small_shards, encoded, bytes_tokenizer, tmp_path
):
    def breaks_after(num_pieces):
        def pieces():
            for number in range(30):
                if number == num_pieces:
                    raise UserError("the line is cut")
                yield "text " * 200

        return Corpus("c", "i", False, pieces)

    with pytest.raises(UserError, match="the line is cut"):
        tokenize(breaks_after(3), bytes_tokenizer)
    assert [path.suffix for path in (tmp_path / "cache" / "tokens-2").iterdir()] == [".lock"]
    with pytest.raises(UserError, match="the line is cut"):
        tokenize(breaks_after(20), bytes_tokenizer)
    finished = num_shards(tmp_path / "cache")
    assert finished >= 3
    encoded.clear()
    assert tokenize(breaks_after(99), bytes_tokenizer).num_tokens == 30_000
    assert sum(encoded) <= 30_000 - 4000 * finished


def _tokenize_and_perhaps_die(corpus, tokenizer, results, nobody_died):
    def deadly():
        for piece in corpus.pieces():
            yield piece
            if num_shards(Path(os.environ["HF_GPT_CACHE"])) >= 5 and nobody_died.acquire(block=False):
                os.kill(os.getpid(), signal.SIGKILL)

    encode = Encoder.encode

    def counted(self, texts):
        results.put(("encoded", sum(map(len, texts))))
        return encode(self, texts)

    Encoder.encode = counted
    store = tokenize(Corpus(corpus.name, corpus.identity, corpus.separated, deadly), tokenizer)
    results.put(("store", store.num_tokens))


def test_when_the_one_that_tokenises_dies_one_that_waits_resumes_from_its_last_shard(small_shards, bytes_tokenizer):
    pieces = ["text " * 100] * 200
    results, nobody_died = FORK.SimpleQueue(), FORK.Semaphore(1)
    arguments = (corpus_of(*pieces), bytes_tokenizer, results, nobody_died)
    workers = [FORK.Process(target=_tokenize_and_perhaps_die, args=arguments) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(worker.exitcode for worker in workers) == [-signal.SIGKILL, 0, 0]
    found = []
    while not results.empty():
        found.append(results.get())
    made = [number for what, number in found if what == "store"]
    assert len(made) == 2
    assert len(set(made)) == 1
    twice = sum(number for what, number in found if what == "encoded") - 100_000
    assert 0 <= twice < 5 * 4000  # what was under way, and nothing of the five finished shards


def _tokenize_slowly(results, barrier):
    def pieces():
        results.put("read")
        yield "text " * 100_000

    barrier.wait()
    store = tokenize(Corpus("c", "i", True, pieces), load_tokenizer("bytes"))
    results.put(store.num_tokens)


def test_of_two_processes_one_tokenises_and_both_have_the_result():
    results, barrier = FORK.Queue(), FORK.Barrier(2)
    workers = [FORK.Process(target=_tokenize_slowly, args=(results, barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=300) for _ in range(3)]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert found.count("read") == 1
    assert found.count(500_000) == 2


def test_a_tokenizer_without_separator_is_refused_only_when_one_is_needed():
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, "a")))
    with pytest.raises(UserError, match=r"set data\.separator to false"):
        tokenize(corpus_of("a", None, "b"), words)
    assert tokenize(corpus_of("a", None), words).num_tokens == 1


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


class _Screen(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_a_bar_on_a_screen_and_plain_lines_in_a_log(small_shards, bytes_tokenizer, monkeypatch):
    monkeypatch.setattr(progress, "_DELAY", 0)
    monkeypatch.setattr(progress, "_LINE_EVERY", 0)
    for stderr in (io.StringIO(), _Screen()):
        monkeypatch.setattr(sys, "stderr", stderr)
        with progress.WorkProgress("tokenising a corpus") as shown:
            tokenize(corpus_of("x" * 30_000, identity=repr(stderr)), bytes_tokenizer, progress=shown)
        if stderr.isatty():
            assert "\rtokenising a corpus: 30.0k characters" in stderr.getvalue()
        else:
            lines = stderr.getvalue().splitlines()
            assert len(lines) > 3
            assert re.fullmatch(r"tokenising a corpus: 30,000 characters in \d\d:\d\d", lines[-1])
            assert "\r" not in stderr.getvalue()


def _tokenize_into(log, barrier):
    sys.stderr = log.open("w")
    progress._DELAY = progress._LINE_EVERY = 0
    pieces = ["text " * 1000 for _ in range(20)]

    def slowly():
        for piece in pieces:
            time.sleep(0.02)
            yield piece

    barrier.wait()
    with progress.WorkProgress("tokenising") as shown:
        tokenize(Corpus("c", "i", False, slowly), load_tokenizer("bytes"), progress=shown)
    sys.stderr.flush()


def test_processes_that_wait_print_nothing(small_shards, tmp_path):
    barrier, logs = FORK.Barrier(3), [tmp_path / f"{rank}.log" for rank in range(3)]
    workers = [FORK.Process(target=_tokenize_into, args=(log, barrier)) for log in logs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    sizes = sorted(log.stat().st_size for log in logs)
    assert sizes[:2] == [0, 0]
    assert sizes[2] > 0


def test_gpt2_cuts_chinese_characters_apart_and_english_not(gpt2, data_dir):
    chinese = "天地玄黃宇宙洪荒日月盈昃辰宿列張寒來暑往秋收冬藏閏餘成歲律呂調陽雲騰致雨露結為霜。" * 20
    assert fraction_of_split_characters(tokenize(corpus_of(chinese), gpt2), gpt2) > 0.5
    (verdict, _) = load_corpora(DataRecipe(source=str(data_dir / "the-verdict.txt")))
    assert fraction_of_split_characters(tokenize(verdict, gpt2), gpt2) < 0.01


PEAK = """
import itertools, resource
from hf_gpt.data.corpus import Corpus
from hf_gpt.data.token_store import tokenize
from hf_gpt.data.tokenizer import load_tokenizer
text = "To be, or not to be. " * 50_000
for megabytes in (16, 64):
    corpus = Corpus("c", str(megabytes), False, lambda: itertools.repeat(text, megabytes))
    tokenize(corpus, load_tokenizer("bytes"))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_memory_does_not_grow_with_the_corpus():
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}  # else each thread keeps some of its own
    done = subprocess.run([sys.executable, "-c", PEAK], env=environment, check=True, capture_output=True, text=True)
    small, large = map(float, done.stdout.split())
    assert large - small < 40  # MiB; to hold the text would take 48 more, to hold the ids 96
