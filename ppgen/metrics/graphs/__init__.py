"""Metrics on graphs: a reference against one graph, or against probabilities of edges.

Graphs and probabilities come as tensors, arrays, DataFrames (rows from, columns to), networkx or pgmpy
graphs, or anything with ``edge_probabilities``; where both sides have names, they are matched by name.
"""
