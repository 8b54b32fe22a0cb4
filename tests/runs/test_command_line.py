"""What a user types, made readable for Hydra."""

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from cmt_aqr.errors import UserError
from cmt_aqr.runs.command_line import in_order, read_arguments, readable, to_type

HOME = str(Path.home())


def value(override: str) -> object:
    def plain(item: object) -> object:
        return [plain(part) for part in item] if isinstance(item, list) else getattr(item, "text", item)

    parsed = OverridesParser.create().parse_override(override)
    return plain(list(parsed.sweep_iterator()) if parsed.is_sweep_override() else parsed.value())


@pytest.mark.parametrize(
    ("typed", "meaning"),
    [
        ("name=тест", "тест"),
        ("name=日本 語", "日本 語"),
        ("data.root=/d/#1", "/d/#1"),
        ("name=a!b;c&d", "a!b;c&d"),
        ("weights=~", HOME),
        ('weights="~/a=b.pth"', f"{HOME}/a=b.pth"),
        ("weights=~/Тест.pth", f"{HOME}/Тест.pth"),
        ("weights=~nobody_of_this_name/x", "~nobody_of_this_name/x"),
        ("frames=[тест,~/b]", ["тест", f"{HOME}/b"]),
        ("weights=~/a.pth,b.pth", [f"{HOME}/a.pth", "b.pth"]),
        # What Hydra reads already keeps its meaning.
        ("a=1.5", 1.5),
        ("a='тест'", "тест"),
        ("a={0:2.5,1:[x,y]}", {0: 2.5, 1: ["x", "y"]}),
        ("a=C:/x", "C:/x"),
        ("a=${oc.env:HOME}/x", "${oc.env:HOME}/x"),
        ("a=null", None),
        ("a=", ""),
    ],
)
def test_text_that_can_only_be_text_is_read_as_text(typed: str, meaning: object) -> None:
    assert value(readable(typed)) == meaning


@pytest.mark.parametrize(
    "text", ["x/epoch=3.ckpt", "/d/a,b", "{x}", "it's", 'a\\"b', "C:\\d (1)\\", "[1", "a = b, c"]
)
def test_the_proposed_command_works(text: str) -> None:
    (typed,) = shlex.split(to_type(f"weights={text}"))
    assert value(readable(typed)) == text


def test_deletions_and_additions_stay() -> None:
    assert [readable(item) for item in ("~a", "+a=~/x", "~a=1")] == ["~a", f"+a={HOME}/x", "~a=1"]


def test_overrides_are_moved_before_flags() -> None:
    assert in_order(["a=1", "-m", "b=2"]) == ["a=1", "b=2", "-m"]
    line = in_order(["--config-dir", "x", "b=2", "--info", "defaults", "c=3"])
    assert line == ["b=2", "c=3", "--config-dir", "x", "--info", "defaults"]
    flags, overrides = read_arguments(["b=1", "--config-dir=x", "-cn", "other", "c=2", "--multirun"])
    assert (flags.config_dir, flags.config_name, flags.multirun) == ("x", "other", True)
    assert overrides == ["b=1", "c=2"]
    assert in_order(["seed=1,2", "--help", "-m"]) == ["--help", "-m"], "the help needs no overrides"


@pytest.mark.parametrize("arguments", [["--bogus"], ["--info", "foo"], ["--cfg"], ["--config-dir"]])
def test_an_invalid_flag_is_one_sentence(arguments: list[str]) -> None:
    with pytest.raises(UserError, match=arguments[0].lstrip("-")) as refused:
        read_arguments(arguments)
    assert "\n" not in str(refused.value)
