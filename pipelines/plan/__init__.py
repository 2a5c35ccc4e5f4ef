"""What batch p holds: the plan of a pipeline, and what it is made of."""
