"""Pickaxe: TCP over anything. Sessions that outlive the carriers under them.

``wire`` (bytes), ``keys``, ``session`` with its two windows (state) and ``login`` are plain Python; ``link`` joins a
session to carriers, ``mux`` to streams, ``server`` and ``client`` are the two programs' hearts.
"""
