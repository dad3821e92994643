"""A dataset on the Hub: its splits, and the tables that they are made of.

`datasets` finds the configuration, the commit and the files. If these are json, csv or parquet, and the card does not
say how to read them, they are read as local ones are: from the copy that huggingface_hub keeps, or with
`data.streaming` while they arrive. So no type is guessed there either. What has another form `datasets` reads.

The names of the files are kept beside the copies, for a machine without a network: what was downloaded does not say
whether it is all. `datasets` takes two seconds to import, so it is imported only when it is needed.
"""

import contextlib
import dataclasses
import logging
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

from ..errors import UserError
from ..storage import read_json, write_json
from .cache import digest
from .files import KINDS, kind_of, open_bytes
from .tables import Table, one_line

_ON_HUB = r"hf://datasets/([^@]+)@([0-9a-f]{40})/(.+)"


@dataclasses.dataclass(frozen=True)
class HubDataset:
    """One configuration of a dataset at one revision.

    - `revision`: its commit, or what else identifies the content of what `datasets` reads.
    - `kind`, `files`: how its files are read here, and their addresses by split; None and {} where `builder` reads.
    """

    config: str
    revision: str
    splits: list[str]
    kind: str | None = None
    files: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    builder: Any = None

    def tables(self, split: str, name: str, streaming: bool) -> list[Table]:
        """The tables of a split, in order; `name` is what a person calls one that `datasets` reads."""
        if self.kind is None:
            return [Table(name, "rows", partial(self._rows, split, streaming))]
        named = [(re.sub(_ON_HUB, r"\1/\3", url), url) for url in self.files[split]]
        return [Table(shown, self.kind, partial(_open, url, streaming)) for shown, url in named]

    def _rows(self, split: str, streaming: bool) -> Any:
        if streaming:
            return self.builder.as_streaming_dataset(split=split)
        self.builder.download_and_prepare()
        return self.builder.as_dataset(split=split)


def find_dataset(source: str, config: str | None, revision: str | None) -> HubDataset:
    """The dataset of a Hub id.

    Raises:
        UserError: there is none, the Hub is not reached and it is not known here, it has no such configuration, or
            its card names a file of this machine.
    """
    asked = [source, config, revision]
    try:
        builder = _builder(source, config, revision)
    except UserError:
        if (known := _remembered(asked)) is None:
            raise
        return _of_files(known)
    if found := _plain_files(source, builder):
        _remember(asked, found)
        return _of_files(found)
    splits = [*map(str, builder.config.data_files or builder.info.splits or ())]
    return HubDataset(builder.config.name, str(builder.hash), splits, builder=builder)


def _of_files(found: dict[str, Any]) -> HubDataset:
    return HubDataset(found["config"], found["hash"], list(found["files"]), found["kind"], found["files"])


def _plain_files(source: str, builder: Any) -> dict[str, Any] | None:
    """The files of a dataset, if they are of one kind that is read here; None where its card says how to read them."""
    from datasets import BuilderConfig

    config, module = builder.config, type(builder).__module__.rpartition(".")[2]
    files = {str(split): [str(url) for url in urls] for split, urls in (config.data_files or {}).items()}
    urls = [url for urls in files.values() for url in urls]
    common = {field.name for field in dataclasses.fields(BuilderConfig)} | {"features"}
    options = [
        field.name
        for field in dataclasses.fields(config)
        if field.name not in common and field.default is not dataclasses.MISSING
        if getattr(config, field.name) != field.default
    ]
    here = [url for url in urls if "://" not in url]
    if here and not Path(source).exists():
        raise UserError(f"{source}: its card names a file of this machine: {here[0]}")
    are_ours = all(url in here or re.fullmatch(_ON_HUB, url) for url in urls) and {
        kind_of(Path(url)) for url in urls
    } == {module}
    if not are_ours or module not in ("json", "csv", "parquet") or options:
        return None
    return {"kind": module, "config": config.name, "hash": str(builder.hash), "files": files}


def _remember(asked: list[str | None], found: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        write_json(_memory(asked), {"asked": asked, "found": found})


def _remembered(asked: list[str | None]) -> dict[str, Any] | None:
    try:
        memory = read_json(_memory(asked))
        found = memory["found"]
        urls = [url for urls in found["files"].values() for url in urls]
        ours = all(re.fullmatch(_ON_HUB, url)[1] == asked[0] for url in urls) and found["kind"] in KINDS.values()
        return found if ours and memory["asked"] == asked else None
    except (UserError, KeyError, TypeError, AttributeError):
        return None


def _memory(asked: list[str | None]) -> Path:
    from huggingface_hub import cached_assets_path

    return cached_assets_path("hf_gpt", namespace="datasets") / f"{digest(*map(str, asked))}.json"


def _open(url: str, streaming: bool) -> IO[bytes]:
    from huggingface_hub import HfFileSystem, hf_hub_download

    found = re.fullmatch(_ON_HUB, url)
    if found is None:  # of a folder here that stands for one on the Hub
        return open_bytes(Path(url))
    repo_id, commit, path = found.groups()
    if streaming:
        return open_bytes(Path(url), HfFileSystem().open(url, "rb"))
    return open_bytes(Path(hf_hub_download(repo_id, path, repo_type="dataset", revision=commit)))


def _builder(source: str, config: str | None, revision: str | None) -> Any:
    from datasets import get_dataset_config_names, load_dataset_builder

    problem = (
        f"{source}: no such file or folder, and it cannot be loaded as a dataset from the Hub (is the name right, is "
        "there a network, is HF_HUB_OFFLINE set?)"
    )
    with one_line(problem), _quiet():
        try:
            return load_dataset_builder(source, config, revision=revision)
        except ValueError:
            names = get_dataset_config_names(source, revision=revision)
            if config in names or (config is None and len(names) == 1):
                raise
            found = f"has no configuration '{config}'" if config else "has several configurations"
            raise UserError(f"{source} {found}; it has: {', '.join(names)}", field="data.config") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """`datasets` logs nothing."""
    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
