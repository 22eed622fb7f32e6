"""Tools that test generative models: statistical assertions and the contract suite."""
