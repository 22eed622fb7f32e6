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

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppgen.inference.structure.bootstrap import Bootstrap
    from ppgen.inference.structure.discretise import Hartemink, Quantile
    from ppgen.inference.structure.effects import causal_effect, ida
    from ppgen.inference.structure.exact.method import Exact
    from ppgen.inference.structure.gradient.dagma import DAGMA
    from ppgen.inference.structure.gradient.dibs import DiBS
    from ppgen.inference.structure.gradient.notears import NOTEARS
    from ppgen.inference.structure.interventions import Imperfect, Perfect, Soft, Uncertain
    from ppgen.inference.structure.learning import METHODS, learn
    from ppgen.inference.structure.network import DiscreteNetwork
    from ppgen.inference.structure.posterior import GraphPosterior
    from ppgen.inference.structure.prior import Constraints, GraphPrior
    from ppgen.inference.structure.reading import read_table
    from ppgen.inference.structure.sampled.method import OrderMCMC, PartitionMCMC
    from ppgen.inference.structure.scores.bde import BDe
    from ppgen.inference.structure.scores.conditional_gaussian import ConditionalGaussianBIC
    from ppgen.inference.structure.scores.discrete import AIC, BIC, K2, BDeu
    from ppgen.inference.structure.scores.gaussian import BGe, GaussianBIC
    from ppgen.inference.structure.search import GES, PC, HillClimb
    from ppgen.inference.structure.table import Table, Variable

__all__ = [
    "AIC",
    "BIC",
    "DAGMA",
    "GES",
    "K2",
    "METHODS",
    "NOTEARS",
    "PC",
    "BDe",
    "BDeu",
    "BGe",
    "Bootstrap",
    "ConditionalGaussianBIC",
    "Constraints",
    "DiBS",
    "DiscreteNetwork",
    "Exact",
    "GaussianBIC",
    "GraphPosterior",
    "GraphPrior",
    "Hartemink",
    "HillClimb",
    "Imperfect",
    "OrderMCMC",
    "PartitionMCMC",
    "Perfect",
    "Quantile",
    "Soft",
    "Table",
    "Uncertain",
    "Variable",
    "causal_effect",
    "ida",
    "learn",
    "read_table",
]

_MODULES = {
    "AIC": "scores.discrete",
    "BIC": "scores.discrete",
    "DAGMA": "gradient.dagma",
    "GES": "search",
    "K2": "scores.discrete",
    "METHODS": "learning",
    "NOTEARS": "gradient.notears",
    "PC": "search",
    "BDe": "scores.bde",
    "BDeu": "scores.discrete",
    "BGe": "scores.gaussian",
    "Bootstrap": "bootstrap",
    "ConditionalGaussianBIC": "scores.conditional_gaussian",
    "Constraints": "prior",
    "DiBS": "gradient.dibs",
    "DiscreteNetwork": "network",
    "Exact": "exact.method",
    "GaussianBIC": "scores.gaussian",
    "GraphPosterior": "posterior",
    "GraphPrior": "prior",
    "Hartemink": "discretise",
    "HillClimb": "search",
    "Imperfect": "interventions",
    "OrderMCMC": "sampled.method",
    "PartitionMCMC": "sampled.method",
    "Perfect": "interventions",
    "Quantile": "discretise",
    "Soft": "interventions",
    "Table": "table",
    "Uncertain": "interventions",
    "Variable": "table",
    "causal_effect": "effects",
    "ida": "effects",
    "learn": "learning",
    "read_table": "reading",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
