"""YAML that a person wrote, as plain values.

PyYAML's safe loader, with less: YAML 1.1 reads `2001-12-14` as a date, `1:30` as ninety and `010` as eight, which
nobody means in a recipe. Here they are text, and only null, booleans, whole numbers, decimals, lists and mappings are
anything else. Every number that this loader reads as a number is one for PyYAML too, so what `yaml.safe_dump` wrote is
read as it was. A key that stands twice is refused, as is what would be endless or enormous: a value within itself,
thousands of levels, aliases that multiply.
"""

import re
from typing import Any

import yaml

from .errors import UserError

_MOST_LEVELS, _MOST_VALUES = 20, 100_000
_SIGNS_AND_DIGITS, _BOOL = "-+.0123456789", "tag:yaml.org,2002:bool"


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own protocol
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in ("null", "bool", "merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {  # noqa: RUF012
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq", "map")
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^[-+]?(0|[1-9][0-9_]*|0b[01][01_]*|0x[0-9a-fA-F][0-9a-fA-F_]*)$"),
    _SIGNS_AND_DIGITS,
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^([-+]?[0-9][0-9_]*\.[0-9_]*([eE][-+][0-9]+)?|\.[0-9][0-9_]*([eE][-+][0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    _SIGNS_AND_DIGITS,
)


class _NoIsText(_Loader):
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
        for first, resolvers in _Loader.yaml_implicit_resolvers.items()
    }


_NoIsText.add_implicit_resolver(_BOOL, re.compile("^([tT]rue|TRUE|[fF]alse|FALSE)$"), "tTfF")


def load_yaml(text: str, name: str, *, no_is_text: bool = False) -> Any:
    """The value of one YAML document; `name` is what errors call it.

    `no_is_text`: of the words for booleans only `true` and `false` are any, as in YAML 1.2; `no` may be Norwegian.

    Raises:
        UserError: it is not valid YAML, holds a key twice, or is nested too deeply.
    """
    try:
        loader = (_NoIsText if no_is_text else _Loader)(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _check(root)
        return loader.construct_document(root)
    except RecursionError:
        raise UserError(f"{name}: is nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{name}: not valid YAML: {error.problem or error.context}{at}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{name}: not valid YAML: {error}") from None
    except (ValueError, LookupError):
        raise UserError(f"{name}: not valid YAML: a number of thousands of digits, or `!!int` of no number") from None


def _check(root: yaml.Node) -> None:
    """Walk the nodes as their values will be, an alias each time that it stands somewhere."""
    waiting, count = [(root, 1)], 0
    while waiting:
        node, level = waiting.pop()
        count += 1
        if level > _MOST_LEVELS or count > _MOST_VALUES:
            raise yaml.composer.ComposerError(problem="nested too deeply, or endlessly", problem_mark=node.start_mark)
        if isinstance(node, yaml.SequenceNode):
            waiting += [(child, level + 1) for child in node.value]
        elif isinstance(node, yaml.MappingNode):
            seen = set()
            for key, child in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if (key.tag, key.value) in seen:
                        raise yaml.constructor.ConstructorError(
                            problem=f"the key '{key.value}' stands twice", problem_mark=key.start_mark
                        )
                    seen.add((key.tag, key.value))
                waiting += [(key, level + 1), (child, level + 1)]
