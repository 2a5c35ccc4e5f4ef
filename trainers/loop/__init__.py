"""When to train, evaluate, log and save."""
