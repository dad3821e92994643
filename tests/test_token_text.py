"""Tokens as they are shown: printable whatever they are, and aligned whatever script they are in."""

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from hf_gpt import load_tokenizer, train_tokenizer
from hf_gpt.explain.token_text import aligned, show, show_token, spelled_together, token_bytes


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" the", "␣the"),
        ("\n\t", "⏎⇥"),
        ("\x1b[31m\r\x00\x7f", "\\x1b[31m\\r\\x00\\x7f"),
        ("a\u202e\u200b\ue000", "a\\u202e\\u200b\\ue000"),
        ("中文 é", "中文␣é"),
        ("e\u0301", "e\u0301"),
        ("\u0301e", "◌\u0301e"),
        ("<E4>", "<E4>"),
    ],
)
def test_what_cannot_be_seen_gets_a_sign(text, shown):
    assert show(text.encode()) == shown


def test_bytes_that_are_no_characters_are_shown_as_such():
    assert show(b" \xe4\xb8") == "␣<E4 B8>"
    assert show(b"\xad\xe4") == "<AD E4>"
    assert show(b"\xff\xfe a\x80") == "<FF FE>␣a<80>"
    for byte in range(256):
        assert show(bytes([byte])).isprintable()
        assert " " not in show(bytes([byte]))


def test_tokens_of_a_byte_level_vocabulary_are_their_bytes():
    text = "中文 text\n\x1b"
    for tokenizer in (load_tokenizer("bytes"), train_tokenizer([text * 20], 300)):
        ids = tokenizer(text).input_ids
        assert b"".join(token_bytes(tokenizer, token) for token in ids) == text.encode()
        assert show_token(tokenizer, tokenizer.eos_token_id) == "<|endoftext|>"
        assert show_token(tokenizer, 99_999) == "<id 99999>"


def test_tokens_of_a_sentencepiece_vocabulary_are_text():
    vocabulary = {"▁the": 0, "<0xE4>": 1, "x": 2}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="x")))
    assert [show_token(tokenizer, token) for token in range(3)] == ["␣the", "<E4>", "x"]


def test_tokens_that_spell_a_character_together_are_found():
    parts = [b"a", b"\xe4", b"\xb8\xad", b"\xff", b"b\xe4", b"\xb8", b"\xad\xe4"]
    assert spelled_together(parts) == [range(1), range(1, 3), range(3, 4), range(4, 7)]


def test_columns_are_aligned_with_wide_characters():
    lines = aligned([["中文", "1"], ["ab", "22"], ["e\u0301", "333"]], "<>")
    assert lines == ["中文    1", "ab     22", "e\u0301     333"]
    assert aligned([["a", "b"], ["ccc", ""]], "<<") == ["a    b", "ccc"]
