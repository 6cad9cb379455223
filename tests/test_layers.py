"""The layering of the house, read from the source: imports go down only, and what is bytes or rules does no I/O.

``docs/architecture.rst`` draws the same stack.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parents[1]

#: The floors from the ground up, each with its rooms and modules. A module belongs to the longest name that it begins
#: with, and may import from its own floor and from those below.
FLOORS: tuple[tuple[str, ...], ...] = (
    (
        "mikanet",
        "mikanet._speedups",
        "mikanet.address",
        "mikanet.answers",
        "mikanet.counters",
        "mikanet.errors",
        "mikanet.interfaces",
        "mikanet.timing",
    ),
    ("mikanet.wire",),
    ("mikanet.crypto",),
    ("mikanet.fec", "mikanet.kcp", "mikanet.smux"),
    (
        "mikanet.datagrams",
        "mikanet.dial",
        "mikanet.endpoint_strings",
        "mikanet.egress",
        "mikanet.filters",
        "mikanet.guard",
        "mikanet.half_closed",
        "mikanet.net",
        "mikanet.prompt",
        "mikanet.relay",
        "mikanet.udp_target",
    ),
    ("mikanet.carriers", "mikanet.frontdoors", "mikanet.rawpackets"),
    ("mikanet.mika", "mikanet.pickaxe", "mikanet.megaki", "mikanet.nitrosocks", "mikanet.paqet"),
    ("mikanet.service",),
    (),  # what SYSTEM_TOP names
    ("mikanet.endpoints",),
    ("mikanet.cli",),
    ("twisted.plugins.mikanet_plugins", "mikanet.__main__"),
)

#: Rooms of one system each. None of them imports another.
SYSTEMS = ("mika", "pickaxe", "megaki", "nitrosocks", "paqet")

#: In a system's room, these modules stand above the service floor: they put a program together.
SYSTEM_TOP = ("options", "service", "tap_")
SYSTEM_TOP_FLOOR = 8

#: In the rooms of kcp, fec and smux, these modules connect a state machine to Twisted and stand beside the carriers.
ADAPTERS = ("client", "connection", "endpoints", "filter", "forward", "link", "ports", "sessions", "udp", "voices")
ADAPTER_ROOMS = ("mikanet.fec", "mikanet.kcp", "mikanet.smux")
ADAPTER_FLOOR = 5

#: What plain Python may not import: I/O, clocks, randomness, threads and logging are passed in.
FORBIDDEN = frozenset(
    [
        "asyncio",
        "logging",
        "multiprocessing",
        "os",
        "random",
        "secrets",
        "select",
        "selectors",
        "signal",
        "socket",
        "ssl",
        "subprocess",
        "sys",
        "tempfile",
        "threading",
        "time",
        "twisted",
        "zope",
    ]
)

PURE_ROOMS = ("mikanet.wire", "mikanet.crypto")
PURE_NAMES = ("session", "wire")


def all_modules() -> dict[str, Path]:
    """Every module of the project by name."""
    files = [*(ROOT / "mikanet").rglob("*.py"), ROOT / "twisted" / "plugins" / "mikanet_plugins.py"]
    return {_name_of(file): file for file in files}


def _name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = all_modules()


def imports_of(name: str) -> Iterator[tuple[str, int]]:
    """What a module imports anywhere in it, with the line: modules of ours by full name, others as written."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            yield from ((found, node.lineno) for found in _from_import(node))


def _from_import(node: ast.ImportFrom) -> set[str]:
    base = node.module or ""
    if node.level:
        return {"." * node.level + base}
    return {full if (full := f"{base}.{alias.name}") in MODULES else base for alias in node.names}


def room_of(name: str) -> str:
    """The longest entry of :data:`FLOORS` that covers a module; empty if none does."""
    covering = [entry for floor in FLOORS for entry in floor if name == entry or name.startswith(f"{entry}.")]
    found = max(covering, key=len, default="")
    return "" if found == "mikanet" and name != "mikanet" else found


def is_adapter(name: str) -> bool:
    """Whether the module connects a KCP, FEC or smux state machine to Twisted."""
    return room_of(name) in ADAPTER_ROOMS and name.rpartition(".")[2] in ADAPTERS


def floor_of(name: str) -> int:
    """The floor on which a module stands."""
    last = name.rpartition(".")[2]
    room = room_of(name)
    if room.removeprefix("mikanet.") in SYSTEMS and last.startswith(SYSTEM_TOP):
        return SYSTEM_TOP_FLOOR
    if is_adapter(name):
        return ADAPTER_FLOOR
    return next(number for number, floor in enumerate(FLOORS) if room in floor)


def is_pure(name: str) -> bool:
    """Whether the module is of the kind that does no I/O."""
    room = room_of(name)
    if room in PURE_ROOMS or name.rpartition(".")[2] in PURE_NAMES:
        return True
    return room in ADAPTER_ROOMS and not is_adapter(name)


def ours(name: str) -> Iterator[tuple[str, int]]:
    """The imports of a module that are modules of this project."""
    return ((found, line) for found, line in imports_of(name) if found.partition(".")[0] == "mikanet")


class LayerTests(SynchronousTestCase):
    """Imports go down only."""

    def test_every_module_has_a_floor(self) -> None:
        """A module in a room that the list of floors does not know is a mistake: of the module, or of the list."""
        self.assertEqual([name for name in MODULES if not room_of(name)], [])
        self.assertGreater(len(MODULES), 50)

    def test_no_import_goes_up(self) -> None:
        """Nothing imports from a floor above its own."""
        faults = [
            f"{name}:{line} (floor {floor_of(name)}) imports {found} (floor {floor_of(found)})"
            for name in MODULES
            for found, line in ours(name)
            if floor_of(found) > floor_of(name)
        ]
        self.assertEqual(faults, [])

    def test_systems_are_strangers(self) -> None:
        """No system's room imports another system's."""
        faults = [
            f"{name}:{line} imports {found}"
            for name in MODULES
            for found, line in ours(name)
            if {room_of(name), room_of(found)} <= {f"mikanet.{system}" for system in SYSTEMS}
            and room_of(name) != room_of(found)
        ]
        self.assertEqual(faults, [])

    def test_no_circles(self) -> None:
        """No module imports itself through others, on one floor either."""
        graph = {name: {found for found, _ in ours(name) if found in MODULES} for name in MODULES}
        while leaves := [name for name, targets in graph.items() if not targets]:
            for leaf in leaves:
                del graph[leaf]
            for targets in graph.values():
                targets.difference_update(leaves)
        self.assertEqual(graph, {})

    def test_imports_are_absolute(self) -> None:
        """Every import says from where."""
        faults = [f"{name}:{line}" for name in MODULES for found, line in imports_of(name) if found.startswith(".")]
        self.assertEqual(faults, [])


class PureTests(SynchronousTestCase):
    """What is bytes on the wire, or a rule about them, is plain Python."""

    def test_no_io_in_codecs_and_state_machines(self) -> None:
        """Codecs, ciphers, sessions and state machines import no Twisted, socket, clock, randomness or log."""
        faults = [
            f"{name}:{line} imports {found}"
            for name in MODULES
            if is_pure(name)
            for found, line in imports_of(name)
            if found.partition(".")[0] in FORBIDDEN
        ]
        self.assertEqual(faults, [])

    def test_the_rule_covers_what_it_should(self) -> None:
        """The rule knows the modules that it is about."""
        for name in ("mikanet.wire.socks", "mikanet.crypto.streams", "mikanet.mika.session", "mikanet.kcp.arq"):
            self.assertTrue(is_pure(name), name)
        for name in ("mikanet.mika.protocol", "mikanet.relay", "mikanet.filters.base"):
            self.assertFalse(is_pure(name), name)


class CheckerTests(SynchronousTestCase):
    """The checker itself sees what it is there to see."""

    def test_floors(self) -> None:
        """Modules of one room may stand on different floors."""
        self.assertLess(floor_of("mikanet.mika.session"), floor_of("mikanet.service.state"))
        self.assertLess(floor_of("mikanet.service.state"), floor_of("mikanet.mika.tap_server"))
        self.assertLess(floor_of("mikanet.kcp.arq"), floor_of("mikanet.filters.base"))
        self.assertLess(floor_of("mikanet.filters.base"), floor_of("mikanet.kcp.filter"))
        self.assertEqual(room_of("mikanet.unheard_of"), "")

    def test_imports(self) -> None:
        """Modules are found in every way of importing them."""
        self.assertIn("mikanet.mika.tap_server", {found for found, _ in imports_of("mikanet.cli.demo")})
        self.assertIn("mikanet.mika.session", {found for found, _ in imports_of("mikanet.endpoints.mika")})
        self.assertIn("twisted.internet", {found for found, _ in imports_of("mikanet.errors")})
