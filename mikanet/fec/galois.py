"""Arithmetic in GF(2^8) with the polynomial x^8 + x^4 + x^3 + x^2 + 1 and generator 2. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from mikanet.errors import LocalProtocolError

_POLYNOMIAL = 0x11D

Matrix = list[list[int]]


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


def power(a: int, exponent: int) -> int:
    """``a`` to a non-negative power; 0 to the power 0 is 1."""
    if exponent == 0:
        return 1
    return _POWERS[_LOGS[a] * exponent % 255] if a else 0


def inverse(a: int) -> int:
    """1 / a, for a from 1 to 255."""
    return _POWERS[255 - _LOGS[a]]


#: Row ``a``: the products of ``a`` with 0..255, as a table for :meth:`bytes.translate`.
PRODUCTS = tuple(bytes(multiply(a, b) for b in range(256)) for a in range(256))


def multiply_matrices(a: Matrix, b: Matrix) -> Matrix:
    """The matrix product a x b."""
    columns = list(zip(*b, strict=True))
    return [[_dot(row, column) for column in columns] for row in a]


def _dot(a: Sequence[int], b: Sequence[int]) -> int:
    result = 0
    for x, y in zip(a, b, strict=True):
        result ^= multiply(x, y)
    return result


def invert(matrix: Matrix) -> Matrix:
    """The inverse of a square matrix, by Gauss and Jordan.

    :raises LocalProtocolError: if it has none.
    """
    size = len(matrix)
    rows = [row + [int(i == j) for j in range(size)] for i, row in enumerate(matrix)]
    for i in range(size):
        pivot = next((r for r in range(i, size) if rows[r][i]), None)
        if pivot is None:
            raise LocalProtocolError("a singular matrix has no inverse")
        rows[i], rows[pivot] = rows[pivot], rows[i]
        scale = PRODUCTS[inverse(rows[i][i])]
        rows[i] = [scale[value] for value in rows[i]]
        for r in range(size):
            factor = rows[r][i]
            if r != i and factor:
                scale = PRODUCTS[factor]
                rows[r] = [value ^ scale[other] for value, other in zip(rows[r], rows[i], strict=True)]
    return [row[size:] for row in rows]
