"""Benchmarks: figures beside what they are compared with and what the machine allows, measured in one run."""
