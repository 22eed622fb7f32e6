"""Rows of the variables of a Bayesian network, and their exact conditionals."""
