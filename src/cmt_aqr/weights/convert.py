"""Names and layouts of the official CMT state dicts, both ways, by rule.

Each rule maps one family of names; together they are a bijection between the four published variants and this
project's models. A sparse convolution's kernel is (out, kz, ky, kx, in) there and (kz, ky, kx, in, out) here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """One family of parameter names.

    The two templates hold the same fields: ``{n}`` is a number, ``{word}`` a name without a dot, ``{rest}``
    anything. Doubled fields must agree.
    """

    official: str
    ours: str

    def forward(self, name: str) -> str | None:
        """Our name of an official one, or ``None`` if the rule is about others."""
        return _translate(name, self.official, self.ours)

    def backward(self, name: str) -> str | None:
        """The official name of one of ours, or ``None`` if the rule is about others."""
        return _translate(name, self.ours, self.official)


FIELD = re.compile(r"\{([a-z]+)(\d*)\}")
PATTERNS = {"n": r"\d+", "word": r"[^.]+", "rest": r".+"}

RULES: tuple[Rule, ...] = (
    # LiDAR: sparse encoder, SECOND, FPN
    Rule("pts_middle_encoder.conv_input.0.{rest}", "lidar.encoder.input.conv.{rest}"),
    Rule("pts_middle_encoder.conv_input.1.{rest}", "lidar.encoder.input.norm.{rest}"),
)
