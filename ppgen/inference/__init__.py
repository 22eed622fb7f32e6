"""Inference: the trainer, objectives and algorithms. Knows the contract, never a family."""
