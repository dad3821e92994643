"""Published figures: a figure holds if it is within one unit of its last printed digit.

Processors add in different orders, so that digit may differ. Texts and token ids hold exactly. Tests of published
figures are marked `figures`; `.ci/run` runs them with each kind of vector instructions that PyTorch can use.
"""

import re
from decimal import Decimal

import pytest

_FIGURE = re.compile(r"-?\d[\d,]*\.\d+(?:e[+-]?\d+)?")


def published(figure: str):
    """What a number is compared with: `assert loss == published("10.7940")`."""
    number = Decimal(figure.replace(",", ""))
    unit = float(Decimal(1).scaleb(number.as_tuple().exponent))
    return pytest.approx(float(number), rel=0, abs=unit * (1 + 1e-6))


def assert_printed(found: str, expected: str) -> None:
    """The same text, in which the figures (numbers with a decimal point) are within one unit of their last digit."""
    assert _FIGURE.sub("0.0", found) == _FIGURE.sub("0.0", expected)
    numbers = [float(figure.replace(",", "")) for figure in _FIGURE.findall(found)]
    assert numbers == [published(figure) for figure in _FIGURE.findall(expected)]
