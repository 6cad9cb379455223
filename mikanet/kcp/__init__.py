"""KCP: a reliable byte stream over packets. Wire format, session, filter, endpoints over UDP."""
