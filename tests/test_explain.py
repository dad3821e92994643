"""From logits to loss on a text: the book's figures, `cross_entropy`'s, and a page and a table that hold anything."""

import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from figures import published
from test_book_model import PROBABILITIES, book_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from hf_gpt import GPTConfig, GPTForCausalLM, UserError, load_tokenizer
from hf_gpt.cli import main
from hf_gpt.explain.page import DARK, DARK_TEXT, LIGHT, LIGHT_TEXT, LOSS_STEPS, loss_step, page
from hf_gpt.explain.scores import explain
from hf_gpt.explain.token_text import width


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=257, context_length=64, emb_dim=16, n_layers=1, n_heads=2, initializer_range=0.5, drop_rate=0.5
    )
    return GPTForCausalLM(config).eval(), load_tokenizer("bytes")


@pytest.mark.figures
def test_the_books_six_steps_come_out():
    """Chapter 5's two sentences, whose ids stand for themselves: no data needed."""
    words = {"every": 16833, " effort": 3626, " moves": 6100, " you": 345}
    words |= {"I": 40, " really": 1107, " like": 588, " chocolate": 11311}
    backend = Tokenizer(models.WordLevel(words))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    model = book_model(context_length=256).eval()
    found = [explain(model, tokenizer, text) for text in ("every effort moves you", "I really like chocolate")]
    tokens = [token for explanation in found for token in explanation.tokens[1:]]
    assert [token.probability for token in tokens] == [published(probability) for probability in PROBABILITIES]
    assert [token.alternatives[0].id for token in tokens] == [16657, 339, 42826, 49906, 29669, 41751]
    logs = ["-9.5042", "-10.3796", "-11.3677", "-11.4798", "-9.7764", "-12.2561"]
    assert [token.log_probability for token in tokens] == [published(log) for log in logs]
    mean = sum(explanation.mean for explanation in found) / 2
    assert mean == published("-10.7940")
    assert torch.tensor(-mean).exp().item() == pytest.approx(48725.82, abs=0.2)


def test_the_loss_is_cross_entropys_and_the_models(parts):
    model, tokenizer = parts
    text = "It was a dark, stormy night. 中文"
    found = explain(model, tokenizer, text)
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        outputs = model(ids, labels=ids)
    expected = outputs.loss.item()
    assert found.loss == pytest.approx(expected, abs=1e-6)
    assert found.cross_entropy == pytest.approx(expected, abs=1e-6)
    assert cross_entropy(outputs.logits[0, :-1], ids[0, 1:]).item() == pytest.approx(found.loss, abs=1e-6)
    assert found.perplexity == pytest.approx(outputs.loss.exp().item(), rel=1e-5)
    assert found.sum == pytest.approx(-expected * (ids.shape[1] - 1), rel=1e-6)
    probabilities = outputs.logits[0, :-1].softmax(dim=-1)
    for token, chances, target in zip(found.tokens[1:], probabilities, ids[0, 1:]):
        assert token.probability == pytest.approx(chances[target].item(), rel=1e-5)
        assert chances.argsort(descending=True)[token.rank - 1] == target
        assert token.loss == -token.log_probability
        assert [one.id for one in token.alternatives] == chances.topk(5).indices.tolist()


def test_a_model_in_training_is_explained_without_dropout(parts):
    model, tokenizer = parts
    before, state = explain(model, tokenizer, "Once"), torch.get_rng_state()
    model.train()
    assert explain(model, tokenizer, "Once") == before
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    model.eval()


def test_parts_of_a_character_say_of_which(parts):
    tokens = explain(*parts, "a中").tokens
    assert [token.described for token in tokens] == ["a", "<E4>, 1/3 of 中", "<B8>, 2/3 of 中", "<AD>, 3/3 of 中"]


@pytest.mark.parametrize(
    "text", ["plain words", "中文。你好", 'def f(x):\n\treturn "<b>" & x', "\x1b[2J\r\x00\u202e\ue000"]
)
def test_table_and_page_hold_any_text(parts, text):
    found = explain(*parts, text)
    table = found.table()
    lines = table.split("\n")
    assert len(lines) == len(found.tokens) + 1 + 1 + 5
    assert all(line.isprintable() for line in lines)
    id_ends = {width(lines[0][: lines[0].index("probability")]) - 2}
    for token, line in zip(found.tokens, lines[1:]):
        assert line.startswith(token.described)
        after = line.removeprefix(token.described)
        id_ends.add(width(token.described) + re.match(r" +\d+", after).end())
    assert len(id_ends) == 1, table
    seen = Seen()
    seen.feed(page(found, "<script>alert(1)</script>"))
    assert seen.tags.isdisjoint({"script", "link", "img", "iframe"})
    assert len(seen.titles) == len(found.tokens)
    assert not re.search(r"https?:|url\(|@import", page(found))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e\ue000]", page(found))


class Seen(HTMLParser):
    """The tags of a page and the titles of its tokens."""

    def __init__(self):
        super().__init__()
        self.tags, self.titles = set(), []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if "title" in dict(attributes):
            self.titles.append(dict(attributes)["title"])


def luminance(colour: str) -> float:
    """WCAG's relative luminance of `#rrggbb` or `#rgb`."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear))


def test_colours_can_be_read_and_their_order_seen_in_grey():
    for steps, falling in (([*zip(LIGHT, LIGHT_TEXT)], True), ([*zip(DARK, DARK_TEXT)], False)):
        assert len(steps) == len(LOSS_STEPS)
        for back, text in steps:
            dark, bright = sorted((luminance(back), luminance(text)))
            assert (bright + 0.05) / (dark + 0.05) >= 4.5, (back, text)
        backs = [luminance(back) for back, _ in steps]
        assert backs == sorted(backs, reverse=falling)
    assert [loss_step(loss) for loss in (0.0, 0.49, 0.5, 5.9, 10.0, 99.0)] == [0, 0, 1, 5, 8, 8]


def test_the_command_prints_a_table_or_json_and_writes_a_page(folder, tmp_path, capsys):
    file = tmp_path / "page.html"
    assert main(["explain", folder, "--text", "Once 中", "--html", str(file)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("token")
    assert "perplexity" in out
    assert err == f"page       {file}\n"
    assert "prefers-color-scheme: dark" in file.read_text(encoding="utf-8")
    assert main(["explain", folder, "--text", "Once 中", "--json", "--top", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"] == pytest.approx(found["cross_entropy"])
    assert found["tokens"][0]["loss"] is None
    assert [len(token["alternatives"]) for token in found["tokens"]] == [0, *[2] * 7]


def test_as_many_of_the_likeliest_tokens_are_shown_as_were_asked_for(folder, tmp_path, capsys):
    file = tmp_path / "page.html"
    assert main(["explain", folder, "--text", "Once", "--html", str(file), "--top", "8"]) == 0
    row = capsys.readouterr().out.split("\n")[2]
    assert len(re.findall(r"\S+ 0\.\d{3}(?:  |$)", row)) == 8
    assert file.read_text(encoding="utf-8").count('<span class="alternative">') == 3 * 8
    page = file.read_text(encoding="utf-8")
    assert f"of a text under {Path(folder).name}" in page  # by its name, and not by its place on this machine
    assert folder not in page


def test_a_token_that_is_markup_is_shown_as_text():
    words = {"<script>": 0, "&": 1, "x": 2}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words)))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model = GPTForCausalLM(GPTConfig(vocab_size=3, context_length=8, emb_dim=8, n_layers=1, n_heads=1)).eval()
    seen = Seen()
    seen.feed(page(explain(model, tokenizer, "<script> & <script> x")))
    assert "script" not in seen.tags
    assert any("<script>" in title for title in seen.titles)
    assert "&amp;" in page(explain(model, tokenizer, "<script> & x"))


def test_where_stdout_lacks_characters_they_are_spelled_out(folder, monkeypatch):
    def printed(*flags: str) -> bytes:
        out = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="latin-1", write_through=True))
        assert main(["explain", folder, "--text", "a 中", *flags]) == 0
        return out.getvalue()

    assert b"\\u2423" in printed()
    assert json.loads(printed("--json"))["text"] == "a 中"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "^text: it is 0 tokens; give at least 2"),
        ("a", "it is 1 token; give at least 2"),
        ("ab" * 40, r"it is 80 tokens, and the model has 64 positions; give about its first 64 characters"),
        ("\udcff", "not UTF-8"),
    ],
)
def test_what_cannot_be_explained_is_refused_in_one_line(parts, text, message):
    with pytest.raises(UserError, match=message) as refused:
        explain(*parts, text)
    assert "\n" not in str(refused.value)


def test_a_page_that_could_not_be_written_is_refused_before_the_work(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["explain", folder, "--text", "Once", "--html", str(tmp_path)]) == 2
    assert main(["explain", folder, "--text", "Once", "--html", str(tmp_path / "file" / "page.html")]) == 2
    assert main(["explain", folder, "--text", "Once", "--top", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 3
