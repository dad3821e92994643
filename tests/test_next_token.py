"""What temperature, top-k and top-p make of the next token: the book's draws, and what `generate()` samples from."""

import itertools
import json

import pytest
import torch
from figures import published
from PIL import Image
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from hf_gpt import GPTConfig, GPTForCausalLM, UserError, generate_text
from hf_gpt.cli import main
from hf_gpt.explain.chart import chart, missing_characters
from hf_gpt.explain.decoding import NextToken, compare, count_draws, distribution, next_token_logits
from hf_gpt.explain.scores import explain
from hf_gpt.generation import _request
from hf_gpt.report import fonts

BOOK_LOGITS = torch.tensor([4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79])
BOOK_WORDS = ["closer", "every", "effort", "forward", "inches", "moves", "pizza", "toward", "you"]


def next_token_distribution(model, tokenizer, prompt: str, *settings, **others) -> NextToken:
    return distribution(next_token_logits(model, tokenizer, prompt), *settings, **others)


def drawn(counts: torch.Tensor) -> dict[str, int]:
    return {word: count for word, count in zip(BOOK_WORDS, counts.tolist()) if count}


@pytest.mark.figures
def test_the_books_thousand_draws():
    counts = count_draws(distribution(BOOK_LOGITS).probabilities, 1000, seed=123)
    assert drawn(counts) == {"closer": 73, "forward": 582, "inches": 2, "toward": 343}


@pytest.mark.figures
def test_the_books_top_three():
    found = distribution(BOOK_LOGITS, top_k=3)
    kept = found.probabilities[found.kept].tolist()
    assert kept == [published(probability) for probability in ("0.0615", "0.5775", "0.3610")]
    assert [word for word, kept in zip(BOOK_WORDS, found.kept) if kept] == ["closer", "forward", "toward"]


@pytest.mark.figures
def test_eight_logits_drawn_from_a_seed():
    with torch.random.fork_rng():
        torch.manual_seed(123)
        logits = torch.normal(0.0, 4.0, (8,))
    assert count_draws(distribution(logits).probabilities, 100, 123).tolist() == [11, 31, 7, 4, 0, 46, 1, 0]
    top = count_draws(distribution(logits, top_k=3).probabilities, 100, 123)
    assert [count for count in top.tolist() if count] == [13, 34, 53]


def test_the_books_temperatures():
    for temperature in (0.1, 1.0, 5.0):
        found = distribution(BOOK_LOGITS, temperature).probabilities
        assert torch.equal(found, (BOOK_LOGITS / temperature).softmax(dim=0))
    greedy = distribution(BOOK_LOGITS, 0, top_k=3, top_p=0.5)
    assert greedy.probabilities.tolist() == [float(word == "forward") for word in BOOK_WORDS]


SETTINGS = [
    (1.0, None, None),
    (0.1, None, None),
    (5.0, None, None),
    (1.0, 3, None),
    (1.0, None, 0.6),
    (1.4, 25, None),
    (0.7, 40, 0.9),
    (5.0, 400, 0.5),
    (1.0, None, 1.0),
    (1.0, 1, 1e-6),
]


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), SETTINGS)
@pytest.mark.parametrize("prompt", ["Once", "longer than the window of sixteen"])
def test_it_is_what_generate_samples_from(parts, prompt, temperature, top_k, top_p):
    model, tokenizer = parts
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(
        **inputs,
        max_new_tokens=1,
        do_sample=True,
        temperature=temperature,
        top_k=top_k or 0,
        top_p=1.0 if top_p is None else top_p,
        output_scores=True,
        return_dict_in_generate=True,
        pad_token_id=256,
    )
    found = next_token_distribution(model, tokenizer, prompt, temperature, top_k, top_p)
    assert torch.equal(found.kept, output.scores[0][0] > -torch.inf)
    assert torch.equal(found.probabilities, output.scores[0][0].softmax(dim=-1))


def test_a_draw_is_the_token_that_generate_draws(parts):
    model, tokenizer = parts
    inputs = tokenizer("Once", return_tensors="pt")
    found = next_token_distribution(model, tokenizer, "Once", 0.9, top_k=50)
    for seed in range(10):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            output = model.generate(
                **inputs, max_new_tokens=1, do_sample=True, temperature=0.9, top_k=50, pad_token_id=256
            )
        assert count_draws(found.probabilities, 1, seed).argmax() == output[0, -1]


@pytest.mark.parametrize("vocab_size", [9, 1024, 50257])
def test_draws_are_those_of_the_books_loop(vocab_size):
    """One `multinomial` at a time, from the global stream: here from one of its own, some at once."""
    with torch.random.fork_rng():
        probabilities = torch.randn(vocab_size).softmax(dim=-1)
        torch.manual_seed(123)
        sample = [torch.multinomial(probabilities, num_samples=1).item() for _ in range(50)]
    before = torch.get_rng_state()
    assert torch.equal(count_draws(probabilities, 50, 123), torch.bincount(torch.tensor(sample), minlength=vocab_size))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_a_model_adds_without_sampling_is_seen(parts):
    model, tokenizer = parts
    before = next_token_logits(model, tokenizer, "Once")
    likeliest = before.argmax().item()
    model.generation_config.suppress_tokens = [likeliest]
    try:
        assert next_token_logits(model, tokenizer, "Once")[likeliest] == -torch.inf
        assert not next_token_distribution(model, tokenizer, "Once").kept[likeliest]
    finally:
        model.generation_config.suppress_tokens = None
    model.train()
    assert torch.equal(next_token_logits(model, tokenizer, "Once"), before)  # without dropout
    model.eval()


OTHERS = [
    {"min_p": 0.05},
    {"typical_p": 0.5},
    {"top_h": 0.3},
    {"epsilon_cutoff": 0.01},
    {"eta_cutoff": 0.01},
    {"top_k": 7, "top_p": 0.3, "temperature": 3.0, "do_sample": True},
    {"num_beams": 3},
    {"num_return_sequences": 2, "do_sample": True},
    {"forced_eos_token_id": 5},
    {"stop_strings": ["x"]},
    {"repetition_penalty": 1.7},
    {"bad_words_ids": [[101]]},
]


@pytest.mark.parametrize("others", OTHERS, ids=lambda others: next(iter(others)))
def test_what_a_model_asks_of_itself_beside_it_changes_neither_what_is_shown_nor_what_is_written(parts, others):
    """What weighs or forbids tokens is in both, all else in neither."""
    model, tokenizer = parts
    plain, model.generation_config = model.generation_config, GenerationConfig(**others)
    try:
        found = next_token_distribution(model, tokenizer, "Once", 0.9, top_k=40)
        input_ids, options = _request(model, tokenizer, "Once", max_new_tokens=1, temperature=0.9, top_k=40, seed=1)
        output = model.generate(input_ids, **options, output_scores=True, return_dict_in_generate=True)
        assert len(output.scores) == len(output.sequences) == 1
        assert torch.equal(found.probabilities, output.scores[0][0].softmax(dim=-1))
        logits = next_token_logits(model, tokenizer, "Once")
        written = generate_text(model, tokenizer, "Once", max_new_tokens=3)
    finally:
        model.generation_config = plain
    weighs = bool({"repetition_penalty", "bad_words_ids"} & others.keys())
    assert torch.equal(logits, next_token_logits(model, tokenizer, "Once")) != weighs
    if not weighs:
        assert written == generate_text(model, tokenizer, "Once", max_new_tokens=3)


def test_weights_that_are_no_numbers_are_refused(parts):
    model, tokenizer = GPTForCausalLM(parts[0].config), parts[1]
    torch.nn.init.constant_(model.model.norm.weight, torch.nan)
    with pytest.raises(UserError, match="not finite"):
        next_token_logits(model, tokenizer, "Once")
    with pytest.raises(UserError, match="not finite"):
        explain(model, tokenizer, "Once")


def test_a_tokenizer_of_another_model_is_refused(parts):
    config = GPTConfig(vocab_size=100, context_length=16, emb_dim=16, n_layers=1, n_heads=2)
    for look in (next_token_logits, explain):
        with pytest.raises(UserError, match="gives token 110, and the model has 100: they do not belong together"):
            look(GPTForCausalLM(config), parts[1], "Once")


def test_a_forbidden_token_has_no_logit_in_json():
    found = compare(torch.tensor([1.0, -torch.inf, 2.0]), "abc".__getitem__, "x").to_dict()
    assert [token["logit"] for token in found["tokens"]] == [2.0, 1.0, None]
    json.dumps(found, allow_nan=False)


def test_a_model_whose_window_does_not_slide_is_refused_past_it(parts):
    stock = GPT2LMHeadModel(GPT2Config(vocab_size=257, n_positions=8, n_embd=16, n_layer=1, n_head=2)).eval()
    assert len(next_token_logits(stock, parts[1], "x" * 8)) == 257  # the next token needs no position
    with pytest.raises(UserError, match="prompt: with the next token it makes 10 tokens"):
        next_token_logits(stock, parts[1], "x" * 9)


def book(**settings):
    return compare(BOOK_LOGITS, BOOK_WORDS.__getitem__, "every effort moves you", **settings)


def test_the_table_shows_each_token_under_each_setting():
    lines = book(top_k=3).table(top=5).split("\n")
    assert lines[0].split() == ["token", "id", "logit", "T=0.1", "draws", "T=1", "draws", "T=5", "draws"]
    assert lines[1].split()[:2] == ["forward", "3"]
    assert lines[3].split()[5:7] == [
        "0.0615",
        str(count_draws(distribution(BOOK_LOGITS, 1, 3).probabilities)[0].item()),
    ]
    assert lines[4].split() == ["you", "8", "1.79", *["-"] * 6]
    assert lines[-2].split() == ["4", "others", *["0.0000", "0"] * 3]
    assert lines[-1].split() == ["kept", "of", "9", "3", "3", "3"]
    assert "draws" not in book(num_draws=0).table()


def pixels(figure, path) -> list:
    figure.savefig(path)
    with Image.open(path) as image:
        return image.convert("RGB").getcolors(maxcolors=1 << 20)


def test_the_charts_bars_are_the_probabilities_and_its_dots_the_draws():
    decoding = book(top_k=3, num_draws=100)
    (axes,) = chart(decoding, top=5).axes
    order = BOOK_LOGITS.topk(5).indices
    bars = [bar for bar in axes.patches if bar.get_fill()]
    for number, (setting, counts) in enumerate(zip(decoding.settings, decoding.counts)):
        heights = [bar.get_height() for bar in bars[6 * number : 6 * number + 6]]  # five tokens, and the others
        assert heights == pytest.approx([*setting.probabilities[order].tolist(), 0.0], abs=1e-6)
        drawn_here = [count / 100 for count in counts[order].tolist() if count]
        assert list(axes.lines[number].get_ydata()) == pytest.approx(drawn_here)
    outlines = [bar.get_height() for bar in axes.patches if not bar.get_fill()]
    before = [(BOOK_LOGITS / temperature).softmax(0)[order[3:]].tolist() for temperature in (0.1, 1.0, 5.0)]
    assert outlines == pytest.approx([*itertools.chain(*before)])
    assert axes.get_ylabel() == "probability"
    assert [label.get_text() for label in axes.get_xticklabels()] == [*(BOOK_WORDS[i] for i in order), "4\nothers"]


def test_the_chart_has_a_bar_for_each_temperature(tmp_path):
    colours = {colour for _, colour in pixels(chart(book()), tmp_path / "chart.png")}
    assert {(0x00, 0x72, 0xB2), (0xB5, 0x7F, 0x00), (0x00, 0x9E, 0x73)} <= colours
    assert "top-k 3, top-p 0.9" in str([text.get_text() for text in chart(book(top_k=3, top_p=0.9)).legends[0].texts])


@pytest.mark.parametrize("names", ["中文模型", "$x_$", "\\x1b", "a very long name of a token", "␣⏎⇥◌"])
@pytest.mark.filterwarnings("error::UserWarning")  # such as: no glyph
def test_the_chart_draws_any_name(tmp_path, names):
    decoding = compare(
        torch.randn(40), lambda token: f"{names}{token}", "中文 $x$ \u202e" * 9, num_draws=10, top_p=0.7
    )
    pixels(chart(decoding, top=12), tmp_path / "chart.png")


def test_a_character_without_a_font_is_shown_by_its_number(monkeypatch):
    monkeypatch.setattr(fonts, "other_families", list)
    fonts.font_of.cache_clear()
    try:
        decoding = compare(torch.tensor([1.0, 2.0]), "中a".__getitem__, "文")
        assert missing_characters(decoding) == "中文"
        figure = chart(decoding)
        assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["a", "U+4E2D"]
    finally:
        fonts.font_of.cache_clear()


def test_a_font_that_was_installed_after_matplotlib_looked_is_found(monkeypatch):
    from matplotlib.font_manager import fontManager

    serif = next(entry.fname for entry in fontManager.ttflist if entry.name == "DejaVu Serif")
    without = [entry for entry in fontManager.ttflist if entry.name != "DejaVu Serif"]
    for found, families in (([serif], {"DejaVu Serif"}), ([], set())):
        monkeypatch.setattr(fontManager, "ttflist", [*without])
        monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda found=found: found)
        assert {"DejaVu Serif"} & set(fonts.other_families.__wrapped__()) == families


def test_the_command_prints_a_table_or_json_and_draws(folder, tmp_path, capsys):
    file = tmp_path / "chart.png"
    assert main(["decode", folder, "--prompt", "Once 中", "--png", str(file)]) == 0
    out, err = capsys.readouterr()
    assert out.split("\n")[0].split()[3:] == ["T=0.1", "draws", "T=1", "draws", "T=5", "draws"]
    assert f"chart      {file}" in err
    with Image.open(file) as image:
        assert image.size[0] >= 1000
    assert main(["decode", folder, "--prompt", "Once 中", "--png", str(tmp_path / "chart.pdf")]) == 0
    assert (tmp_path / "chart.pdf").read_bytes().startswith(b"%PDF")
    capsys.readouterr()
    flags = ["--temperature", "0", "0.7", "--top-k", "9", "--top-p", "0.9", "--draws", "100", "--top", "4", "--json"]
    assert main(["decode", folder, "--prompt", "Once", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [setting["temperature"] for setting in found["settings"]] == [0, 0.7]
    for setting in found["settings"]:
        assert sum(setting["draws"]) + setting["others"]["draws"] == 100
        assert sum(setting["probabilities"]) + setting["others"]["probability"] == pytest.approx(1)
    assert found["settings"][0]["kept"] == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt", ""], "--prompt: it is empty"),
        (["--prompt", "\udcff"], "--prompt: it is not UTF-8"),
        (["--temperature", "-1"], "--temperature -1: must be 0"),
        (["--temperature", *"1234567"], "--temperature: 7 of them"),
        (["--top-k", "0"], "--top-k 0: must be 1 or more"),
        (["--top-p", "1.5"], "--top-p 1.5: must be"),
        (["--draws", "-1"], "--draws -1: must be 0 to"),
        (["--seed", "-1"], "--seed -1: must be at least 0"),
        (["--top", "0"], "argument --top: 0: must be 1 to 100"),
        (["--png", "."], "--png '.': is a folder"),
        (["--png", "bars.jpg"], "--png bars.jpg: give a name that ends in .png, .pdf or .svg"),
        (["--png", ""], "--png '': is a folder"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(folder, flags, message, capsys):
    assert main(["decode", folder, "--prompt", "Once", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"hf-gpt: {message}")
    assert err.count("\n") == 1
