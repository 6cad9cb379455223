"""Options that Pickaxe's server and client share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

from mikanet.carriers.urls import CarrierContext
from mikanet.counters import Counters
from mikanet.errors import ConfigError
from mikanet.pickaxe.keys import Kdf
from mikanet.service.options import Options
from mikanet.service.secret_files import read_secret


class PickaxeOptions(Options):
    """Carriers, and how keys are made.

    :ivar carrier_urls: in the user's order.
    """

    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        ["kdf", None, "mikanet", "how keys come from passwords: mikanet, or draft as the author's draft does"],
        ["keep-session", None, "300", "seconds for which a session without any carrier is kept"],
    ]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in Twisted
        self.carrier_urls: list[str] = []

    def opt_carrier(self, url: str) -> None:
        """URL of a carrier, as tcp://HOST:8865; repeatable."""
        self.carrier_urls.append(url)

    def carrier_context(self, reactor: Any, counters: Counters, **more: Any) -> CarrierContext:
        """What carriers need."""
        return CarrierContext(
            reactor,
            counters,
            read_secret=partial(read_secret, insecure_ok=bool(self["insecure-ok"])),
            read_password=partial(read_secret, insecure_ok=True),
            **more,
        )

    def check_carriers(self, make: Any, context: CarrierContext) -> list[Any]:
        """The carriers.

        :raises ConfigError: if there is none, or one is wrong.
        """
        if not self.carrier_urls:
            raise ConfigError("--carrier is missing")
        return [make(url, context) for url in self.carrier_urls]

    def kdf(self) -> Kdf:
        """The way keys are made."""
        try:
            return Kdf(self["kdf"])
        except ValueError:
            raise ConfigError(f"--kdf is mikanet or draft, not {self['kdf']!r}") from None

    def keep_session(self) -> float:
        """Seconds."""
        return float(self.number("keep-session", 10, 86400, float))
