"""Text is written and read in UTF-8, whatever the locale."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BINARY = ("Image", "tarfile", "zipfile", "gzip", "os")
"""Modules whose ``open`` is not for text."""


def needs_encoding(node: ast.AST) -> bool:
    """Whether a node is a call that reads or writes text in the encoding of the locale."""
    if not isinstance(node, ast.Call):
        return False
    words = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
    module, _, name = ast.unparse(node.func).rpartition(".")
    if "encoding" in words or module in BINARY:
        return False
    modes = [words.get("mode"), *(getattr(argument, "value", None) for argument in node.args)]
    is_binary = any(isinstance(mode, str) and re.fullmatch("[rwax+]*b[rwax+]*", mode) for mode in modes)
    return name in ("read_text", "write_text") or (name == "open" and not is_binary) or words.get("text") is True


def test_every_text_names_its_encoding() -> None:
    calls = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in ("src", "scripts", "tests", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if needs_encoding(node)
    ]
    assert not calls
