"""Exact posteriors over DAGs: sums over orders, and over DAGs, by dynamic programming on subsets."""
