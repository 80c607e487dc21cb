"""Benchmarks: each is ``python -m bench.NAME`` and ends with one JSON object on one line.

They compare side by side in one run, since machines are shared and noisy: ratios, never absolute times.
"""
