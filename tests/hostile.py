"""A pickle that runs code: unpickled, it makes a file."""

from pathlib import Path


class Trap:
    """Pickled, it becomes the call `open(path, "w")`."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))
