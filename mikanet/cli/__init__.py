"""The ``mikanet`` command: ``main`` has its list of subcommands, every other module is one of them."""
