"""ppgen: generative models on Pyro."""

__version__ = "0.1.0"
