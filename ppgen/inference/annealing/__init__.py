"""Annealing: walks from a distribution that can be drawn from to the one in question, and their weights.

Shared by :mod:`~ppgen.inference.ais`, :mod:`~ppgen.inference.smc` and :mod:`~ppgen.inference.partition`.
"""
