"""Pairwise Markov random fields: graphs, energies, exact sums, and moves of Markov chains."""
