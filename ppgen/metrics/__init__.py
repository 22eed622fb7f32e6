"""Metrics on estimates, samples and features."""
