"""A regression, diabetes: how far the illness came in a year, from 10 columns about 442 people, 89 of them the test."""

from ml_collections import ConfigDict

from tftoolkit.trainers.recipes import tabular


def get_config() -> ConfigDict:
    """As the recipe ``tabular``, but for what stands here."""
    config = tabular.get_config()
    config.dataset = "diabetes"
    config.load = ConfigDict(
        {
            # False: the columns in their own units, the sexes as 1 and 2.
            "scaled": False
        }
    )
    config.categories = ("sex",)
    # How many steps to train; 330 are 30 epochs.
    config.steps = 330
    # Sizes of the hidden layers.
    config.model.hidden = (32,)
    # There are few rows, and much noise in them; scikit-learn's linear regression reaches 0.33.
    config.at_least = ConfigDict({"r_squared": 0.3})
    return config
