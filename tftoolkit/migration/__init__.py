"""What became of TensorFlow Addons: an answer for each of its public symbols, and programs that use them.

docs/tfa_migration.md is made of the same answers. Nothing here imports TensorFlow but the recipes.
"""
