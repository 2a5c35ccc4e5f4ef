"""What ``tftoolkit train`` does for a recipe: one module per kind of job, each with ``run(config, directory)``."""
