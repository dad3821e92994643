"""Where a conversion puts its result: whole or not at all, and nothing of anybody else's is lost."""

import os
import signal
import time

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hf_gpt.cli import main
from hf_gpt.conversion import destination, from_gpt2, gpt2
from hf_gpt.errors import UserError


@pytest.fixture
def stock(tmp_path, monkeypatch) -> str:
    """A tiny GPT-2, beside which the test runs."""
    torch.manual_seed(7)
    sizes = {"vocab_size": 50, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(tmp_path / "stock")
    monkeypatch.chdir(tmp_path)
    return str(tmp_path / "stock")


def during_the_conversion(monkeypatch, act):
    made_of = gpt2.made_of

    def made_of_and_act(*arguments):
        act()
        return made_of(*arguments)

    monkeypatch.setattr(gpt2, "made_of", made_of_and_act)


@pytest.mark.parametrize(
    ("dest", "message"),
    [
        ("full", "full: is not empty; name a directory that is not there yet, or an empty one"),
        ("full/precious", "full/precious: is a file"),
        ("full/precious/below", "precious is a file"),
        ("/dev/null", "/dev/null: is a file"),
        ("", "the destination is '', no path"),
        ("/proc/new/model", "/proc/new/model: nothing can be written there"),
        ("x" * 300, "nothing can be written there: File name too long"),
    ],
)
def test_a_destination_that_cannot_be_is_refused_first(tmp_path, stock, capsys, monkeypatch, dest, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    monkeypatch.setattr(gpt2, "open_folder", lambda folder: pytest.fail("the weights were looked at"))
    assert main(["convert", stock, dest, "--from", "gpt2"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert ".writing" not in err
    assert err.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["full", "stock"]
    assert os.listdir(tmp_path / "full") == ["precious"]


def test_directories_on_the_way_are_made_with_the_result_and_not_without(tmp_path, stock, monkeypatch):
    def refuse():
        raise UserError("no")

    with monkeypatch.context() as patch:
        during_the_conversion(patch, refuse)
        with pytest.raises(UserError, match="no"):
            from_gpt2(stock, "a/b/x")
    assert os.listdir(tmp_path) == ["stock"]
    from_gpt2(stock, "a/b/x")
    assert sorted(os.listdir(tmp_path)) == ["a", "stock"]
    assert os.listdir(tmp_path / "a" / "b") == ["x"]
    assert (tmp_path / "a" / "b" / "x" / "model.safetensors").is_file()


def test_an_empty_directory_is_filled_and_stays_the_same(tmp_path, stock, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = os.stat(".").st_ino
    assert from_gpt2(stock, ".").destination == "."
    assert os.stat(".").st_ino == before == os.stat(tmp_path / "here").st_ino
    assert {"config.json", "model.safetensors"} < set(os.listdir("."))
    assert not [name for name in os.listdir(".") if name.startswith(".writing")]


@pytest.mark.parametrize("is_there", [True, False])
def test_what_comes_there_during_the_conversion_is_kept(tmp_path, stock, monkeypatch, is_there):
    out = tmp_path / "out"
    if is_there:
        out.mkdir()

    def somebody_writes():
        out.mkdir(exist_ok=True)
        (out / "config.json").write_text("theirs")

    during_the_conversion(monkeypatch, somebody_writes)
    with pytest.raises(UserError, match="out: something has come there during the conversion"):
        from_gpt2(stock, "out")
    assert os.listdir(out) == ["config.json"]
    assert (out / "config.json").read_text() == "theirs"
    assert sorted(os.listdir(tmp_path)) == ["out", "stock"]


@pytest.mark.skipif(os.name != "posix", reason="sends SIGTERM")
@pytest.mark.parametrize("is_there", [True, False])
def test_what_a_killed_conversion_left_is_removed_by_the_next(tmp_path, stock, is_there):
    if is_there:
        (tmp_path / "out").mkdir()
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        with destination.Destination.of("out").writing() as directory:
            (directory / "model.safetensors").write_text("half")
            os.write(writing, b"now")
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(60)
            os._exit(1)
    assert os.read(reading, 3) == b"now"
    left = list(tmp_path.rglob(".writing-*-out"))
    assert len(left) == 1
    if not is_there:  # that of a process which is still at it stays
        destination.Destination.of("out")
        assert left[0].exists()
    os.kill(process, signal.SIGTERM)
    os.waitpid(process, 0)
    of_another = tmp_path / left[0].name.replace("-out", "-another-out")
    of_another.mkdir()
    from_gpt2(stock, "out")
    assert list(tmp_path.rglob(".writing-*")) == [of_another]
    assert (tmp_path / "out" / "config.json").is_file()
