"""Tests of :mod:`mikanet.net`."""
