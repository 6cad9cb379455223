"""mikanet: five secure tunnels as one Twisted toolbox."""

__version__ = "0.1.0.dev0"
