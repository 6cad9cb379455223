"""Carriers: how Pickaxe's packets travel. Each is an :class:`~mikanet.interfaces.ICarrier` on both ends.

A carrier moves packets and knows nothing of sessions, users or keys. Which carrier a URL means is said in
:mod:`mikanet.carriers.urls`.
"""
