"""The demo page, driven in a browser as a person does; and as a Space. Skips without Gradio or without a browser."""

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
import yaml
from browser import browser, what_is_missing

import hf_gpt
from hf_gpt import checkpoint, demo
from hf_gpt.cli import main

without_gradio = importlib.util.find_spec("gradio") is None
needs_gradio = pytest.mark.skipif(without_gradio, reason="needs Gradio: pip install 'hf_gpt[demo]'")
needs_browser = pytest.mark.skipif(
    without_gradio or what_is_missing() is not None,
    reason=what_is_missing() or "needs Gradio: pip install 'hf_gpt[demo]'",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with three checkpoints, of a model small enough to write hundreds of tokens in a second or two."""
    folder = tmp_path_factory.mktemp("demo")
    text = "".join(f"Line {i}: the quick brown fox jumps over {i * i} lazy dogs.\n" for i in range(200))
    (folder / "text.txt").write_text(text)
    recipe = {
        "output_dir": str(folder / "run"),
        "model": {"context_length": 32, "emb_dim": 32, "n_layers": 2, "n_heads": 2},
        "tokenizer": {"name": "bytes"},
        "data": {"source": str(folder / "text.txt"), "validation_fraction": 0.1},
        "optimizer": {"lr": 1e-2},
        "schedule": {"warmup_steps": 5},
        "train": {"max_steps": 90, "batch_size": 8, "device": "cpu"},
        "evaluation": {"every": 30, "tokens": 512, "prompts": []},
        "checkpoint": {"every": 30, "keep": None},
    }
    hf_gpt.train(hf_gpt.Recipe(**recipe))
    return folder / "run"


@contextlib.contextmanager
def answering(command: list[str], port: int, folder: Path, **environ: str):
    """A server in a process of its own, from when it answers; its address and the file with all that it says."""
    log = folder / f"server-{port}.log"
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environ}
    with open(log, "w") as out:
        process = subprocess.Popen([sys.executable, *command], cwd=folder, env=env, stdout=out, stderr=out)
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + 180
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            with contextlib.suppress(OSError):
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5).close()
                break
            time.sleep(0.2)
        yield url, log
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def served(run, tmp_path_factory):
    port = free_port()
    root = str(Path(hf_gpt.__file__).parents[1])
    command = ["-m", "hf_gpt.cli", "demo", str(run), "--port", str(port)]
    with answering(command, port, tmp_path_factory.mktemp("served"), PYTHONPATH=root) as (url, log):
        yield url, log


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as page:
        page.resize(1280, 1400)
        yield page


@pytest.fixture
def page(served, opened):
    """The page anew, with its first bars; afterwards the server has shown no stack."""
    url, log = served
    opened.open(url)
    opened.wait(lambda: opened.texts("#bars li"), "the first bars")
    yield opened
    assert "Traceback" not in log.read_text()


def states(page) -> list[str]:
    return page.run("return [...document.querySelectorAll('#text .written')].map(e => e.dataset.state)")


def set_to(page, field: str, value: str) -> None:
    page.type(f"#{field} input[type=number]", value + "\ue007")  # Enter


@needs_browser
def test_bars_follow_the_prompt_and_each_control(page):
    def bars():
        return page.texts("#bars li .value"), page.texts("#bars li .token")

    def changed(before):
        return page.wait(lambda: bars() != before and bars(), "other bars")

    before = bars()
    page.type("#prompt textarea", "Line 7: the quick")
    before = changed(before)
    page.wait(lambda: "17 tokens; context length 32" in page.text("#counts"), "the count of the prompt's tokens")
    values, tokens = before
    assert len(values) == 15
    assert not page.texts("#bars .cut .token")

    set_to(page, "temperature", "2")
    hotter, same_tokens = changed(before)
    assert same_tokens == tokens
    assert float(hotter[0].rstrip("%")) < float(values[0].rstrip("%"))

    before = bars()
    set_to(page, "top-k", "3")
    changed(before)
    assert len(page.texts("#bars .kept .token")) == 3
    assert page.texts("#bars .cut .why") == ["cut: top-k"] * 12  # in words, not in colour alone
    assert "3 of 257 tokens can be drawn" in page.text("#bars")

    before = bars()
    set_to(page, "temperature", "0")
    changed(before)
    assert page.texts("#bars .kept .value") == ["100.0%"]


@needs_browser
def test_the_slider_itself_moves_the_bars(page):
    before = page.texts("#bars li .value")
    script = """
        const slider = document.querySelector('#temperature input[type=range]');
        Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(slider, 1.9);
        slider.dispatchEvent(new Event('input', {bubbles: true}));"""
    page.run(script)
    page.wait(lambda: page.texts("#bars li .value") != before, "other bars")


@needs_browser
def test_text_streams_for_each_checkpoint_and_is_what_generate_text_gives(page, run):
    page.type("#prompt textarea", "Line 7: the")
    set_to(page, "new-tokens", "60")
    set_to(page, "seed", "5")
    watch = """
        window.seen = [];
        new MutationObserver(() => {
            const texts = [...document.querySelectorAll('#text .new')].map(e => e.innerText);
            window.seen.push(texts);
        }).observe(document.querySelector('#text'), {subtree: true, childList: true, characterData: true});"""
    page.run(watch)
    page.click("#write")
    page.wait(lambda: states(page) == ["done"] * 3, "three texts")
    seen = page.run("return window.seen")
    for column in range(3):
        assert len({texts[column] for texts in seen if len(texts) == 3}) > 3, seen  # nothing, pieces, all of it
    assert page.texts("#text header b")[0] == "step 30"
    assert all("60 tokens" in fact for fact in page.texts("#text header .facts"))

    folder = checkpoint.checkpoints(run)[-1]
    model, tokenizer = checkpoint.load_model(str(folder))
    expected = hf_gpt.generate_text(
        model.cpu(), tokenizer, "Line 7: the", max_new_tokens=60, temperature=0.8, top_k=None, top_p=None, seed=5
    )
    last = page.run("return [...document.querySelectorAll('#text .paper p')].map(e => e.textContent)")[-1]
    assert last == expected


@needs_browser
def test_stop_ends_the_text_and_what_would_have_come_after_it(page):
    page.type("#prompt textarea", "Line 7: the")
    set_to(page, "new-tokens", "512")
    page.click("#write")
    page.wait(lambda: page.texts("#text .new")[0:1] not in ([], [""]), "the first words")
    page.click("#stop")
    page.wait(lambda: states(page) == ["stopped", *["stopped before it began"] * 2], "stop", 20)
    assert int(page.texts("#text header .facts")[0].split()[0]) < 512

    page.click("#write")  # and the next one is not stopped
    page.wait(lambda: states(page)[0:1] == ["done"], "a whole text")


@needs_browser
def test_errors_are_lines_in_the_page(page):
    page.type("#prompt textarea", "")
    page.wait(lambda: "Prompt: it is empty" in page.text("#bars .problem"), "an error beside the bars")
    page.click("#write")
    page.wait(lambda: "Prompt: it is empty" in page.text("#text .problem"), "an error in place of the text")

    page.type("#prompt textarea", "Line")
    page.wait(lambda: page.texts("#bars li"), "bars")
    set_to(page, "top-p", "0")
    page.wait(lambda: "Top-p 0: must be above 0" in page.text("#bars .problem"), "an error beside the bars")
    assert "Traceback" not in page.text("body")


@needs_browser
def test_chinese_and_markup_are_shown_as_they_are(page):
    page.type("#prompt textarea", "<b>中文</b>")
    set_to(page, "new-tokens", "5")
    page.click("#write")
    page.wait(lambda: states(page) == ["done"] * 3, "three texts")
    assert page.texts("#text .given") == ["<b>中文</b>"] * 3


@needs_browser
def test_the_page_asks_nobody_else_for_anything(page, served):
    asked = page.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert asked
    assert [address for address in asked if not address.startswith(served[0])] == []
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(served[0]) as answer:
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]


@needs_gradio
def test_a_space_runs_as_it_stands(run, tmp_path):
    assert main(["demo", str(run), "--space", str(tmp_path / "space")]) == 0
    space = tmp_path / "space"
    metadata = yaml.safe_load((space / "README.md").read_text().split("---")[1])
    assert metadata["sdk"] == "gradio"
    assert metadata["app_file"] == "app.py"
    pins = (space / "requirements.txt").read_text().splitlines()
    assert f"gradio=={metadata['sdk_version']}" in pins
    assert f"torch=={torch.__version__.partition('+')[0]}" in pins
    copied = checkpoint.checkpoints(space / "model")
    assert [one.name for one in copied] == [one.name for one in checkpoint.checkpoints(run)]
    assert not list(space.rglob("training_state"))
    assert not list(space.rglob("__pycache__"))

    port = free_port()
    environ = {"GRADIO_SERVER_PORT": str(port), "PYTHONPATH": ""}
    with answering(["app.py"], port, space, **environ) as (url, _), contextlib.ExitStack() as stack:
        if what_is_missing() is None:
            page = stack.enter_context(browser(tmp_path / "profile"))
            page.open(url)
            page.wait(lambda: len(page.texts("#bars li")) == 15, "bars")


@needs_gradio
def test_a_space_of_a_hub_model_names_it(tmp_path):
    demo.write_space("someone/my-gpt@v1", str(tmp_path / "space"))
    assert "MODEL = 'someone/my-gpt@v1'" in (tmp_path / "space" / "app.py").read_text()
    assert not (tmp_path / "space" / "model").exists()
    assert yaml.safe_load((tmp_path / "space" / "README.md").read_text().split("---")[1])["models"] == [
        "someone/my-gpt"
    ]


@needs_gradio
def test_a_space_overwrites_nothing(run, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["demo", str(run), "--space", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@needs_gradio
def test_what_cannot_be_shown_ends_in_one_line(tmp_path, capsys):
    assert main(["demo", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_without_gradio_one_line_says_how_to_get_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "hf-gpt: the demo needs Gradio; pip install 'hf_gpt[demo]'\n"


def test_of_a_run_the_ends_the_best_and_some_between_are_shown(tmp_path):
    def shown() -> list[str]:
        return list(demo.stages_of(str(tmp_path)))

    for step in range(100, 1100, 100):
        folder = tmp_path / "checkpoints" / checkpoint.name_of(step)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    assert shown() == ["step 100", "step 300", "step 500", "step 800", "step 1,000"]
    checkpoint.point(tmp_path, "best", folder.with_name(checkpoint.name_of(900)))
    assert shown() == ["step 100", "step 300", "step 500", "step 900 (best)", "step 1,000"]
    checkpoint.point(tmp_path, "best", folder)
    assert shown() == ["step 100", "step 300", "step 500", "step 800", "step 1,000 (best)"]


def test_bars_tell_kept_tokens_from_cut_ones():
    logits = torch.log(torch.tensor([0.5, 0.25, 0.15, 0.1]))
    html = demo.distribution_html(logits, "abcd".__getitem__, 1.0, top_k=3, top_p=0.6)
    assert html.count('<li class="kept"') == 2
    assert html.count("cut: top-p") == html.count("cut: top-k") == 1
    assert "66.7%" in html  # 0.5 of the 0.75 that is left
    assert "15.0%" in html  # what the third token was before the cut
    assert "2 of 4 tokens can be drawn" in html
