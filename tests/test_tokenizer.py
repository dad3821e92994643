"""Tokenizers of every origin: equal to tiktoken, saved for everybody, known by their content, refused in one line."""

import copy
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import stock_tokenizers
import tiktoken
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from hf_gpt.data import encoding
from hf_gpt.data import tokenizer as tokenizer_module
from hf_gpt.data.encoding import encoder_of
from hf_gpt.data.tokenizer import (
    END_OF_TEXT,
    fingerprint,
    load_tokenizer,
    save_tokenizer,
    separator_id,
    train_tokenizer,
    vocab_size,
)
from hf_gpt.errors import UserError

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


def test_gpt2_is_downloaded_with_a_time_limit(gpt2, tmp_path, monkeypatch):
    """tiktoken's own download has none. What is here already is not asked for."""
    asked = []

    def answer(url, timeout):
        asked.append((url.rpartition("/")[2], timeout))
        content = Path(os.environ["HF_GPT_TEST_DATA"], "tiktoken", hashlib.sha1(url.encode()).hexdigest()).read_bytes()
        return SimpleNamespace(content=content, raise_for_status=lambda: None)

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "new"))
    monkeypatch.setenv("HF_GPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})  # what this process has loaded
    monkeypatch.setattr("requests.get", answer)
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: True)
    with pytest.raises(UserError, match="cannot be downloaded"):
        load_tokenizer("gpt2")
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    for _ in range(2):
        assert load_tokenizer("gpt2").get_vocab() == gpt2.get_vocab()
        assert asked == [("vocab.bpe", 10), ("encoder.json", 10)]


@pytest.fixture(scope="module")
def bytewise():
    return load_tokenizer("bytes")


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(CORPUS, 320)


@pytest.fixture(scope="module", params=["gpt2", "bytewise", "trained"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module", params=["gpt2", "bytewise"])
def saved_and_original(request, tmp_path_factory):
    """The tokenizer as a bare AutoTokenizer loads it, the tiktoken encoding that it was made from, and its encoder."""
    made = request.getfixturevalue(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    made.save_pretrained(folder)
    if request.param == "gpt2":
        encoding = tiktoken.get_encoding("gpt2")
    else:
        ranks = {bytes([byte]): byte for byte in range(256)}
        encoding = tiktoken.Encoding("b", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 256})
    saved = AutoTokenizer.from_pretrained(folder)
    return saved, encoding, encoder_of(saved)


def ordinary(tokenizer, text):
    return tokenizer(text, split_special_tokens=True)["input_ids"]


def reloaded(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    return load_tokenizer(str(folder))


def run_python(code, *arguments, folder, **environment):
    """Runs `code` in a fresh process that has no network and does not know where this one caches things."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TIKTOKEN", "RAYON", "DATA_GYM"))}
    nowhere = dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"), "http://127.0.0.1:9")
    environment = {**outside, **nowhere, "HF_HOME": str(folder), **environment}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=500)


@examples
@given(unicode_text)
@example("天地 e\u0301 👩‍👩‍👧‍👦 \r \x00\x1b\u200d\ufffe " + END_OF_TEXT + " end")
def test_the_saved_tokenizer_equals_tiktoken(saved_and_original, text):
    saved, encoding, encoder = saved_and_original
    assert saved(text)["input_ids"] == encoding.encode(text, allowed_special="all")
    ids = encoding.encode_ordinary(text)
    assert ordinary(saved, text) == ids == encoder.encode([text])[0].tolist()
    assert saved.decode(saved(text)["input_ids"]) == text


@pytest.mark.parametrize("unit", ["a", "好", "ab", "e\u0301", "\r", " ", "!", "\U0001f600"])
def test_the_saved_tokenizer_equals_tiktoken_on_100_kb_without_a_break(saved_and_original, unit):
    saved, encoding, encoder = saved_and_original
    text = unit * (100_000 // len(unit.encode()))
    ids = encoding.encode_ordinary(text)
    assert saved(text)["input_ids"] == ids == encoder.encode([text])[0].tolist()
    assert saved.decode(ids) == text


def test_threads_encode_at_once_each_with_a_tiktoken_of_its_own(gpt2):
    encoder, meet = encoder_of(gpt2), threading.Barrier(3)

    def ids_and_encoding(text):
        meet.wait()
        ids = encoder.encode([text, text[1:]])
        (tiktoken_of_thread, *_) = encoder._encode.args
        return [some.tolist() for some in ids], tiktoken_of_thread.encoding

    texts = [text * 500 for text in CORPUS]
    with ThreadPoolExecutor(3) as pool:
        ids, encodings = zip(*pool.map(ids_and_encoding, texts))
    assert ids == tuple([ordinary(gpt2, text), ordinary(gpt2, text[1:])] for text in texts)
    assert len({id(encoding) for encoding in encodings}) == 3


def test_split_special_tokens_is_a_choice_at_loading_too(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, split_special_tokens=True)
    assert loaded(END_OF_TEXT)["input_ids"] == ordinary(trained, END_OF_TEXT) != [loaded.eos_token_id]


@examples
@given(unicode_text)
def test_text_survives_encoding_and_decoding(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.decode(ordinary(tokenizer, text)) == text


def test_gpt2_is_the_published_vocabulary(gpt2):
    assert gpt2("Every effort moves you")["input_ids"] == [6109, 3626, 6100, 345]
    assert (len(gpt2), gpt2.eos_token_id, gpt2.bos_token_id, gpt2.pad_token) == (50257, 50256, 50256, None)


def test_a_byte_is_its_own_id(bytewise):
    assert ordinary(bytewise, "aé") == list("aé".encode())
    assert (len(bytewise), separator_id(bytewise)) == (257, 256)


def test_a_fingerprint_is_of_what_determines_the_ids(tokenizer, trained, bytewise, tmp_path):
    mark = fingerprint(tokenizer)
    again = reloaded(tokenizer, tmp_path)
    assert fingerprint(again) == mark
    again.model_max_length = 7
    again.pad_token = again.eos_token
    again(["a b c", "a"], padding=True, truncation=True)
    assert fingerprint(again) == mark
    again.add_tokens(["entirely new"])
    assert fingerprint(again) != mark
    others = [bytewise, trained, train_tokenizer(CORPUS, 319), train_tokenizer(CORPUS[:2], 320)]
    assert len({fingerprint(other) for other in others}) == 4


def test_a_bare_autotokenizer_loads_it_without_this_package(trained, tmp_path):
    trained.model_max_length = 256
    for name, extra in (("model", {}), ("with_code", {"auto_map": {"AutoConfig": "configuration_gpt.GPTConfig"}})):
        trained.save_pretrained(tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "hf_gpt", **extra}))
    code = """
import json, sys, warnings
sys.modules["hf_gpt"] = None  # importing it would fail
warnings.simplefilter("error")
from transformers import AutoTokenizer
for folder in sys.argv[1:]:
    t = AutoTokenizer.from_pretrained(folder)
    both = t("times " + t.eos_token)
    print(json.dumps([dict(both), t.decode(both["input_ids"]), t.model_max_length, t.is_fast]))
"""
    # The wait for an answer about the custom code, which is the model's, would end at once: there is no terminal.
    done = run_python(code, tmp_path / "model", tmp_path / "with_code", folder=tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    ids = trained(f"times {END_OF_TEXT}")["input_ids"]
    expected = [{"input_ids": ids, "attention_mask": [1] * len(ids)}, f"times {END_OF_TEXT}", 256, True]
    answers = [line for line in done.stdout.splitlines() if "input_ids" in line]
    assert [json.loads(line[line.index("[{") :]) for line in answers] == [expected] * 2
    # Nothing is said about the tokenizer; of the model, that its type is unknown here.
    said = [line for line in done.stderr.splitlines() if line.strip()]
    assert all("model of type `hf_gpt`" in line for line in said), done.stderr


def test_training_depends_on_the_texts_alone(monkeypatch):
    texts = [f"{text} {i} {i * 37 % 11}" for i, text in enumerate(CORPUS * 20)]
    marks = {fingerprint(train_tokenizer(order, 310)) for order in (texts, iter(texts), texts[::-1])}
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert marks == {fingerprint(train_tokenizer(texts, 310))}


def test_a_trained_vocabulary_has_the_size_asked_for_and_ends_with_the_separator(trained):
    assert (len(trained), vocab_size(trained), separator_id(trained)) == (320, 320, 319)
    assert trained.eos_token_id == trained.bos_token_id == 319
    assert len(train_tokenizer([], 1000)) == 257  # nothing to merge
    assert len(train_tokenizer(CORPUS, 257)) == 257
    assert len(ordinary(trained, " times")) == 1  # a common word became one token


def test_long_texts_are_cut_for_training_without_changing_the_result():
    part = " " + CORPUS[0].strip()
    assert fingerprint(train_tokenizer([part * 1000], 320)) == fingerprint(train_tokenizer([part] * 1000, 320))


def test_gpt2_is_read_from_tiktoken_once(gpt2, tmp_path, monkeypatch):
    """Then it is in the cache, and the same: also its fingerprint, which is kept too."""
    monkeypatch.setenv("HF_GPT_CACHE", str(tmp_path / "cache"))
    first = load_tokenizer("gpt2")
    prints = fingerprint(first), fingerprint(first)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    again = load_tokenizer("gpt2")
    assert again.backend_tokenizer.to_str() == first.backend_tokenizer.to_str() == gpt2.backend_tokenizer.to_str()
    monkeypatch.setenv("HF_GPT_CACHE", str(tmp_path / "other"))
    assert {*prints, fingerprint(again)} == {fingerprint(gpt2)}


def test_without_network_and_cache_the_refusal_is_one_line_with_the_ways_out(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("HF_GPT_CACHE", str(tmp_path))
    for proxy in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    with pytest.raises(UserError) as refused:
        load_tokenizer("gpt2")
    assert "\n" not in str(refused.value)
    assert all(way in str(refused.value) for way in ("TIKTOKEN_CACHE_DIR", "bytes", "train: {vocab_size: 4096}"))


def test_offline_means_that_no_download_is_tried(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("HF_GPT_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", None)  # a connection would now be a TypeError
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set.* TIKTOKEN_CACHE_DIR"):
        load_tokenizer("gpt2")
    with pytest.raises(UserError, match="'some/thing': no such file or directory, and it cannot be downloaded"):
        load_tokenizer("some/thing")


def test_a_hub_id_is_loaded_from_the_hubs_cache(trained, tmp_path, monkeypatch):
    repository = tmp_path / "models--someone--tiny"
    trained.save_pretrained(repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    for revision in ("main", "v1"):
        (repository / "refs" / revision).write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fingerprint(load_tokenizer("someone/tiny")) == fingerprint(trained)
    loaded = load_tokenizer("someone/tiny", revision="v1")
    loaded.save_pretrained(tmp_path / "again")
    assert str(tmp_path) not in (tmp_path / "again" / "tokenizer_config.json").read_text()
    with pytest.raises(UserError, match="'someone/tiny': no such file or directory, and"):
        load_tokenizer("someone/tiny", revision="v2")


@pytest.mark.parametrize("vocab", [256, 0, -1])
def test_a_vocabulary_without_room_for_the_bytes_is_refused(vocab):
    with pytest.raises(UserError, match=rf"vocab_size {vocab} is too small .* 257"):
        train_tokenizer(CORPUS, vocab)


@pytest.mark.parametrize(
    ("files", "named", "says"),
    [
        ({}, "missing/", "no such file or directory"),
        ({}, "missing.json", "no such file or directory"),
        ({}, ".", "cannot be loaded"),
        ({"config.json": {"model_type": "hf_gpt"}}, ".", "cannot be loaded"),
        ({"config.json": {"model_type": "gpt2"}}, ".", "has no vocabulary"),
        ({"tokenizer.json": {"hello": 1}}, ".", "cannot be loaded"),
        ({"tokenizer.json": {"hello": 1}}, "tokenizer.json", "is not a tokenizer.json"),
        (
            {
                "vocab.json": {"<unk>": 0, "a": 1, "b</w>": 2, "ab</w>": 3},
                "merges.txt": "#version: 0.2\na b</w>\n",
                "tokenizer_config.json": {"tokenizer_class": "CTRLTokenizer"},
            },
            ".",
            "CTRLTokenizer, which has no fast version",
        ),
        (
            {"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}, "evil.py": "1 / 0"},
            ".",
            "cannot be loaded",
        ),
    ],
)
def test_what_is_no_fast_tokenizer_ends_in_one_line(tmp_path, files, named, says):
    for name, content in files.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=re.escape(says)) as refused:
        load_tokenizer(str(tmp_path / named))
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_only_a_hub_id_has_revisions(tmp_path):
    for name in ("bytes", "gpt2", str(tmp_path)):
        with pytest.raises(UserError, match="has no revisions"):
            load_tokenizer(name, revision="main")


def test_the_separator_falls_back_to_eos_then_to_none(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    bare = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert separator_id(bare) is None
    unmarked = fingerprint(bare)
    bare.eos_token = "!"
    assert separator_id(bare) == bare.convert_tokens_to_ids("!")
    assert fingerprint(bare) != unmarked


# Encoding -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return encoder_of(tokenizer)


def encoded(tokenizer, text):
    return encoder_of(tokenizer).encode([text])[0].tolist()


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
    assert encoded(tokenizer, broken) == encoded(tokenizer, repaired)
    normalized = train_tokenizer(CORPUS, 300)
    normalized.backend_tokenizer.normalizer = normalizers.NFC()
    assert encoded(normalized, broken) == encoded(normalized, repaired)
    train_tokenizer([broken], 300)


def test_a_tokenizer_that_changes_is_read_again():
    tokenizer = train_tokenizer(CORPUS, 320)
    marks, ids = {fingerprint(tokenizer)}, encoded(tokenizer, "the times")
    assert encoded(tokenizer, "THE times") != ids
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert encoded(tokenizer, "THE times") == ids
    marks.add(fingerprint(tokenizer))
    tokenizer.add_tokens(["times"])
    assert encoded(tokenizer, "the times")[-1] == 320
    assert (encoder_of(tokenizer).safe_cuts, vocab_size(tokenizer)) == ("never", 321)
    assert len(marks | {fingerprint(tokenizer)}) == 3


@pytest.mark.parametrize(("highest", "dtype"), [(2**16 - 1, np.uint16), (2**16, np.uint32)])
def test_the_dtype_is_the_smallest_that_holds_every_id(trained, highest, dtype):
    assert encoder_of(trained).dtype == np.uint16
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": highest}, "a")))
    assert (vocab_size(words), encoder_of(words).dtype) == (highest + 1, dtype)  # whatever the number of words
    assert encoded(words, "b") == [highest]


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
    whole = encoded(trained, text)
    for place in re.finditer(r"(?<=\S)(?=[ \t\n\r\u00a0\u3000\u2028\x85])", text):
        assert encoded(trained, text[: place.start()]) + encoded(trained, text[place.start() :]) == whole


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
        assert encoded(loaded, CORPUS[0] + END_OF_TEXT) == encoder.encode([CORPUS[0] + END_OF_TEXT])[0].tolist()
        assert separator_id(loaded) == separator_id(tokenizer)


def test_a_bpe_that_tiktoken_cannot_repeat_keeps_its_own_ids(trained, tmp_path):
    """Merges in another order than the ids, as an edited or foreign vocabulary may have them."""
    trained.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["merges"].reverse()
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    edited = load_tokenizer(str(tmp_path))
    texts = [*CORPUS, f"the {END_OF_TEXT} times"]
    ids = [encoded(edited, text) for text in texts]
    assert ids == [edited(text, split_special_tokens=True)["input_ids"] for text in texts]
    assert ids != [encoded(trained, text) for text in texts]  # or the edit would have been none


def test_a_tokenizer_saved_as_gpt2s_class_is_recognised(trained, tmp_path, monkeypatch):
    """As the repositories of GPT-2 and its kin have it: `vocab.json` and `merges.txt`."""
    model = json.loads(trained.backend_tokenizer.to_str())["model"]
    vocab = {**model["vocab"], END_OF_TEXT: len(model["vocab"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in model["merges"]) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    monkeypatch.setattr(encoding, "_encode_with_backend", None)
    loaded = load_tokenizer(str(tmp_path))
    assert encoded(loaded, CORPUS[1]) == encoded(trained, CORPUS[1])
    assert fingerprint(reloaded(loaded, tmp_path / "again")) == fingerprint(loaded)


# Saving -------------------------------------------------------------------------------------------------------------

ONLY_IN_TRANSFORMERS_5 = {"extra_special_tokens", "backend", "is_local", "local_files_only"}


@pytest.mark.parametrize("kind", ["bytes", "trained", "loaded again"])
def test_what_is_saved_opens_in_transformers_4_too(kind, trained, tmp_path):
    tokenizer = trained if kind == "trained" else load_tokenizer("bytes")
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    if kind == "loaded again":
        save_tokenizer(tokenizer, tmp_path / "before")
        tokenizer = load_tokenizer(str(tmp_path / "before"))
    save_tokenizer(tokenizer, tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["additional_special_tokens"] == ["<|user|>"]
    assert not ONLY_IN_TRANSFORMERS_5 & set(config)
    for model_type in ("gpt2", "llama"):  # which has a tokenizer class of its own
        (tmp_path / "saved" / "config.json").write_text(json.dumps({"model_type": model_type}))
        loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
        assert fingerprint(loaded) == fingerprint(tokenizer)
        assert loaded.extra_special_tokens == ["<|user|>"]
        assert loaded("1 2 3 <|user|>").input_ids == tokenizer("1 2 3 <|user|>").input_ids


def test_a_tokenizer_of_a_class_of_its_own_keeps_it(tmp_path):
    vocab = {character: i for i, character in enumerate(["<s>", "</s>", "<unk>", "▁", "a", "b", "▁a"])}
    tokenizer = LlamaTokenizer(vocab=vocab, merges=[("▁", "a")], extra_special_tokens=["<|user|>"])
    save_tokenizer(tokenizer, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "LlamaTokenizer"
    assert not ONLY_IN_TRANSFORMERS_5 & set(config)
    assert load_tokenizer(str(tmp_path))("ab a<|user|>").input_ids == tokenizer("ab a<|user|>").input_ids


def test_a_tokenizer_from_the_hub_does_the_same_after_it_was_saved(tmp_path):
    """In a process without this package: ids, special tokens, chat templates."""
    folders = [stock_tokenizers.write(kind, tmp_path / kind) for kind in stock_tokenizers.KINDS]
    for folder in folders:
        save_tokenizer(load_tokenizer(str(folder)), tmp_path / "saved" / folder.name)
    command = [sys.executable, "-c", stock_tokenizers.READ, *folders, *(tmp_path / "saved" / f.name for f in folders)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    texts = json.dumps(stock_tokenizers.TEXTS)
    done = subprocess.run(command, input=texts, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for folder, before, after in zip(folders, found, found[len(folders) :], strict=False):
        assert after == before, folder.name
        config = json.loads((folder / "tokenizer_config.json").read_text())
        saved = json.loads((tmp_path / "saved" / folder.name / "tokenizer_config.json").read_text())
        assert "auto_map" not in saved
        kept = {"add_bos_token", "add_eos_token", "legacy"} & set(config)
        assert {name: saved[name] for name in kept} == {name: config[name] for name in kept}
        starts, ends = before["ids"][0][0] == 1, before["ids"][0][-1] == 2
        if config["tokenizer_class"].startswith("Llama"):
            assert (starts, ends) == (config["add_bos_token"], config["add_eos_token"])
    assert [name for name, _ in found[-4]["chats"]] == ["default", "tool_use"]
    assert found[-4]["chats"][1][1].startswith("Tools:\n<|im_start|>user\nhi there<|im_end|>\n")


def test_every_tokenizer_is_saved_by_save_tokenizer():
    package = Path(tokenizer_module.__file__).parent.parent
    found = [path.name for path in package.rglob("*.py") if "tokenizer.save_pretrained(" in path.read_text()]
    assert found == ["tokenizer.py"]


# Text without a place to cut ----------------------------------------------------------------------------------------

WITHOUT_END = (" ", "\n", " \n", "\t\r\n", "\u3000", "a", "ACGT", "9", "!", "好", "e\u0301", "\x1c")


def test_text_without_end_is_encoded_as_by_the_backend(tokenizer, encoder):
    texts = [unit * (20_000 // len(unit)) for unit in WITHOUT_END] + ["\n" * 1_100_000 + "x"]
    for text in (*texts, *(f"x{text}'s" for text in texts[:-1])):
        expected = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        assert encoder.encode([text, "and"])[0].tolist() == expected, text[:9]


def test_words_without_end_are_cut_for_training():
    """Else the trainer would take minutes for a megabyte. Only such words are: others count as they always did."""
    letters = "".join(random.Random(0).choices("ACGT", k=2500))
    in_parts = [letters[:1000], letters[1000:2000], letters[2000:]]
    for before, after in (("the cat,", " the hat"), ("12", "!?"), ("天地玄黃、" * 300, "、天地玄黃" * 300)):
        whole = train_tokenizer([before + letters + after], 320)
        assert fingerprint(whole) == fingerprint(train_tokenizer([before, *in_parts, after], 320))
    for unit in ("a", "\n", "ACGT"):
        assert vocab_size(train_tokenizer([unit * (10**6 // len(unit))], 300)) > 257
    almost = ("A" * 998 + "天" + "1" * 1000 + " " * 1000 + "!" * 999 + "x") * 2
    not_cut = fingerprint(train_tokenizer([almost], 320))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "_cut_long_words", lambda text: [text])
        assert fingerprint(train_tokenizer([almost], 320)) == not_cut
