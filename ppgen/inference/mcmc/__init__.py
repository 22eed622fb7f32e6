"""Many-chain Markov chain Monte Carlo: kernels of pure functions, adapted and driven together."""
