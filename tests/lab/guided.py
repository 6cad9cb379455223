"""The fuzzer guided by coverage: ``python -m tests.lab.guided CODEC [libFuzzer options]``, by ``fuzz --atheris``.

A module of its own, because atheris has to be there before the code that it instruments is imported.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-untyped]  # an option, without types

with atheris.instrument_imports(include=["mikanet"]):
    from tests.lab.codecs import CODECS
from tests.lab.fuzzer import FaultError, check, keep


def main() -> None:
    """Fuzz one codec until Ctrl-C, the end that an option sets, or a fault, which goes into the corpus."""
    codec = CODECS[sys.argv[1]]

    def one(data: bytes) -> None:
        try:
            check(codec, data)
        except FaultError:
            print(f"kept as {keep(codec.name, data)}", file=sys.stderr)
            raise

    with tempfile.TemporaryDirectory(prefix="mikanet-fuzz-") as folder:
        for number, data in enumerate(codec.inputs()):
            (Path(folder) / str(number)).write_bytes(data)
        atheris.Setup([sys.argv[0], *sys.argv[2:], folder], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
