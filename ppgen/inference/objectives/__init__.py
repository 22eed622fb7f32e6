"""Training objectives; each is a Pyro loss."""
