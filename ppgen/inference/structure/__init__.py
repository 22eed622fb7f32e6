"""Structure discovery: from a table, with interventions, to a posterior over graphs.

.. code-block:: python

    from ppgen.inference import structure

    posterior = structure.learn(
        table,                                     # pandas, a CSV file, an array, or a Table
        interventions="INT",                       # a column, a mask, Perfect/Imperfect/Soft/Uncertain(...)
        score=structure.BDeu(equivalent_sample_size=1.0),
        method="exact",                            # or "order_mcmc", "partition_mcmc", "dibs", "ges", ...,
        prior="uniform",                           # or "order", or a GraphPrior(...)
        constraints=structure.Constraints(forbidden=[("Akt", "PKA")], max_parents=4),
    )
    posterior.edge_probabilities                   # pandas, rows from, columns to
    posterior.log_evidence                         # an Estimate, in nats
    posterior.median_graph(), posterior.map_graph(), posterior.sample(100, seed=0), posterior.plot()

Methods are given by name or as objects with options: ``method=structure.OrderMCMC(num_chains=32)``.
"""
