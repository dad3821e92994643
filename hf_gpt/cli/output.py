"""What commands print, and where: results on stdout, everything else on stderr; and no needless progress bars."""

import json
import sys
from typing import Any

from ..errors import UserError, one_line


def print_json(value: Any) -> None:
    """Print one JSON object; other characters than ASCII are escaped where stdout is not UTF-8."""
    is_utf = (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(value, ensure_ascii=not is_utf, allow_nan=False))


def say(line: str) -> None:
    """Print a line for people, in which names cannot move the cursor."""
    print(one_line(line), file=sys.stderr)


def hide_loading_bars() -> None:
    """No bar while transformers loads a model: that takes a second."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def set_up_hub(*, show_bars: bool = True) -> None:
    """Before any traffic with the Hub: bars only where they can move."""
    from huggingface_hub.utils import disable_progress_bars

    from ..data.progress import shows_bar

    if not (show_bars and shows_bar()):
        disable_progress_bars()


def check_output_file(file: str | None, field: str) -> None:
    """Refuse, before the work, a file that cannot be written after it."""
    from ..storage import local_path, refuse_unwritable

    if file is None:
        return
    path = local_path(file, field)
    if path.is_dir():
        raise UserError("is a folder; give a file", field=field, value=repr(file))
    refuse_unwritable(path.parent, field)
