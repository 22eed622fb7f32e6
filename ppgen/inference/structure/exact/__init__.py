"""Exact posteriors over DAGs by sums over subsets."""
