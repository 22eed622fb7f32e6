"""Posteriors over DAGs by Markov chains over orders and partitions."""
