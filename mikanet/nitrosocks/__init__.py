"""NitroSocks: a tunnel inside TLS that stays private when TLS itself is intercepted.

From the ground up: ``wire`` frames packets, ``keys`` makes every key and proof, ``states`` says what may come when,
``session`` is one TLS connection of either side as a state machine, ``frames`` and ``resend`` are what survives from one
connection to the next, ``mux`` joins that to streams, ``tls`` is the carrier. ``protocol`` and ``client`` are the two ends.
"""
