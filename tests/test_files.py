"""Writing files."""

import errno
import math
import os
from pathlib import Path

import pytest

from cmt_aqr.errors import UserError
from cmt_aqr.files import atomic_write, check_folder, folder_size, nan_to_null, null_to_nan, write_table, writing


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    with atomic_write(path) as partial:
        partial.write_text("first", encoding="utf-8")
        assert not path.exists()
    with pytest.raises(RuntimeError), atomic_write(path) as partial:
        partial.write_text("sec", encoding="utf-8")
        raise RuntimeError
    assert path.read_text(encoding="utf-8") == "first"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/below", "a" * 300, "link"])
def test_a_folder_that_cannot_be_created_is_named_with_its_key(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"some.key={tmp_path / place}: "):
        check_folder("some.key", tmp_path / place)
    check_folder("some.key", tmp_path / "new" / "folder")
    check_folder("some.key", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link"}


def test_only_errors_of_the_file_system_become_sentences() -> None:
    with pytest.raises(UserError, match=r"out=x: .*No space left"), writing("out", Path("x")):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(KeyError), writing("out", Path("x")):
        raise KeyError("a bug")


def test_a_table_has_the_columns_of_all_rows_and_empty_cells(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    write_table(path, [{"a": 1, "b": None}, {"b": math.nan, "c": 'x, "y"'}])
    assert path.read_text(encoding="utf-8").splitlines() == ["a,b,c", "1,,", ',nan,"x, ""y"""']
    write_table(path, [], ["a", "b"])
    assert path.read_text(encoding="utf-8").splitlines() == ["a,b"]


def test_undefined_numbers_are_null_in_json() -> None:
    plain = nan_to_null({"a": 0.5, "b": math.nan})
    assert plain == {"a": 0.5, "b": None}
    back = null_to_nan(plain)
    assert back["a"] == 0.5 and math.isnan(back["b"])


def test_folder_size(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(bytes(7))
    (tmp_path / "c").write_bytes(bytes(5))
    assert folder_size(tmp_path) == 12
