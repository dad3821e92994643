"""What functions that draw return: the paths of their files, which a notebook shows as pictures."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError

FORMATS = {".png": "image/png", ".pdf": "application/pdf", ".svg": "image/svg+xml"}
_OTHER_FILES = {".bmp", ".eps", ".gif", ".htm", ".html", ".jpeg", ".jpg", ".ps", ".tif", ".tiff", ".webp"}


def picture_format(path: str | Path, field: str = "path") -> str:
    """What a picture's name says it is: `png`, `pdf` or `svg`.

    Raises:
        UserError: something else; the error names `field`.
    """
    ending = Path(path).suffix.lower()
    if ending not in FORMATS:
        raise UserError("give a name that ends in .png, .pdf or .svg", field=field, value=str(path))
    return ending[1:]


def is_picture(path: str | Path, field: str) -> bool:
    """Whether a picture is meant, and not a folder.

    Raises:
        UserError: another kind of file is meant; the error names `field`.
    """
    if Path(path).suffix.lower() in _OTHER_FILES and not Path(path).is_dir():
        picture_format(path, field)
    return Path(path).suffix.lower() in FORMATS and not Path(path).is_dir()


class Picture(type(Path())):
    """The path of a picture."""

    def _repr_png_(self) -> bytes | None:
        return self.read_bytes() if self.suffix.lower() == ".png" and self.is_file() else None

    def _repr_svg_(self) -> str | None:
        return self.read_text(encoding="utf-8") if self.suffix.lower() == ".svg" and self.is_file() else None

    def as_html(self) -> str:
        """The picture within a page, as wide as there is room; nothing of a PDF, or of a file that is gone."""
        kind = FORMATS.get(self.suffix.lower(), "")
        if not kind.startswith("image/") or not self.is_file():
            return ""
        data = base64.b64encode(self.read_bytes()).decode()
        return f'<img src="data:{kind};base64,{data}" alt="{html.escape(self.name)}" style="max-width: 100%">'


class Pictures(list):
    """The paths of a report and its pictures, and `figures`, what runs of several seeds have in the end."""

    figures: Sequence[object] = ()

    def _repr_html_(self) -> str:
        paths = "<br>".join(f"<code>{html.escape(str(one))}</code>" for one in (*self.figures, *self))
        return "".join(Picture(path).as_html() for path in self) + f"<p>{paths}</p>"
