"""Decimal text against Python's own reading of it."""

import json

import numpy as np
import pytest

from cmt_aqr.evaluation.decimals import decimals


def test_every_number_comes_back_to_the_bit() -> None:
    random = np.random.default_rng(0)
    tens = np.array([float(f"1e{exponent}") for exponent in range(-323, 309)])
    twos = 2.0 ** np.arange(-1074, 1024)
    edges = np.concatenate((tens, twos))
    values = np.concatenate(
        (
            random.integers(0, 2**64, 20_000, dtype=np.uint64).view(np.float64),
            random.normal(size=20_000) * 300,
            random.random(20_000).astype(np.float32).astype(np.float64),
            edges,
            -edges,
            np.nextafter(edges, 0),
            np.nextafter(edges, np.inf),
            [0.0, -0.0],
        )
    )
    values = values[np.isfinite(values)]
    text = decimals(values)
    assert bytes(text[:, :1]) == b"," * len(values)
    again = np.array(json.loads(b"[" + bytes(text)[1:] + b"]"), dtype=np.float64)
    np.testing.assert_array_equal(again.view(np.uint64), values.view(np.uint64))


def test_text_is_that_of_17_digits() -> None:
    values = np.array((0.1, -123.456, 1e22, 3e-7))
    assert [bytes(row[1:]).decode().strip() for row in decimals(values)] == [f"{value:.16e}" for value in values]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_json_does_not_know_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        decimals(np.array([1.0, value]))
