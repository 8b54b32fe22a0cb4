"""Rows of records by token, against a dictionary."""

import numpy as np
import pytest

from cmt_aqr.data.columns import TokenRows, bytes_of


def made(random: np.random.Generator, count: int, most: int) -> list[str]:
    """Texts of 1 to ``most`` letters, some of two bytes, each once."""
    return list(
        dict.fromkeys("".join(random.choice(list("abé0"), random.integers(1, most + 1))) for _ in range(count))
    )


@pytest.mark.parametrize("most", [1, 3, 40])
def test_rows_are_those_of_a_dictionary(most: int) -> None:
    """Whatever the lengths."""
    random = np.random.default_rng(0)
    texts = made(random, 200, most)
    rows = {text: row for row, text in enumerate(texts)}
    wanted = [*random.permutation(texts), "", "other", "a" * 50, *made(random, 50, most + 5)]
    found = TokenRows(bytes_of(texts)).find(bytes_of(wanted))
    np.testing.assert_array_equal(found, [rows.get(text, -1) for text in wanted])
    assert TokenRows(bytes_of(texts)).twice() is None
    assert TokenRows(bytes_of([*texts, texts[0]])).twice() == len(texts)
    assert TokenRows(bytes_of([])).find(bytes_of(wanted)).tolist() == [-1] * len(wanted)
