"""What a pipeline needs from a source of examples."""

from typing import Any, Protocol

import tensorflow as tf

Example = dict[str, tf.Tensor]
Spec = dict[str, tf.TensorSpec]


class Source(Protocol):
    """Examples that can be read in any order. An example is a flat dict of dense tensors."""

    @property
    def element_spec(self) -> Spec:
        """Shape and dtype of each feature of one example."""

    def __len__(self) -> int:
        """Number of examples."""

    def fetch(self, indices: tf.Tensor) -> Example:
        """Reads many examples at once: indices int64[n] -> dict of tensors with a leading dimension n.

        Runs inside the graph of a data set, in several threads at the same time.
        """

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the contents, as a small JSON-able dict; a saved state is refused where it differs."""
