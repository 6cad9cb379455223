"""Tests of mikanet.pickaxe."""
