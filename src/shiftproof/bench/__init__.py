"""Measurements of what shiftproof costs, side by side with the usual way."""

from shiftproof.bench.data import bench_data, data_table

__all__ = ["bench_data", "data_table"]
