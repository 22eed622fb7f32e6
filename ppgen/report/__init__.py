"""The survey: fit many families, measure them, write a report."""
