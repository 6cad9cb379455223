"""``python -m tests.lab COMMAND ...``: the instruments of the lab, by hand. ``--help`` after a command says more."""

from __future__ import annotations

import importlib
import sys

_COMMANDS = {
    "wire": ("tests.lab.wire_command", "run a scenario and print what happened"),
    "probe": ("tests.lab.probe_command", "probe a server and compare its reactions"),
    "fuzz": ("tests.lab.fuzz_command", "feed mutated inputs to the codecs"),
    "growth": ("tests.lab.growth_command", "measure what the worst inputs cost for each byte"),
    "load": ("tests.lab.load_command", "load a tunnel: clients, idle, slow, floods, a soak"),
    "hostile": ("tests.lab.hostile", "one honest user beside forty hostile peers of each kind"),
    "quest": ("tests.lab.quest", "half handshakes by the thousand at a Megaki server, then clients"),
    "mika": ("tests.lab.mika_command", "the reliability figures of Mika"),
}


def main() -> int:
    """Run one command; its exit status."""
    if len(sys.argv) < 2 or sys.argv[1] not in _COMMANDS:
        print(__doc__, file=sys.stderr)
        for name, (_, what) in _COMMANDS.items():
            print(f"  {name:8} {what}", file=sys.stderr)
        return 2
    module = importlib.import_module(_COMMANDS[sys.argv[1]][0])
    try:
        status: int = module.main(sys.argv[2:])
    except KeyboardInterrupt:
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
