"""Flax NNX modules, each built whole from its frozen config."""
