"""bits_per_byte divides by the UTF-8 bytes of the very text that was evaluated."""

import dataclasses
import math
from pathlib import Path

import pytest

import hf_gpt
from hf_gpt.data.corpus import load_corpora
from hf_gpt.data.token_store import tokenize
from hf_gpt.evaluation import bits_per_byte, targets_and_bytes
from hf_gpt.recipe import DataRecipe
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
