"""Benchmarks: each prints a table and, as its last line, one JSON object."""

from engines.machine import calm_openmp

calm_openmp()  # before any module here imports torch
