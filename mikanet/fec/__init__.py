"""Forward error correction of packets, as kcp-go does it: Reed-Solomon groups, their codec, and the filter."""
