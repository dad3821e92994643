"""Which files a local source names: a folder, a glob, the card of a dataset, or what `save_to_disk` wrote.

The one idea: a name that exists is meant literally, whatever characters it has, and each file is read once, whichever
ways lead to it. What a reader might have expected to be read and is not has a place in `notes`. A source stays inside
its folder, and off the network. Nothing here opens a file of text, but to see whether it is one.
"""

import fnmatch
import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..display import escape_unprintable
from ..errors import UserError
from ..loading import reason
from ..storage import parse_json, read_file
from ..yaml_text import load_yaml
from .charset import is_binary
from .files import kind_of, read_blocks


class Listing(NamedTuple):
    """The files of each split, in the order in which they are read.

    `config`: the configuration of a card whose files these are. `notes`: for people.
    """

    splits: dict[str, list[Path]]
    config: str | None = None
    notes: tuple[str, ...] = ()


def list_path(source: str, path: Path, config: str | None) -> Listing | None:
    """The files that a path or a glob names; None if it can be neither.

    Raises:
        UserError: there are none, or the card of a dataset is wrong.
    """
    if path.is_dir():
        return list_folder(source, path, config)
    if not path.exists() and not glob.has_magic(source):
        return None
    if path.is_file():
        return Listing({"train": [path]})
    if path.exists():
        raise UserError(f"{source}: is no file that can be read twice; write its text to one")
    entries = _expand(Path(path.anchor or "."), path.relative_to(path.anchor).parts)
    folders = [entry for entry in entries if entry.is_dir()]
    files, left = once(entry for entry in entries if not entry.is_dir())
    if not files:
        raise UserError(f"data: no file matches '{source}'")
    left = [f"{folder} (a folder)" for folder in folders] + left
    return Listing({"train": sorted(files)}, notes=_left_out(source, left))


def once(paths: Iterable[Path], folder: Path | None = None) -> tuple[list[Path], list[str]]:
    """The files among `paths`, each once, by whatever names; and what is left out, and why, with names in `folder`."""
    files: dict[tuple[int, int], Path] = {}
    left = []
    for path in paths:
        name = path.relative_to(folder) if folder else path
        try:
            found = path.stat()
        except OSError as error:
            left.append(f"{name} ({error.strerror})")
            continue
        first = files.get((found.st_dev, found.st_ino))
        if stat.S_ISDIR(found.st_mode):
            left.append(f"{name} (a link to a folder above it)")
        elif not stat.S_ISREG(found.st_mode):
            left.append(f"{name} (no file)")
        elif first == path:
            left.append(f"{name} (named twice)")
        elif first is not None:
            left.append(f"{name} (the same file as {first.relative_to(folder) if folder else first})")
        else:
            files[found.st_dev, found.st_ino] = path
    return list(files.values()), left


def _left_out(source: str, left: Sequence[str], num_named: int = 5) -> tuple[str, ...]:
    more = f" and {len(left) - num_named} more" if len(left) > num_named else ""
    line = f"{source}: left out {', '.join(left[:num_named])}{more}"
    return (escape_unprintable(line, one_line=True),) if left else ()


# Folders ------------------------------------------------------------------------------------------------------------

_ABOUT = ("readme", "license", "licence")  # files about a folder's text
_ABOUT_DATASETS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_SPLIT_IN_NAME = re.compile(r"(?<![a-z])(train|val|dev|test|eval)(?:ing|id|idation|uation|elopment)?(?![a-z])")
_SPLITS = {"train": "train", "val": "validation", "dev": "validation", "test": "test", "eval": "test"}


def list_folder(source: str, folder: Path, config: str | None) -> Listing:
    """A folder written by `save_to_disk`, a dataset with a card, or simply files."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return Listing(_saved_to_disk(folder))
    configs = _configs(folder / "README.md")
    if configs:
        return _of_card(source, folder, config, configs)
    splits, left = _files_of(source, folder)
    return Listing(splits, notes=_left_out(source, left))


def _files_of(source: str, folder: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The files below a folder, by split, and what is left out: what has no known ending, beside what has one.

    Where no file has a known ending, all that hold text are read: `bnc_spoken.train`, `chapter.tok`.
    """
    found, left = once(_below(folder), folder)
    texts = [p for p in found if p.stem.lower() not in _ABOUT and p.name not in _ABOUT_DATASETS]
    files, others = [p for p in texts if kind_of(p)], [p for p in texts if not kind_of(p)]
    splits_of_others = [path.name for path in others if _SPLIT_IN_NAME.fullmatch(path.suffix[1:].lower())]
    if files and splits_of_others:
        raise UserError(f"{source}: holds {files[0].name} and {splits_of_others[0]}; choose with a glob")
    files = files or [path for path in others if not is_binary(next(read_blocks(path), b""))]
    left = [str(path.relative_to(folder)) for path in sorted({*found} - {*files})] + left
    if not files:
        shown = "".join(_left_out("", left)).removeprefix(": ")
        raise UserError(
            f"{source}: holds no text{f' ({shown})' if shown else ''}; name a file, or a glob such as '{source}/*'"
        )
    # Once one file names a split, `datasets` leaves out the files that name none, which loses books. Here a folder
    # has splits only if every file names one.
    files = sorted(files)
    named = [_SPLIT_IN_NAME.search(str(p.relative_to(folder)).lower()) for p in files]
    if any(named) and not all(named):
        left.insert(0, f"the splits ({files[named.index(None)].name} names none: all files are training text)")
    splits: dict[str, list[Path]] = {}
    for path, match in zip(files, named):
        splits.setdefault(_SPLITS[match[1]] if all(named) else "train", []).append(path)
    return splits, left


def _below(folder: Path) -> Iterator[Path]:
    """All that is below a folder but folders and what is hidden. Linked folders come last, each folder once.

    A link to a folder that this one lies in is not followed: it stands for itself.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}")

    seen, waiting, inside = set(), [folder], folder.resolve()
    while waiting:
        for place, folders, files in os.walk(waiting.pop(0), onerror=refuse):
            found = os.stat(place)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if (found.st_dev, found.st_ino) in seen:
                folders.clear()
                continue
            seen.add((found.st_dev, found.st_ino))
            for linked in (Path(place, name) for name in folders if os.path.islink(os.path.join(place, name))):
                if inside.is_relative_to(linked.resolve()) and linked.resolve() != inside:
                    yield linked
                else:
                    waiting.append(linked)
            yield from (Path(place, name) for name in sorted(files) if not name.startswith("."))


def _expand(base: Path, parts: Sequence[str]) -> list[Path]:
    """What a glob matches below `base`; `**` stands for any folders. The names of folders that exist are literal."""
    parts = list(parts)
    while parts and (base / parts[0]).is_dir():
        base /= parts.pop(0)
    before = parts[: parts.index("**")] if "**" in parts else parts
    found = [base / name for name in glob.glob(os.path.join(*before), root_dir=base)] if before else [base]
    if before == parts:
        return sorted(found)
    after = parts[len(before) :]
    return [
        p for top in sorted(found) if top.is_dir() for p in _below(top) if _matches(p.relative_to(top).parts, after)
    ]


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return pattern == ["**"] or any(_matches(parts[n:], pattern[1:]) for n in range(len(parts)))
    return bool(parts) and fnmatch.fnmatch(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _saved_to_disk(folder: Path) -> dict[str, list[Path]]:
    """The Arrow files of a folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    place = folder

    def read(name: str, key: str) -> Any:
        nonlocal place
        place = folder / name
        return parse_json(place.read_bytes())[key]

    def inside(name: Any) -> str:
        if name in ("", ".", "..") or Path(name).name != name:
            raise ValueError(f"'{name}' is no name of a file")
        return name

    try:
        splits = {"train": "."}
        if (folder / "dataset_dict.json").is_file():
            splits = {split: inside(split) for split in read("dataset_dict.json", "splits")}
        return {
            split: [folder / sub / inside(file["filename"]) for file in read(f"{sub}/state.json", "_data_files")]
            for split, sub in splits.items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = getattr(error, "strerror", None) or reason(error)
        raise UserError(f"{place}: is not what save_to_disk writes: {why}") from None


# The card of a dataset ----------------------------------------------------------------------------------------------

_HARMLESS = {"config_name", "data_files", "data_dir", "default", "description", "version", "features", "sep"}
_HARMLESS |= {"delimiter", "keep_linebreaks", "sample_by", "columns"}


def _configs(card: Path) -> list[Mapping[str, Any]]:
    """The configurations that the header of a card names."""
    header = re.match(r"\ufeff?---\s*\n(.*?)\n---", (read_file(card) or b"").decode("utf-8", "replace"), re.S)
    values = load_yaml(header[1], str(card)) if header else None
    configs = values.get("configs") if isinstance(values, dict) else None
    if configs is None:
        return []
    if not isinstance(configs, list) or not all(isinstance(config, dict) for config in configs):
        raise UserError(f"{card}: configs: expected a list of configurations with a config_name each")
    return configs


def _of_card(source: str, folder: Path, wanted: str | None, configs: list[Mapping[str, Any]]) -> Listing:
    names = [str(config.get("config_name", "default")) for config in configs]
    default = [name for name, config in zip(names, configs) if config.get("default") is True or name == "default"]
    chosen = wanted or (names[0] if len(names) == 1 else next(iter(default), None))
    if chosen not in names:
        found = f"has no configuration '{wanted}'" if wanted else "has several configurations"
        raise UserError(f"{source} {found}; it has: {', '.join(names)}", field="data.config")
    config, where = configs[names.index(chosen)], f"{folder / 'README.md'}: configuration '{chosen}'"
    if unknown := sorted(map(str, config.keys() - _HARMLESS)):
        raise UserError(f"{where} sets {', '.join(unknown)}, which is not understood here; name its files instead")
    base = folder / _inside(where, config.get("data_dir") or ".")
    if "data_files" not in config:
        splits, left = _files_of(source, base)
        _refuse_links_to_outside(where, folder, splits)
        return Listing(splits, chosen, _left_out(source, left))
    files, splits, left = config["data_files"], {}, []
    if isinstance(files, list) and all(isinstance(entry, dict) for entry in files):
        files = {str(entry.get("split", "train")): entry.get("path") for entry in files}
    for split, patterns in files.items() if isinstance(files, dict) else [("train", files)]:
        patterns = patterns if isinstance(patterns, list) else [patterns]
        splits[str(split)], again = once(path for pattern in patterns for path in _of_pattern(where, base, pattern))
        left += again
        if not splits[str(split)]:
            raise UserError(f"{where} names no file")
    _refuse_links_to_outside(where, folder, splits)
    return Listing(splits, chosen, _left_out(source, left))


def _of_pattern(where: str, base: Path, pattern: Any) -> list[Path]:
    """The files that an entry of `data_files` names, in the order that `datasets` has."""
    named = base / _inside(where, pattern)
    if named.is_file():
        return [named]
    found = [p for p in _expand(base, PurePosixPath(pattern).parts) if p.is_file()]
    found = [path for path in found if path.name != "README.md" and path.name not in _ABOUT_DATASETS]
    if not found:
        raise UserError(f"{where}: no file matches '{pattern}'")
    return sorted(found, key=str)


def _inside(where: str, name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: expected the name of a file, found {name!r}")
    if re.search(r"://|::|^[A-Za-z]:|^[/\\]|(^|[/\\])\.\.([/\\]|$)", name):
        raise UserError(f"{where} names '{name}', which is not inside the folder; a local source stays there")
    return name


def _refuse_links_to_outside(where: str, folder: Path, splits: Mapping[str, Sequence[Path]]) -> None:
    """A folder with a card is often somebody else's, as are its links. In huggingface_hub's cache they are ours."""
    inside = folder.resolve()
    inside = inside.parent.parent if inside.parent.name == "snapshots" else inside
    for path in (path for paths in splits.values() for path in paths):
        if not path.resolve().is_relative_to(inside):
            raise UserError(f"{where} names {path}, a link to outside the folder; a local source stays there")
