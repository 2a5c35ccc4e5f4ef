"""What became of TensorFlow Addons: an answer for each of its public symbols (``answers``), programs that use them
(``programs``), and the page docs/tfa_migration.md (``page``). Nothing here imports TensorFlow but the recipes."""
