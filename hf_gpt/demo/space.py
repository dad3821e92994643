"""The demo's page as a Space: a folder that runs as it stands, here and on the Hub.

A copy of this package's source goes along, so that the Space needs neither PyPI nor `trust_remote_code`.
"""

import importlib.metadata
import re
import shutil
import sys
from pathlib import Path

import yaml

from ..checkpoint import model_folder, opened, pointed, resolve_model, short_name
from ..errors import UserError
from ..storage import new_directory, write_text
from .answers import stages_of
from .page import import_gradio

_LARGE = 1 << 30  # bytes of checkpoints: beyond it a Space gets only the best one


def write_space(model: str, dest: str) -> list[str]:
    """Write the page of a MODEL as a Space into a directory that is not there yet or is empty; returns what is in it.

    A model on disk is copied without its training state; of a run the checkpoints that the page shows, or the best one
    alone where they are larger than 1 GiB together. A Hub id stays an id, once its files are in the cache.

    Raises:
        UserError: Gradio is not installed, there is something in the directory, or the model is not there; nothing was
            written then.
    """
    gradio_version = import_gradio().__version__
    local = {name: Path(source) for name, source in stages_of(model).items() if Path(source).is_dir()}
    if not local:
        model_folder(model)
    if len(local) > 1 and sum(map(_size, local.values())) > _LARGE:
        local = {Path(resolve_model(model)).name: Path(resolve_model(model))}
    requirements = _requirements(gradio_version)
    title = short_name(model).partition("@")[0].rpartition("/")[2]
    with new_directory(dest) as folder:
        if len(local) > 1:
            for source in local.values():
                _copy_model(source, folder / "model" / "checkpoints" / source.name)
            for pointer in ("best", "latest"):
                if (named := pointed(model, pointer)) is not None and named in local.values():
                    write_text(folder / "model" / "checkpoints" / pointer, named.name + "\n")
        elif local:
            _copy_model(*local.values(), folder / "model")
        package = Path(__file__).parents[1]
        shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        write_text(folder / "app.py", _APP.format(model="model" if local else model, title=title))
        write_text(folder / "requirements.txt", requirements)
        write_text(folder / "README.md", _card(title, gradio_version, None if local else model))
    what = f"{len(local)} checkpoint{'s' * (len(local) > 1)} in model/" if local else f"{model} from the Hub"
    return [
        f"space      {dest}: app.py, requirements.txt, README.md, hf_gpt/, {what}",
        f"try        cd {dest} && python app.py",
        f"publish    hf repos create OWNER/NAME --type space --sdk gradio && hf upload OWNER/NAME {dest} --type space",
    ]


def _copy_model(source: Path, folder: Path) -> None:
    shutil.copytree(opened(source), folder, ignore=shutil.ignore_patterns("training_state", ".*"))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _requirements(gradio_version: str) -> str:
    """What this package depends on, at the versions that are installed here. Spaces install Gradio, at `sdk_version`,
    with an extra that holds pydantic back: that one keeps its range."""
    try:
        wanted = importlib.metadata.requires("hf_gpt") or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError("hf_gpt is not installed, so what a Space needs is not known; pip install it") from None
    pins = [f"gradio=={gradio_version}"]
    for requirement in wanted:
        name = re.match(r"[\w-]+", requirement)[0]
        if "extra ==" in requirement:
            continue
        version = importlib.metadata.version(name).partition("+")[0]
        pins.append(requirement if name == "pydantic" else f"{name}=={version}")
    return "\n".join(pins) + "\n"


_APP = '''\
"""The page of `hf-gpt demo`, as a Space. MODEL is a folder beside this file or a Hub id."""

import os
from pathlib import Path

os.chdir(Path(__file__).parent)

from hf_gpt.demo.page import build, look

MODEL = {model!r}

build(MODEL, {title!r}).launch(**look())
'''


def _card(title: str, gradio_version: str, hub_id: str | None) -> str:
    metadata = {
        "title": title,
        "emoji": "✍️",
        "colorFrom": "blue",
        "colorTo": "yellow",
        "sdk": "gradio",
        "sdk_version": gradio_version,
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",  # which the pinned versions are for
        "app_file": "app.py",
        "pinned": False,
    }
    if hub_id:
        metadata["models"] = [hub_id.partition("@")[0]]
    return (
        f"---\n{yaml.safe_dump(metadata, allow_unicode=True, sort_keys=False)}---\n\n# {title}\n\n"
        "A language model trained with hf_gpt: type a prompt, move the decoding controls, see what they do to the"
        " distribution of the next token, and let it write.\n\n"
        "`app.py` is the page, `hf_gpt/` the source of the package that makes it"
        f"{'' if hub_id else ', `model/` the model'}. Elsewhere: `pip install -r requirements.txt && python app.py`.\n"
    )
