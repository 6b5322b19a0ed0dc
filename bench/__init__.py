"""What others claim of serving systems, measured here: one script per claim, `python -m bench.NAME --help`.

The figures are in docs/performance.md.
"""
