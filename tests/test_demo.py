"""The demo page, driven in a browser as a person does; and as a Space. Skips without Gradio or without a browser."""

import contextlib
import importlib.util
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
import yaml
from browser import browser, what_is_missing
from hub_server import HubServer
from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

import hf_gpt
from hf_gpt import checkpoint
from hf_gpt.cli import main
from hf_gpt.demo import answers as demo_answers
from hf_gpt.demo import page as demo
from hf_gpt.errors import UserError
from hf_gpt.explain.decoding import distribution, next_token_logits
from hf_gpt.generation import Piece

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


def labels(page) -> list[str]:
    """What is said of each checkpoint's text: `step 30 · 60 tokens`."""
    return page.texts("#text label > span")


def texts(page) -> list[str]:
    return page.run("return [...document.querySelectorAll('#text textarea')].map(e => e.value)")


def write_again(page, num_tokens: int) -> None:
    """A click on Write is ignored for the moment in which a stopped text is ending."""
    page.wait(lambda: page.click("#write") or has_written(page, num_tokens), "three texts")


def has_written(page, num_tokens: int) -> bool:
    return [label.split(" · ")[1:] for label in labels(page)] == [[f"{num_tokens} tokens"]] * 3


def set_to(page, field: str, value: str) -> None:
    page.type(f"#{field} input[type=number]", value + "\ue007")  # Enter


def place(page, selector: str) -> dict:
    """Where an element lies in the page, in pixels."""
    script = """
        const box = document.querySelector(arguments[0]).getBoundingClientRect();
        return {top: box.top + scrollY, bottom: box.bottom + scrollY, width: box.width};"""
    return page.run(script, selector)


@needs_browser
def test_bars_follow_the_prompt_and_each_control(page, run):
    def bars():
        return page.texts("#bars li .value"), page.texts("#bars li .token")

    def changed(before):
        return page.wait(lambda: bars() != before and bars(), "other bars")

    page.type("#prompt textarea", "Line 7: the quick")
    page.wait(lambda: "17 tokens; context length 32" in page.text("#bars"), "the count of the prompt's tokens")
    logits = next_token_logits(*checkpoint.load_model(str(run)), "Line 7: the quick")
    probabilities = distribution(logits, 0.8).probabilities
    likeliest = [demo_answers._percent(value) for value in probabilities.topk(15).values.tolist()]
    before = values, tokens = page.wait(lambda: bars()[0] == likeliest and bars(), "the bars of this prompt")
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
    set_to(page, "new-tokens", "300")
    set_to(page, "seed", "5")
    seen = []
    page.click("#write")
    page.wait(lambda: seen.append(texts(page)) or has_written(page, 300), "three texts")
    assert len({text for column in zip(*seen) for text in column}) > 6, seen  # nothing, pieces, all of it
    assert [label.split(" · ")[0] for label in labels(page)] == ["step 30", "step 60", "step 90 (best)"]

    folder = checkpoint.checkpoints(run)[-1]
    model, tokenizer = checkpoint.load_model(str(folder))
    expected = hf_gpt.generate_text(
        model.cpu(), tokenizer, "Line 7: the", max_new_tokens=300, temperature=0.8, top_k=None, top_p=None, seed=5
    )
    assert texts(page)[-1] == expected


@needs_browser
def test_stop_ends_the_text_and_what_would_have_come_after_it(page):
    page.type("#prompt textarea", "Line 7: the")
    set_to(page, "new-tokens", "512")
    page.click("#write")
    page.wait(lambda: texts(page)[0] not in ("", "Line 7: the"), "the first words")
    page.click("#stop")
    set_to(page, "new-tokens", "5")
    page.wait(lambda: texts(page) == (time.sleep(1), texts(page))[1], "an end")
    assert len(texts(page)[2]) < 512
    write_again(page, 5)


@needs_browser
def test_a_tab_that_waits_says_so_and_can_be_stopped(page, served, tmp_path):
    with browser(tmp_path / "profile") as other:
        other.open(served[0])
        other.wait(lambda: other.texts("#bars li"), "the first bars")
        for tab in (page, other):
            set_to(tab, "new-tokens", "512")
        page.click("#write")
        page.wait(lambda: any(texts(page)), "the first words")
        other.click("#write")
        other.wait(lambda: "queue: 1/1" in other.text("#text"), "a place in the queue")
        other.click("#stop")
        other.wait(lambda: "queue" not in other.text("#text"), "stop")
        page.click("#stop")
        set_to(page, "new-tokens", "5")
        write_again(page, 5)
        assert texts(other) == [""] * 3

        set_to(other, "new-tokens", "5")
        other.click("#write")
        other.wait(lambda: has_written(other, 5), "three texts")


@needs_browser
def test_a_reload_ends_the_text(page, served):
    set_to(page, "new-tokens", "512")
    page.click("#write")
    page.wait(lambda: any(texts(page)), "the first words")
    page.open(served[0])
    page.wait(lambda: page.texts("#bars li"), "the bars again")
    set_to(page, "new-tokens", "5")
    page.click("#write")
    page.wait(lambda: has_written(page, 5), "three texts")


@needs_browser
@pytest.mark.parametrize(("width", "height"), [(1200, 900), (390, 844)])
def test_controls_bars_and_the_button_stay_above_the_text(page, width, height):
    page.resize(width, height)
    try:
        page.wait(lambda: page.run("return innerWidth") == width, "the width")
        set_to(page, "new-tokens", "100")
        page.click("#write")
        page.wait(lambda: has_written(page, 100), "three texts")
        assert place(page, "#text")["top"] < page.run("return scrollY") + height  # it came into view
        assert place(page, "#write")["bottom"] - place(page, "#temperature")["top"] < height
        assert place(page, "#bars")["bottom"] <= place(page, "#text")["top"]
        assert place(page, "#text")["top"] - place(page, "#temperature")["top"] < 2 * height
        assert place(page, "#bars .track")["width"] > place(page, "#bars")["width"] / 2
        assert page.run("return document.documentElement.scrollWidth") <= width
    finally:
        page.resize(1280, 1400)


@needs_browser
def test_errors_are_lines_in_the_page(page):
    page.type("#prompt textarea", "")
    page.wait(lambda: "Prompt: it is empty" in page.text("#bars .problem"), "an error beside the bars")
    page.click("#write")
    page.wait(lambda: "Prompt: it is empty" in page.text(".toast-body"), "a message")

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
    page.wait(lambda: has_written(page, 5), "three texts")
    assert all(text.startswith("<b>中文</b>") for text in texts(page))


@needs_browser
def test_the_page_is_called_by_the_name_of_the_run(page, run):
    assert page.text("h1.model") == "run"
    assert page.run("return document.title") == "run · hf_gpt"
    assert str(run) not in page.run("return document.documentElement.outerHTML")


@needs_gradio
def test_no_other_page_and_no_file_is_answered(served):
    """A page elsewhere that sends requests here, one whose name was made to mean 127.0.0.1, uploads, and megabytes."""
    url, _ = served
    host = url.removeprefix("http://")

    def answered(path="/", data=None, **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(url + path, data, headers)
        try:
            return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30).status
        except urllib.error.HTTPError as error:
            return error.code
        except urllib.error.URLError as error:
            return "closed" if isinstance(error.reason, ConnectionError) else error

    join, kind = "/gradio_api/queue/join", {"Content_Type": "application/json"}
    assert answered() == answered(Origin=url) == answered("/config", Host=f"localhost:{host.split(':')[1]}") == 200
    assert answered(Host="evil.example") == answered("/config", Host="evil.example:7860") == 421
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", f"http://{host}.evil.example"):
        assert answered(Origin=origin) == answered(join, b"{}", Origin=origin, **kind) == 403, origin
    assert answered(join, b"{}", **kind) == 422  # the page's own kind of request, without what belongs into it
    assert answered("/gradio_api/upload", b"--a\r\n", Content_Type="multipart/form-data; boundary=a") == 403
    # Refused before all of it was sent, which a client may learn from the answer or from the closed connection.
    assert answered(join, b'{"data": ["' + b"a" * (1 << 20) + b'"]}', **kind) in (413, "closed")


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
def test_a_space_of_a_hub_model_names_it_once_it_was_found(run, tmp_path):
    best = Path(checkpoint.resolve_model(str(run)))
    code = (
        "import sys; from hf_gpt.cli import main; [print(main(['demo', one, '--space', one])) for one in sys.argv[1:]]"
    )
    with HubServer() as hub:
        commit = hub.add_repo("someone/my-gpt", {path.name: path for path in best.iterdir() if path.is_file()})
        there, mistyped, no_such_commit = f"someone/my-gpt@{commit}", "runs/quickstrt", "someone/my-gpt@v1"
        environment = {
            **os.environ,
            **hub.environment(tmp_path / "home"),
            "PYTHONPATH": str(Path(hf_gpt.__file__).parents[1]),
        }
        done = subprocess.run(
            [sys.executable, "-c", code, there, mistyped, no_such_commit],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
    assert done.stdout.splitlines()[-3:] == ["0", "2", "2"], done.stderr
    no_repository, no_revision = [line for line in done.stderr.splitlines() if line.startswith("hf-gpt: ")]
    assert no_repository.startswith("hf-gpt: runs/quickstrt: neither a directory here nor found on the Hub: no such")
    assert no_revision.endswith("it has no such branch, tag or commit")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "someone"]
    assert [path.name for path in (tmp_path / "someone").iterdir()] == [f"my-gpt@{commit}"]
    space = tmp_path / there
    assert f"MODEL = {there!r}" in (space / "app.py").read_text()
    assert not (space / "model").exists()
    assert yaml.safe_load((space / "README.md").read_text().split("---")[1])["models"] == ["someone/my-gpt"]


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


def test_a_gradio_that_is_there_and_fails_is_not_said_to_be_missing(monkeypatch, capsys, tmp_path):
    (tmp_path / "gradio.py").write_text("raise ImportError('Using SOCKS proxy, but socksio is not installed')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gradio", raising=False)
    assert main(["demo", str(tmp_path)]) == 2
    assert "Gradio cannot be imported: Using SOCKS proxy" in capsys.readouterr().err


@needs_gradio
def test_the_page_is_served_whatever_proxy_is_set_and_ends_quietly(run, monkeypatch, capsys):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")  # where nobody answers

    def interrupt(url: str) -> None:
        print(url)
        main_thread = threading.main_thread().ident
        threading.Timer(0.5, lambda: signal.pthread_kill(main_thread, signal.SIGINT)).start()

    port = free_port()
    try:
        demo.serve(str(checkpoint.resolve_model(str(run))), interrupt, port=port)
    except KeyboardInterrupt:
        pytest.fail("the interruption was not the end of it")
    assert capsys.readouterr() == (f"http://127.0.0.1:{port}/\n", "")
    assert not {"NO_PROXY", "no_proxy"} & set(os.environ)


def test_hosts_that_needed_no_proxy_still_need_none(monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "example.org")
    direct = urllib.request.proxy_bypass_environment
    with demo._without_proxy("127.0.0.1", "localhost"):
        assert direct("127.0.0.1:7860")
        assert direct("localhost")
        assert direct("example.org")
        assert not direct("example.com")
    assert os.environ["NO_PROXY"] == "example.org"
    assert "no_proxy" not in os.environ


@needs_gradio
def test_a_port_that_is_taken_and_none_that_is_free_are_told_apart(run, monkeypatch):
    from gradio import http_server

    best = str(checkpoint.resolve_model(str(run)))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"^port {port}: is taken"):
            demo.serve(best, pytest.fail, port=port)
        monkeypatch.setattr(http_server, "INITIAL_PORT_VALUE", port)
        monkeypatch.setattr(http_server, "TRY_NUM_PORTS", 1)
        with pytest.raises(UserError, match=r"^port: no free one was found; name one$"):
            demo.serve(best, pytest.fail)


def written(answers: demo_answers.Answers, prompt: str = "Line", tokens: int = 5) -> dict[str, tuple[str, str]]:
    """The last that is shown after a click on Write: text and state by checkpoint."""
    return [dict(found) for found in answers.texts(prompt, list(answers.stages), 0.8, 0, 1, tokens, 123)][-1]


def test_a_checkpoint_that_fails_costs_its_own_text_only(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    answers = demo_answers.Answers(str(tmp_path / "run"))
    shutil.rmtree(checkpoint.checkpoints(tmp_path / "run")[1])
    states = [state for _, state in written(answers).values()]
    assert states[0] == states[2] == "5 tokens"
    assert states[1].startswith("failed: ")
    assert "no such directory" in states[1]


def test_a_text_that_breaks_off_stays(run, monkeypatch, capsys):
    def breaks_off(*_, **__):
        yield Piece(" 7: the", 7)
        raise RuntimeError("out of memory")

    answers = demo_answers.Answers(checkpoint.resolve_model(str(run)))
    monkeypatch.setattr(demo_answers, "stream_text", breaks_off)
    ((text, state),) = written(answers).values()
    assert text == "Line 7: the"
    assert state == "failed: RuntimeError: out of memory; the terminal says more"
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (("", ["run"], 0.8, 0, 1, 5, 123), "Prompt: it is empty"),
        (("x" * 100_001, ["run"], 0.8, 0, 1, 5, 123), "Prompt: it has 100,001 characters; give at most 100,000"),
        (("Line", [], 0.8, 0, 1, 5, 123), "Checkpoints: none is chosen"),
        (("Line", ["run"], 0.8, 0, 1, 1000, 123), "New tokens 1000: must be a whole number"),
        (("Line", ["run"], None, 0, 1, 5, 123), "Temperature: it is empty; give a number"),
        (("Line", ["run"], 0.8, 0, 1, 5, 1.5), "Seed 1.5: must be a whole number"),
    ],
)
def test_a_request_that_cannot_work_is_refused_in_the_words_of_the_page(run, request_, message):
    answers = demo_answers.Answers(checkpoint.resolve_model(str(run)))
    prompt, chosen, *settings = request_
    with pytest.raises(UserError) as refused:
        list(answers.texts(prompt, [*answers.stages] if chosen else [], *settings))
    assert demo_answers.problem(refused.value).startswith(message)


@pytest.fixture
def save(run, tmp_path):
    """Writes a model that is not ours, with the tokenizer of the run; its folder."""

    def write(model) -> str:
        AutoTokenizer.from_pretrained(checkpoint.resolve_model(str(run))).save_pretrained(tmp_path)
        model.save_pretrained(tmp_path)
        return str(tmp_path)

    return write


def test_a_model_without_a_context_length_is_shown_without_one(save):
    bloom = BloomForCausalLM(BloomConfig(vocab_size=257, hidden_size=16, n_layer=1, n_head=2))
    answers = demo_answers.Answers(save(bloom))
    assert "context" not in answers.facts()
    bars = answers.bars("Line", answers.first, 0.8, 0, 1)
    assert '<p class="facts">4 tokens</p>' in bars
    assert bars.count("<li") == 15
    assert [state for _, state in written(answers).values()] == ["5 tokens"]


def test_only_of_a_window_that_slides_it_is_said_that_the_model_sees_the_last_tokens(run, save):
    ours, prompt = demo_answers.Answers(checkpoint.resolve_model(str(run))), "Line" * 10
    bars = ours.bars(prompt, ours.first, 0.8, 0, 1)
    assert "40 tokens; context length 32; the model sees the last 32 of them" in bars
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=257, n_positions=32, n_embd=16, n_layer=1, n_head=2))
    stock = demo_answers.Answers(save(gpt2))
    assert "32 tokens; context length 32<" in stock.bars("Line" * 8, stock.first, 0.8, 0, 1)
    assert "with the next token it makes 41 tokens" in stock.bars(prompt, stock.first, 0.8, 0, 1)


def test_of_a_run_the_ends_the_best_and_some_between_are_shown(tmp_path):
    def shown() -> list[str]:
        return list(demo_answers.stages_of(str(tmp_path)))

    for step in range(100, 1100, 100):
        folder = tmp_path / "checkpoints" / checkpoint.name_of(step)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    assert shown() == ["step 100", "step 300", "step 500", "step 800", "step 1,000"]
    checkpoint.point(tmp_path, "best", folder.with_name(checkpoint.name_of(900)))
    assert shown() == ["step 100", "step 300", "step 500", "step 900 (best)", "step 1,000"]
    checkpoint.point(tmp_path, "best", folder)
    assert shown() == ["step 100", "step 300", "step 500", "step 800", "step 1,000 (best)"]


def bars_of(logits, show, *settings, **others) -> str:
    return demo_answers.bars_html(logits, show, "4 tokens", *settings, **others)


def test_bars_tell_kept_tokens_from_cut_ones():
    logits = torch.log(torch.tensor([0.5, 0.25, 0.15, 0.1]))
    html = bars_of(logits, "abcd".__getitem__, 1.0, top_k=3, top_p=0.6)
    assert html.count('<li class="kept"') == 2
    assert html.count("cut: top-p") == html.count("cut: top-k") == 1
    assert "66.7%" in html  # 0.5 of the 0.75 that is left
    assert "15.0%" in html  # what the third token was before the cut
    assert "2 of 4 tokens can be drawn" in html


def test_a_token_that_the_model_forbids_is_not_said_to_be_cut():
    logits = torch.tensor([2.0, 1.0, 0.0, -math.inf])
    for settings in ({}, {"top_k": 2}, {"top_p": 0.5}, {"temperature": 0}):
        html = bars_of(logits, "abcd".__getitem__, **{"temperature": 1.0, **settings})
        assert html.count('<span class="why">forbidden</span>') == 1
        assert "forbidden: the model's generation config rules it out" in html
    assert "forbidden" not in bars_of(logits[:3], "abc".__getitem__, 1.0, top_k=2)


def test_logits_that_are_no_numbers_end_in_no_stop_iteration():
    with contextlib.suppress(UserError):
        bars_of(torch.full((4,), math.nan), "abcd".__getitem__, 1.0)


def test_markup_in_tokens_is_shown_and_not_obeyed():
    bars = bars_of(torch.zeros(2), ["<script>", "&amp;"].__getitem__, 1.0)
    assert "&lt;script&gt;" in bars
    assert "&amp;amp;" in bars
    assert "<script>" not in bars
