"""Weights on disk, read one at a time.

`Weights` knows the name and shape of everything in a checkpoint, whatever its format, and `read` hands over one weight
in memory of its own. A table of `Row`s says how two layouts go together; `check` compares it with what is there before
anything is read, and `as_ours` and `as_theirs` read along it, largest first: whatever a weight needs beside
itself while it is turned is then small when most of the model is in memory.

Files are memory-mapped. The pages of a mapping that were read count as memory of this process until it is unmapped, so
that reading a file to its end would hold a second copy of the model; a mapping is given up after `_KEEP_MAPPED`
bytes and made anew. What was freed can count as well, when the C library keeps it for later: see `freeing_at_once`.
"""

import contextlib
import ctypes
import functools
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm

from ..errors import UserError

_KEEP_MAPPED = 16 * 2**20
_M_MMAP_THRESHOLD = -3  # malloc.h
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_SAFETENSORS_FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
# What torch.compile and DistributedDataParallel put before every name.
WRAPPERS = re.compile(r"^(?:(?:_orig_mod|module)\.)+")


class File(Protocol):
    """One file of weights: shapes and types by key, what it has besides weights, and one weight at a time."""

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype | str]  # a word for what torch has no floating-point type for
    others: Mapping[str, Any]

    def read(self, key: str) -> torch.Tensor:
        """One weight, in memory that nothing else holds but another name of the same weight."""


class Row(NamedTuple):
    """One line of a table of names: the weight `theirs` holds our weights `ours`, one above the other.

    `transposed`: theirs has the shape (in, out), where an `nn.Linear` has (out, in). `{}` stands for the layer.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False


class Weights:
    """The weights of one model by name; `where` is what messages call it.

    Args:
        where: the file or folder, as the user named it.
        found: the file of each weight, and its key in there.
    """

    def __init__(self, where: str, found: Mapping[str, tuple[File, str]]):
        self.where = where
        self._found = dict(found)

    @classmethod
    def joined(cls, where: str, shards: Mapping[str, "Weights"]) -> "Weights":
        """One model out of several files: of each weight of `shards`, the weights in which it is."""
        return cls(where, {name: shard._found[name] for name, shard in shards.items()})

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def shape(self, name: str) -> tuple[int, ...]:
        file, key = self._found[name]
        return tuple(file.shapes[key])

    def dtype(self, name: str) -> torch.dtype | str:
        file, key = self._found[name]
        return file.dtypes[key]

    @property
    def widest_dtype(self) -> torch.dtype:
        """The floating-point type that holds every weight as it is, whatever a configuration says of them."""
        floats = [dtype for dtype in map(self.dtype, self) if dtype in _FLOATS]
        return functools.reduce(torch.promote_types, floats)

    def others(self) -> Iterator[Any]:
        """What the files hold besides weights."""
        for file in {id(file): file for file, _ in self._found.values()}.values():
            yield from file.others.values()

    def read(self, name: str) -> torch.Tensor:
        """One weight, in memory that nothing else holds but another name of the same weight."""
        file, key = self._found[name]
        return file.read(key)

    def renamed(self, rename: Callable[[str], str | None]) -> "Weights":
        """The same weights under other names; those that `rename` answers None for are left out.

        Raises:
            UserError: two weights get one name.
        """
        found: dict[str, tuple[File, str]] = {}
        came_from: dict[str, str] = {}
        for name, place in self._found.items():
            new = rename(name)
            if new is None:
                continue
            if new in found:
                raise UserError(f"{self.where}: {came_from[new]} and {name} are two weights for one place")
            found[new], came_from[new] = place, name
        return Weights(self.where, found)


@contextlib.contextmanager
def freeing_at_once() -> Iterator[None]:
    """Within this, a freed weight goes back to the system at once.

    glibc takes large blocks from the system one by one at first, but having seen some freed it keeps those up to 32
    MB: without this, the weights that were freed would still be there when the next model comes (measured: 2.1 times
    GPT-2's size at the peak, 1.2 with it). Afterwards it does as it does by itself. Other C libraries do not behave
    like this, and do not know the call.
    """

    def keep_blocks_up_to(size: int) -> None:
        with contextlib.suppress(AttributeError, OSError, TypeError):
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, size)

    keep_blocks_up_to(2**18)
    try:
        yield
    finally:
        keep_blocks_up_to(2**25)


def open_file(path: Path, sections: Iterable[str] = ()) -> Weights:
    """The weights in a safetensors file, or in a file that `torch.save` wrote, which runs no code (`weights_only`).

    `sections`: keys under which a training script may have put the weights beside other things.

    Raises:
        UserError: it is not such a file, is damaged, or holds a pickle that asks for more than weights.
    """
    file = _Safetensors(path) if _is_safetensors(path) else _Torch(path, tuple(sections))
    return Weights(str(path), {key: (file, key) for key in file.shapes})


def open_folder(folder: Path) -> Weights:
    """The weights beside a `config.json`, in one file or in shards, `.safetensors` before `.bin`.

    Raises:
        UserError: there are none, a shard is missing, or a file cannot be read (see `open_file`).
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return open_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _open_shards(index)
    raise UserError(
        f"{folder}: no weights in it: neither model.safetensors nor pytorch_model.bin, nor an index of their shards"
    )


def expanded(table: Iterable[Row], num_layers: int) -> list[Row]:
    """The rows of `table`, those with a `{}` once for each layer."""
    rows = []
    for row in table:
        for layer in range(num_layers if "{}" in row.theirs else 1):
            names = tuple(name.format(layer) for name in row.ours)
            rows.append(Row(row.theirs.format(layer), names, row.transposed))
    return rows


def check_num_layers(weights: Weights, pattern: str, num_layers: int, says: str) -> None:
    """Compare the number of layers somebody says there are with the names, before a model of that many is thought of.

    Args:
        pattern: how names of a layer's weights begin, with `{}` for the layer.
        says: who says it, as `config.json has n_layer=`.

    Raises:
        UserError: they do not agree.
    """
    numbered = re.compile(re.escape(pattern).replace(re.escape("{}"), r"(\d+)"))
    layers = {int(found[1]) for name in weights if (found := numbered.match(name))}
    if not layers:
        raise UserError(f"{weights.where}: lacks {pattern.format(0)}* and all layers; it has {next(iter(weights))}")
    if len(layers) != num_layers:
        raise UserError(
            f"{weights.where}: holds {len(layers)} layers, the last is {pattern.format(max(layers))}*; "
            f"{says}{num_layers}"
        )


def check(weights: Weights, expected: Mapping[str, tuple[int, ...]], optional: Iterable[str] = ()) -> None:
    """Compare what is there with what a model of its configuration has, before anything is read.

    Raises:
        UserError: weights are missing, there are others, or one has another shape or is not made of floating-point
            numbers. It names the first.
    """
    optional = set(optional)
    missing = [name for name in expected if name not in weights and name not in optional]
    unexpected = [name for name in weights if name not in expected]
    if missing:
        also = f"; it has {unexpected[0]}, which is not known" if unexpected else ""
        raise UserError(f"{weights.where}: lacks {_and_more(missing)}{also}")
    if unexpected:
        raise UserError(f"{weights.where}: holds {_and_more(unexpected)} that this model has no place for")
    for name, shape in expected.items():
        if name in weights and weights.shape(name) != shape:
            raise UserError(
                f"{weights.where}: {name} has the shape {list(weights.shape(name))}, the model needs {list(shape)}"
            )
    for name in weights:
        if weights.dtype(name) not in _FLOATS:
            kind = str(weights.dtype(name)).removeprefix("torch.")
            raise UserError(
                f"{weights.where}: {name} is {kind}; quantised weights are not converted, "
                "only float32, bfloat16, float16 and float64"
            )


def their_shapes(rows: Iterable[Row], ours: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shape of each of their weights, from the shapes of ours."""
    shapes = {}
    for row in rows:
        first, *rest = ours[row.ours[0]]
        shape = (first * len(row.ours), *rest)
        shapes[row.theirs] = shape[::-1] if row.transposed else shape
    return shapes


def as_ours(weights: Weights, rows: Iterable[Row]) -> dict[str, torch.Tensor]:
    """Read `weights`, which have their names, under ours."""
    ours = {}
    for row in _shown(sorted(rows, key=lambda row: -_size(weights.shape(row.theirs)))):
        whole = weights.read(row.theirs)
        whole = whole.T if row.transposed else whole
        for name, part in zip(row.ours, whole.chunk(len(row.ours))):
            # A part of something larger would keep all of it in memory.
            ours[name] = part.contiguous() if len(row.ours) == 1 else part.clone(memory_format=torch.contiguous_format)
    return ours


def as_theirs(weights: Weights, rows: Iterable[Row]) -> dict[str, torch.Tensor]:
    """Read `weights`, which have our names, under theirs. Rows whose weights are not there are left out."""
    theirs = {}
    there = [row for row in rows if row.ours[0] in weights]
    for row in _shown(sorted(there, key=lambda row: -_size(weights.shape(row.ours[0])))):
        parts = [weights.read(name) for name in row.ours]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        theirs[row.theirs] = (whole.T if row.transposed else whole).contiguous()
    return theirs


class _Safetensors:
    def __init__(self, path: Path):
        self._path = path
        self._mapped = None
        self._touched = 0
        self.others = {}
        try:
            with safe_open(path, framework="pt") as file:
                slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
                self.shapes = {key: tuple(one.get_shape()) for key, one in slices.items()}
                self.dtypes = {key: _safetensors_dtype(one.get_dtype()) for key, one in slices.items()}
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: not a whole safetensors file ({error})") from None

    def read(self, key: str) -> torch.Tensor:
        if self._mapped is None:
            self._mapped = safe_open(self._path, framework="pt")
        weight = self._mapped.get_tensor(key).clone()
        self._touched += weight.nbytes
        if self._touched > _KEEP_MAPPED:
            self._mapped, self._touched = None, 0
        return weight


class _Torch:
    """What `torch.save` wrote. Files of torch 1.6 and later are mapped; older ones can only be loaded as a whole, and
    hand their weights over one by one."""

    def __init__(self, path: Path, sections: tuple[str, ...]):
        self._path = path
        self._sections = sections
        self._is_mapped = zipfile.is_zipfile(path)
        self.others, weights = self._load()
        self.shapes = {key: tuple(weight.shape) for key, weight in weights.items()}
        self.dtypes = {key: weight.dtype for key, weight in weights.items()}
        self._loaded: dict[str, torch.Tensor] | None = None  # until something is read
        self._touched = 0

    def read(self, key: str) -> torch.Tensor:
        if self._loaded is None or key not in self._loaded:
            self._loaded = None  # before there is another
            self._loaded = self._load()[1]
        if self._is_mapped:
            weight = self._loaded[key].clone(memory_format=torch.contiguous_format)
            self._touched += weight.nbytes
            if self._touched > _KEEP_MAPPED:
                self._loaded, self._touched = None, 0
            return weight
        weight = self._loaded.pop(key)
        # A part of something larger would keep all of it in memory.
        return weight if weight.untyped_storage().nbytes() == weight.nbytes else weight.clone()

    def _load(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        try:
            with warnings.catch_warnings():  # about pickle protocols, before an error says it better
                warnings.simplefilter("ignore")
                content = torch.load(self._path, map_location="cpu", weights_only=True, mmap=self._is_mapped)
        except OSError as error:
            raise UserError(f"{self._path}: cannot be read: {error.strerror or error}") from None
        except Exception as error:  # damaged and hostile files fail in the unpickler in any way they like
            raise UserError(_why_not_loaded(self._path, error)) from None
        others: dict[str, Any] = {}
        for section in self._sections:
            if isinstance(content, Mapping) and isinstance(content.get(section), Mapping):
                others = {key: value for key, value in content.items() if key != section}
                content = content[section]
                break
        if not isinstance(content, Mapping):
            raise UserError(
                f"{self._path}: holds a {type(content).__name__}, not a state dict; "
                "write one with torch.save(model.state_dict(), 'model.pth')"
            )
        weights = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
        others |= {str(key): value for key, value in content.items() if not isinstance(value, torch.Tensor)}
        if not weights:
            raise UserError(f"{self._path}: holds no weights, only {_and_more(list(map(str, others)) or ['nothing'])}")
        for key, weight in weights.items():
            if kind := _unusual_kind(weight):
                raise UserError(f"{self._path}: {key} is a {kind} tensor; only dense weights are converted")
        others = {key: value for key, value in others.items() if not _holds_tensors(value)}
        return others, weights


def _is_safetensors(path: Path) -> bool:
    """Whether it begins as safetensors do: the length of a header in eight bytes, then its opening brace."""
    if not path.is_file():
        what = "a directory" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {what}; a file that torch.save or safetensors wrote is needed")
    with open(path, "rb") as file:
        start = file.read(9)
    return path.suffix == ".safetensors" or start[8:] == b"{"


def _open_shards(index: Path) -> Weights:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index}: not an index of shards: no weight_map in it") from None
    shards = {}
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (index.parent / name).is_file():
            raise UserError(f"{index}: names the shard {name!r}, which is not beside it")
        shards[name] = open_file(index.parent / name)
    shard_of = {}
    for weight, name in weight_map.items():
        if weight not in shards[name]:
            raise UserError(f"{index.parent / name}: lacks {weight}, which {index.name} says is in it")
        shard_of[weight] = shards[name]
    return Weights.joined(str(index.parent), shard_of)


def _why_not_loaded(path: Path, error: Exception) -> str:
    text = " ".join(str(error).split())
    if "GLOBAL" in text or "TorchScript" in text or "Unsupported class" in text or "Trying to" in text:
        wanted = text.partition("Unsupported global: GLOBAL ")[2].split(" ")[0]
        return (
            f"{path}: holds more than weights{f' ({wanted})' if wanted else ''} and is not read, "
            "for a pickle can run code; save the weights alone: torch.save(model.state_dict(), 'model.pth')"
        )
    why = text.partition("WeightsUnpickler error: ")[2].split(" Please file")[0] or text or type(error).__name__
    return f"{path}: not a whole file of torch.save ({why[:150]})"


def _unusual_kind(weight: torch.Tensor) -> str | None:
    """What a tensor is whose numbers do not simply lie in memory, one after the other."""
    if weight.is_nested:
        return "nested"
    if weight.layout is not torch.strided:
        return str(weight.layout).removeprefix("torch.").replace("_", " ")
    return "meta" if weight.is_meta else "quantised" if weight.is_quantized else None


def _safetensors_dtype(word: str) -> torch.dtype | str:
    return _SAFETENSORS_FLOATS.get(word, word)


def _holds_tensors(value: Any) -> bool:
    """Optimizer states and the like, which would keep a mapping alive."""
    if isinstance(value, Mapping):
        return any(map(_holds_tensors, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_tensors, value))
    return isinstance(value, torch.Tensor)


def _and_more(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _shown(rows: list[Row]) -> Iterable[Row]:
    """The rows, with a progress bar on a terminal once they take longer than two seconds."""
    return tqdm(rows, desc="converting", unit=" weights", delay=2, disable=None, leave=False)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
