"""Adaptation of kernels between transitions, from all chains together."""

from ppgen.inference.mcmc.adaptation.stuck import Restart
from ppgen.inference.mcmc.adaptation.tuning import Report, Tuning, Warmed
from ppgen.inference.mcmc.adaptation.warm_up import Warmup, warm_up

__all__ = ["Report", "Restart", "Tuning", "Warmed", "Warmup", "warm_up"]
