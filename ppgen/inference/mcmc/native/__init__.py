"""Kernels and densities as compiled programs in which each vector lane is a chain (CPU)."""
