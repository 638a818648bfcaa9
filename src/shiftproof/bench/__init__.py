"""Measurements of shiftproof's costs, side by side with the usual way."""

from shiftproof.bench.annealer import annealer_table, bench_annealer
from shiftproof.bench.data import bench_data, data_table
from shiftproof.bench.diagnostics import bench_diagnostics, diagnostics_table
from shiftproof.bench.optimizer import bench_optimizer, optimizer_table
from shiftproof.bench.store import bench_store, store_table

__all__ = [
    "annealer_table",
    "bench_annealer",
    "bench_data",
    "bench_diagnostics",
    "bench_optimizer",
    "bench_store",
    "data_table",
    "diagnostics_table",
    "optimizer_table",
    "store_table",
]
