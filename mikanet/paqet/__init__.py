"""paqet: streams and datagrams over smux over KCP, in raw TCP packets or UDP."""
