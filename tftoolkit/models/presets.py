"""Models by the names under which their settings are known."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import tensorflow as tf


class WithPresets(tf.Module):
    """Base of models whose usual settings have names."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]]
    """Name → settings."""

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """The model with the settings of that name, a key of ``PRESETS``, and with changes to them.

        Raises:
          ValueError: there is no such name.
        """
        if name not in cls.PRESETS:
            raise ValueError(f"{cls.__name__} has no preset {name!r}; it has {', '.join(cls.PRESETS)}")
        return cls(**{**cls.PRESETS[name], **changes})
