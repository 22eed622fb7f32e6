"""Local scores of a variable and its parents."""
