"""Where a conversion puts its result: atomic, and over nothing of anybody else's."""

import os

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hf_gpt.cli import main
from hf_gpt.conversion import from_gpt2
from hf_gpt.errors import UserError
from hf_gpt.storage import new_directory


@pytest.fixture
def stock(tmp_path, monkeypatch) -> str:
    """A tiny GPT-2, beside which the test runs."""
    torch.manual_seed(7)
    sizes = {"vocab_size": 50, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(tmp_path / "stock")
    monkeypatch.chdir(tmp_path)
    return str(tmp_path / "stock")


@pytest.mark.parametrize(
    ("dest", "message"),
    [
        ("full", "full: is not empty; name a directory that is not there yet, or an empty one"),
        ("full/precious", "full/precious: is a file"),
        ("full/precious/below", "full/precious/below: nothing can be written there"),
        ("/dev/null", "/dev/null: is a file"),
        ("/proc/new/model", "/proc/new/model: nothing can be written there"),
        ("x" * 300, "cannot be opened: File name too long"),
    ],
)
def test_a_destination_that_cannot_be_is_refused_before_the_source_is_looked_at(
    tmp_path, stock, capsys, dest, message
):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    assert main(["convert", "./no-such-source", dest, "--from", "gpt2"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["full", "stock"]
    assert os.listdir(tmp_path / "full") == ["precious"]


def test_the_current_directory_is_not_replaced(tmp_path, stock, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match="name a new one in it"):
        from_gpt2(stock, ".")


@pytest.mark.parametrize("dest", ["empty", "a/b/x"])
def test_an_empty_directory_and_one_that_is_not_there_become_the_result(tmp_path, stock, dest):
    (tmp_path / "empty").mkdir()
    from_gpt2(stock, dest)
    assert {"config.json", "model.safetensors"} < set(os.listdir(tmp_path / dest))
    assert not list(tmp_path.rglob(".writing-*"))


@pytest.mark.parametrize("is_there", [True, False])
def test_what_comes_there_in_the_meantime_is_kept(tmp_path, is_there):
    out = tmp_path / "out"
    if is_there:
        out.mkdir()

    def write_while_somebody_else_does():
        with new_directory(str(out)) as directory:
            (directory / "config.json").write_text("ours")
            out.mkdir(exist_ok=True)
            (out / "config.json").write_text("theirs")

    with pytest.raises(UserError, match="out: it was created meanwhile"):
        write_while_somebody_else_does()
    assert (out / "config.json").read_text() == "theirs"
    assert os.listdir(tmp_path) == ["out"]


def test_nothing_is_left_of_what_fails(tmp_path):
    def write_half():
        with new_directory(str(tmp_path / "out")) as directory:
            (directory / "model.safetensors").write_text("half")
            raise UserError("no")

    with pytest.raises(UserError, match="no"):
        write_half()
    assert os.listdir(tmp_path) == []
