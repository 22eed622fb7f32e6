"""Test likelihoods on public data, against published figures.

Run by hand: ``python -m benchmarks.likelihood NAME``. An entry is a function in a module of this package,
registered by :func:`benchmarks.likelihood.registry.entry`; it trains a model and returns its test
figure. Results are kept in ``benchmarks/results/likelihood.json``, one for each entry and size.
"""
