"""``python -m mikanet``: the ``mikanet`` command."""

from mikanet.cli.main import main

main()
