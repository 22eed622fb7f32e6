"""Learning DAGs by gradients: DiBS, NOTEARS, DAGMA."""
