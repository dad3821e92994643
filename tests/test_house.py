"""The rooms of the package: arrows run one way, and the core never imports a satellite."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hf_gpt"

# From below: a file imports from its own room, and from rooms on the lines above its own.
FLOORS = (
    ("errors",),
    ("storage", "display", "texts", "yaml_text", "configuration_gpt", "network", "precision", "transformers_4"),
    ("recipe", "loading"),
    ("modeling_gpt", "structure", "probing"),
    ("data",),
    ("checkpoint", "loss"),
    ("evaluation",),
    ("generation",),
    ("training",),
    ("conversion", "report", "text_evaluation"),
    ("explain", "hub"),
    ("run",),
    ("replay", "batch", "estimate", "demo", "benchmarks"),
    ("cli",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(file: Path) -> set[str]:
    """The rooms that a file imports from, also inside functions; what only type checkers read does not count."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    depth = len(file.relative_to(PACKAGE).parts)
    rooms = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            rooms |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return rooms & FLOOR.keys()


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_arrows_run_one_way(file):
    room = room_of(file)
    if room == "__init__":
        return
    above = {other for other in imported_rooms(file) - {room} if FLOOR[other] >= FLOOR[room]}
    assert not above, f"{file.name} is in {room}, and imports from {sorted(above)}"


def test_every_room_has_a_floor():
    rooms = {room_of(file) for file in PACKAGE.rglob("*.py")} - {"__init__"}
    assert rooms == FLOOR.keys()


def test_the_reading_path_is_an_afternoon():
    path = [line.split("`")[1] for line in (PACKAGE / "README.md").read_text().splitlines() if line[:3] in PLACES]
    assert len(path) == 8
    assert sum(len((PACKAGE / name).read_text().splitlines()) for name in path) < 2000


PLACES = {f"| {place}" for place in range(1, 9)}
