"""Runs as onlookers see them: ``tftoolkit runs`` and ``tftoolkit serve``. Needs no TensorFlow, and changes nothing."""
