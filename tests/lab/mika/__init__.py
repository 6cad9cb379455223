"""The promises of Mika that are measured: replays, probes, flipped bits, kills, cuts and clocks.

What is not special to Mika (load, soak) is in :mod:`tests.lab.load` and :mod:`tests.lab.soak`. Each function starts the
tunnel that it needs and answers a :class:`~tests.lab.load.Result`.
"""

from tests.lab.mika.ends import clock_jumps, cuts, killed_mid_download, killed_while_dialling, large_transfer
from tests.lab.mika.flips import FLIPPED_BYTES, flips_in_memory, flips_live
from tests.lab.mika.probing import probing, replays

__all__ = [
    "FLIPPED_BYTES",
    "clock_jumps",
    "cuts",
    "flips_in_memory",
    "flips_live",
    "killed_mid_download",
    "killed_while_dialling",
    "large_transfer",
    "probing",
    "replays",
]
