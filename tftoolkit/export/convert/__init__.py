"""From a model to a file: trace, decompose, convert."""
