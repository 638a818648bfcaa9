"""Measurements of shiftproof's costs, side by side with the usual way."""

from shiftproof.bench.data import bench_data, data_table
from shiftproof.bench.optimizer import bench_optimizer, optimizer_table

__all__ = [
    "bench_data",
    "bench_optimizer",
    "data_table",
    "optimizer_table",
]
