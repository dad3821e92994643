"""Whatever happens to a file of the cache, tokenizers and tokens are exactly the right ones, and it is mended."""

import itertools
import json
import multiprocessing
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from hf_gpt.data import corpus, token_store
from hf_gpt.data.corpus import load_corpora
from hf_gpt.data.token_store import tokenize
from hf_gpt.data.tokenizer import content_of
from hf_gpt.errors import UserError
from hf_gpt.recipe import DataRecipe, TokenizerRecipe
from hf_gpt.training.data import _tokenizer

FORK = multiprocessing.get_context("fork")
SOURCES = ("a.txt", "b.jsonl")


@pytest.fixture
def prepared(tmp_path, monkeypatch) -> Callable[[], list]:
    """Prepares a text and a table, as a run does, in a cache with everything in it. Returns what a run sees."""
    monkeypatch.setenv("HF_GPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text("the cat and the hat, 東京. " * 90)
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": f"row {i}, in Köln"}) + "\n" for i in range(90)))
    for name in SOURCES:
        os.utime(tmp_path / name, (1e9, 1e9))  # long enough ago for their hashes to be kept

    def prepare() -> list:
        seen = []
        for name in SOURCES:
            corpora = load_corpora(DataRecipe(source=str(tmp_path / name), validation_fraction=0.25))
            tokenizer = _tokenizer(TokenizerRecipe(train={"vocab_size": 290}), corpora[0])
            seen.append((content_of(tokenizer), tokenizer("the Köln")["input_ids"], tokenizer.eos_token))
            for part in corpora:
                store = tokenize(part, tokenizer)
                assert store.tokens.dtype == np.uint16
                counts = store.num_characters, store.num_bytes, store.num_documents, store.separator_id
                seen.append((store.path.name, store.tokens.tolist(), counts))
        return seen

    prepare()
    return prepare


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files_of(folder)}


def flip(path: Path, where: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[where.randrange(len(content))] ^= 1 << where.randrange(8)
    path.write_bytes(content)


def change_a_digit(path: Path, where: random.Random) -> None:
    """A value that is still one, in JSON that is still valid."""
    content = bytearray(path.read_bytes())
    digits = [at for at, byte in enumerate(content) if chr(byte).isdigit()] or [0]
    at = where.choice(digits)
    content[at] = ord(str((content[at] + 1) % 10))
    path.write_bytes(content)


def same_size_and_time(path: Path, where: random.Random) -> None:
    before = path.stat()
    content = path.read_bytes()
    path.write_bytes(content[1:] + content[:1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def make_folder(path: Path, where: random.Random) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


def make_pipe(path: Path, where: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def dangle(path: Path, where: random.Random) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def written(content: str, path: Path, where: random.Random) -> None:
    path.write_text(content)


MUTATIONS = {
    "flip": flip,
    "digit": change_a_digit,
    "rotated": same_size_and_time,
    "cut": lambda path, where: os.truncate(path, where.randrange(path.stat().st_size)),
    "longer": lambda path, where: path.write_bytes(path.read_bytes() + b"\0\0"),
    "gone": lambda path, where: path.unlink(),
    "folder": make_folder,
    "dangling": dangle,
    "pipe": make_pipe,
    **{name: partial(written, name) for name in ("", "null", "[]", "{}", '{"checksum": 1}', "[" * 100_000)},
}


@pytest.mark.parametrize("seed", [0])
def test_whatever_happens_to_one_file_a_run_sees_the_same(prepared, tmp_path, capsys, seed):
    expected, good = prepared(), contents(tmp_path / "cache")
    capsys.readouterr()
    assert {name.split("/")[0] for name in good} == {"notes", "tokens-2", "tokenizers"}
    where = random.Random(seed)
    for number, name in enumerate(good):
        # Each file meets half of the mutations; files that are alike (notes, stores of another text) meet the others.
        for mutation in list(MUTATIONS)[number % 2 :: 2]:
            MUTATIONS[mutation](tmp_path / "cache" / name, where)
            assert prepared() == expected, (mutation, name)
            said = capsys.readouterr().err.splitlines()
            assert len(said) <= 1, said
            # A note that is not there, or looks as an earlier version wrote it, is found out again without a word.
            if not name.startswith("notes/"):
                assert said[0].startswith(f"cache: {name.rpartition('/')[0]}: "), (mutation, name)
            assert contents(tmp_path / "cache") == good, (mutation, name)


def test_entries_and_files_that_change_places_are_noticed(prepared, tmp_path):
    cache = tmp_path / "cache"
    expected, good = prepared(), contents(cache)
    notes, stores, tokenizers = (sorted(p for p in cache.glob(f"{kind}/*") if p.suffix != ".lock") for kind in KINDS)
    files = [sorted(cache.glob(f"tokens/*/{name}")) for name in ("tokens.bin", "entry.json", "shards.jsonl")]
    for places in (notes, stores, tokenizers, *files):
        for a, b in itertools.pairwise(places):
            a.rename(tmp_path / "aside")
            b.rename(a)
            (tmp_path / "aside").rename(b)
            assert prepared() == expected, (a, b)
            assert contents(cache) == good, (a, b)


KINDS = ("notes", "tokens-2", "tokenizers")


def test_a_file_too_many_is_noticed(prepared, tmp_path):
    expected, good = prepared(), contents(tmp_path / "cache")
    for folder in [path.parent for path in (tmp_path / "cache").glob("to*/*/entry.json")]:
        for name, content in {
            "added_tokens.json": '{"the": 9}',
            "special_tokens_map.json": '{"eos_token": "a"}',
        }.items():
            (folder / name).write_text(content)
        assert prepared() == expected
        assert contents(tmp_path / "cache") == good


def test_what_stands_in_the_way_is_replaced(prepared, tmp_path):
    cache = tmp_path / "cache"
    expected, good = prepared(), contents(cache)
    for path in [p for kind in KINDS[1:] for p in (cache / kind).iterdir()]:
        is_lock = path.suffix == ".lock"
        path.unlink() if is_lock else shutil.rmtree(path)
        if is_lock:  # and the entry has to be made again
            path.mkdir()
            shutil.rmtree(path.with_suffix(""))
        else:
            path.write_text("a file")
            path.with_suffix(".part").write_text("another")
        assert prepared() == expected, path
        (cache / "tokenizers" / path.name).with_suffix(".part").unlink(missing_ok=True)
        assert contents(cache) == good, path


def test_an_unfinished_store_of_another_text_is_not_continued(prepared, tmp_path, monkeypatch):
    """Its shards are whole, but the ids are others."""
    monkeypatch.setattr(token_store, "_SHARD", 100)
    expected = prepared()
    stores = sorted(p for p in (tmp_path / "cache" / "tokens-2").iterdir() if p.is_dir())
    for a, b in itertools.pairwise(stores):
        shutil.rmtree(a)
        shutil.copytree(b, a.with_suffix(".part"))
        assert prepared() == expected


def test_an_unfinished_store_with_other_counts_is_not_continued(prepared, tmp_path, monkeypatch):
    expected = prepared()
    store = next(p for p in (tmp_path / "cache" / "tokens-2").iterdir() if p.is_dir())
    for count in ("num_tokens", "num_characters", "num_bytes", "num_documents"):
        for value in (0, 1, 10**400, 1e400, -5, None):
            part = store.rename(store.with_suffix(".part"))
            line = json.loads((part / "shards.jsonl").read_text())
            (part / "shards.jsonl").write_text(json.dumps({**line, count: value}) + "\n")
            assert prepared() == expected, (count, value)


def test_a_store_cut_at_another_place_does_not_outlive_the_note_that_said_so(prepared, tmp_path, monkeypatch):
    """As where a note was changed by hand and mended again, whatever let it through."""
    expected, good = prepared(), contents(tmp_path / "cache")
    for path in (tmp_path / "cache" / "tokens-2").iterdir():
        path.unlink() if path.suffix == ".lock" else shutil.rmtree(path)
    recipe = DataRecipe(source=str(tmp_path / "a.txt"), validation_fraction=0.25)
    tokenizer = _tokenizer(TokenizerRecipe(train={"vocab_size": 290}), load_corpora(recipe)[0])
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "_num_characters", lambda text: 1000)
        assert tokenize(load_corpora(recipe)[0], tokenizer).num_characters == 750
    assert prepared() == expected
    assert contents(tmp_path / "cache") == good


def test_a_text_that_cannot_be_read_costs_no_store(prepared, tmp_path, monkeypatch):
    expected, good = prepared(), contents(tmp_path / "cache")

    def unreadable(text):
        raise UserError("a.txt: cannot be read")

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "_num_characters", unreadable)
        with pytest.raises(UserError, match="cannot be read"):
            prepared()
    assert contents(tmp_path / "cache") == good
    assert prepared() == expected


# Leftovers and places -----------------------------------------------------------------------------------------------


def test_leftovers_are_removed_when_they_are_old_and_nobodys(prepared, tmp_path):
    cache, gone = tmp_path / "cache", dead_process()
    age = {"new": time.time(), "old": time.time() - 30 * 86_400}
    old_but_held, lock = cache / "tokens-2" / "held.part", FileLock(cache / "tokens-2" / "held.lock")
    left = {
        (when, who, kind): cache / kind / f".writing-{process}-{when}{who}{suffix}"
        for when in age
        for who, process in (("dead", gone), ("alive", os.getppid()))
        for kind, suffix in (("notes", ".json"), ("tokenizers", ""), ("models", ""))
    }
    left |= {(when, "dead", "part"): cache / "tokens-2" / f"{when}.part" for when in age}
    left[("old", "alive", "part")] = old_but_held
    left[("old", "dead", "earlier")] = cache / "notes" / f"abc.{gone}.part"
    for (when, _, kind), path in left.items():
        path.parent.mkdir(exist_ok=True)
        if kind in ("notes", "earlier"):
            path.write_text("{")
        else:
            path.mkdir()
            (path / "file").write_text("x")
            os.utime(path / "file", (age[when], age[when]))
        os.utime(path, (age[when], age[when]))
    with lock:
        next(p for p in (cache / "tokens-2").iterdir() if (p / "entry.json").is_file()).rename(tmp_path / "away")
        prepared()
    for (when, who, kind), path in left.items():
        # A number that was given to another process since is nobody's.
        is_reused = who == "alive" and kind != "part" and when == "old"
        assert path.exists() == (when == "new" or (who == "alive" and not is_reused)), (when, who, kind)


def dead_process() -> int:
    process = FORK.Process(target=int)
    process.start()
    process.join()
    return process.pid


def test_a_full_cache_that_cannot_be_written_is_enough(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "SOURCES", ("a.txt",))  # `datasets` writes files of its own
    expected = prepared()

    def refuse(*arguments, **options):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        for name in ("mkdir", "write_text", "rename", "replace", "unlink"):
            patch.setattr(Path, name, refuse)
        assert prepared() == expected
        for note in os.listdir(tmp_path / "cache" / "notes"):
            os.remove(tmp_path / "cache" / "notes" / note)
        assert prepared() == expected  # what cannot be kept is found out each time
        os.remove(next((tmp_path / "cache").glob("tokens-2/*/tokens.bin")))
        with pytest.raises(UserError, match=r"tokens-2 cannot be written: Read-only file system; set HF_GPT_CACHE$"):
            prepared()


def test_six_processes_at_once_on_an_empty_cache(tiny, forks, tmp_path):
    os.utime(tiny["data"]["source"], (1e9, 1e9))
    (tmp_path / "recipe.yaml").write_text(json.dumps({**tiny, "tokenizer": {"train": {"vocab_size": 300}}}))

    def started(cache: str):
        return forks.start("tokenize", tmp_path / "recipe.yaml", env={"HF_GPT_CACHE": str(tmp_path / cache)})

    alone, commands = started("alone"), [started("shared") for _ in range(6)]
    assert [command.wait() for command in (alone, *commands)] == [0] * 7
    assert {command.printed for command in commands} == {alone.printed}
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
