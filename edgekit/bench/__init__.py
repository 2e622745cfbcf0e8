"""Benchmarks: speed as a ratio against the best that a user could pick instead, interleaved in one process.

Each module has `run(...) -> rows`. Machines are noisy, so a row is the median of runs that took turns,
and stands beside what this very machine reached at best (`roofline_share`) in the same process.
"""
