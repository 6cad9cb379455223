"""Benchmarks: tunnels measured against named peers in the same run. ``python -m tests.bench --help`` says how."""
