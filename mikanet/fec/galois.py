"""Arithmetic in GF(2^8) with the polynomial x^8 + x^4 + x^3 + x^2 + 1 and generator 2. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

_POLYNOMIAL = 0x11D


def _tables() -> tuple[list[int], list[int]]:
    powers, logs = [0] * 510, [0] * 256
    value = 1
    for exponent in range(255):
        powers[exponent] = powers[exponent + 255] = value
        logs[value] = exponent
        value <<= 1
        if value & 0x100:
            value ^= _POLYNOMIAL
    return powers, logs


_POWERS, _LOGS = _tables()


def multiply(a: int, b: int) -> int:
    """The product of two elements."""
    return _POWERS[_LOGS[a] + _LOGS[b]] if a and b else 0


#: Row ``a``: the products of ``a`` with 0..255, as a table for :meth:`bytes.translate`.
PRODUCTS = tuple(bytes(multiply(a, b) for b in range(256)) for a in range(256))


def interpolation_rows(points: Sequence[int], wanted: Sequence[int]) -> list[bytes]:
    """Of a polynomial with fewer coefficients than there are ``points``: the factors with which its values there add up
    to its values at ``wanted``, a row for each, after Lagrange.

    :param points: elements that differ from one another and from those of ``wanted``.
    """
    logs = _LOGS
    weights = [sum(logs[point ^ other] for other in points if other != point) for point in points]
    rows = []
    for at in wanted:
        distance = sum(logs[at ^ point] for point in points)
        rows.append(
            bytes(
                _POWERS[(distance - logs[at ^ point] - weight) % 255]
                for point, weight in zip(points, weights, strict=True)
            )
        )
    return rows
