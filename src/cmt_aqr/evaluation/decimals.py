"""Numbers as decimal text, many at once: what a results file of nuScenes' size spends its time on."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

WIDTH = 24
"""Bytes of a number."""

_DIGITS = 17  # so many tell every float64 from its neighbours
_LARGEST = 99  # exponent of two digits


def _powers() -> NDArray[np.float64]:
    """10^p, p = -100 .. 120, in parts (4, power): the nearest float64, its upper and lower half, the rest."""
    exact = [Fraction(10) ** p for p in range(-100, 121)]
    nearest = np.array([float(power) for power in exact])
    rest = np.array([float(power - Fraction(near)) for power, near in zip(exact, nearest.tolist(), strict=True)])
    return np.stack((nearest, *_halves(nearest), rest))


def _halves(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Upper and lower 26 bits, whose products with each other are exact."""
    upper = values * 134217729.0
    upper = upper - (upper - values)
    return upper, values - upper


def _words(texts: list[str]) -> NDArray[np.uint32]:
    return np.frombuffer("".join(texts).encode(), dtype=np.uint32)


_POWERS = _powers()
_HEADS = _words([f",{sign}{digit}." for sign in " -" for digit in range(10)])
_FOURS = _words([f"{number:04d}" for number in range(10_000)])
_EXPONENTS = _words([f"e{exponent:+03d}" for exponent in range(-_LARGEST, _LARGEST + 1)])


def decimals(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A comma and ASCII text (n, 24) of numbers (n,), e.g. ``, 1.2500000000000000e-01``.

    Read again, by JSON or ``float``, each gives the same float64.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    if not np.isfinite(values).all():
        raise ValueError("JSON has no text for NaN or infinity")
    sizes = np.abs(values)
    plain = (sizes > 10.0**-_LARGEST) & (sizes < 10.0**_LARGEST)
    digits, exponents = _scientific(np.where(plain, sizes, 1.0))
    digits[~plain] = 0
    words = np.empty((len(values), 6), dtype=np.uint32)
    upper, lower = np.divmod(digits, 10**8)
    words[:, 0] = _HEADS[upper // 10**8 + 10 * np.signbit(values)]
    upper %= 10**8
    for column, eight in ((1, upper), (3, lower)):
        words[:, column] = _FOURS[eight // 10**4]
        words[:, column + 1] = _FOURS[eight % 10**4]
    words[:, 5] = _EXPONENTS[exponents + _LARGEST]
    text = words.view(np.uint8)
    for number in np.flatnonzero(~plain & (sizes > 0)):
        mantissa, exponent = f"{values[number]:.16e}".split("e")
        whole = f"{mantissa.replace('.', '')}e{int(exponent) - 16:+d}"
        text[number, 1:] = np.frombuffer(whole.rjust(WIDTH - 1).encode(), dtype=np.uint8)
    return text


def _scientific(sizes: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """17 digits as a whole number, and the exponent of the first, of positive numbers (n,)."""
    exponents = np.floor(np.log10(sizes)).astype(np.int64)
    digits = _times_power(sizes, _DIGITS - 1 - exponents)
    # The logarithm is rounded, and so are the digits: either may be one off.
    for _ in range(2):
        off = (digits >= 10**_DIGITS).astype(np.int64) - (digits < 10 ** (_DIGITS - 1))
        again = np.flatnonzero(off)
        exponents[again] += off[again]
        digits[again] = _times_power(sizes[again], _DIGITS - 1 - exponents[again])
    return digits, exponents


def _times_power(sizes: NDArray[np.float64], powers: NDArray[np.int64]) -> NDArray[np.int64]:
    """``sizes`` times 10^``powers``, rounded to whole numbers where it is 2^53 or more.

    The product's rounding error is computed too (Dekker 1971, A floating-point technique for extending the
    available precision), so the digits are those of a product of twice float64's precision.
    """
    nearest, upper, lower, rest = _POWERS[:, powers + 100]
    size_upper, size_lower = _halves(sizes)
    product = sizes * nearest
    error = ((size_upper * upper - product) + size_upper * lower + size_lower * upper) + size_lower * lower
    error += sizes * rest
    return product.astype(np.int64) + np.rint(error).astype(np.int64)
