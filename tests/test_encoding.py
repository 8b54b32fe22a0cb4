"""Text is written and read in UTF-8, whatever the locale."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_BINARY = ("Image", "tarfile", "zipfile", "gzip", "os")
"""Modules whose ``open`` is not for text."""


def without_encoding(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls that read or write text in the encoding of the locale."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(word.arg == "encoding" for word in node.keywords):
            continue
        name, place = "", 0
        if isinstance(node.func, ast.Attribute):
            name = node.func.attr
            if isinstance(node.func.value, ast.Name) and node.func.value.id in _BINARY:
                continue
        elif isinstance(node.func, ast.Name):
            name, place = node.func.id, 1
        words = {word.arg: word.value for word in node.keywords}
        mode = words.get("mode") or (node.args[place] if len(node.args) > place else None)
        is_binary = isinstance(mode, ast.Constant) and "b" in str(mode.value)
        text = words.get("text")
        if (
            name in ("read_text", "write_text")
            or (name == "open" and not is_binary)
            or (isinstance(text, ast.Constant) and text.value is True)
        ):
            yield node


def test_every_text_names_its_encoding() -> None:
    calls = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for folder in ("src", "scripts", "tests", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for call in without_encoding(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not calls
