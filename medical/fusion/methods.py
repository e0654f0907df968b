"""What is compared: networks of one or two modalities, and classical baselines on the variables."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Method:
    """A network of the comparison.

    Attributes:
      title: in tables.
      kind: "image", "clinical" or "fusion".
      dropout: whether modalities are hidden at random in training.
      learned: whether learned features stand for an absent modality.
    """

    title: str
    kind: str
    dropout: bool = False
    learned: bool = False

    @property
    def views(self) -> tuple[str, ...]:
        """What it can be given, see `VIEWS`."""
        return tuple(VIEWS) if self.kind == "fusion" else (self.kind,)


METHODS = {
    "image": Method("image only", "image"),
    "clinical": Method("clinical only", "clinical"),
    "fusion": Method("fusion", "fusion"),
    "fusion_dropout": Method("fusion, modality dropout", "fusion", dropout=True),
    "fusion_learned": Method("fusion, learned stand-ins", "fusion", dropout=True, learned=True),
}
VIEWS = {
    "both": "image and clinical",
    "image": "image",
    "clinical": "clinical",
    "found": "whatever the patient has",
}
BASELINES = {
    "logistic": "logistic regression",
    "boosting": "gradient boosting",
    "forest": "random forest, 600 trees",
}


def fit_baseline(name: str, features: np.ndarray, labels: np.ndarray, seed: int) -> Any:
    """A classifier of scikit-learn fitted on ``[n, columns]`` and ``[n]``.

    The published clinical-only network answered the commonest class for everyone; these do not, and
    the forest is the other clinical baseline of the released code.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    if name == "logistic":
        model: Any = LogisticRegression(C=0.1, max_iter=2000, random_state=seed)
    elif name == "boosting":
        model = HistGradientBoostingClassifier(learning_rate=0.05, early_stopping=True,
                                               random_state=seed)
    elif name == "forest":
        model = RandomForestClassifier(600, min_samples_leaf=5, random_state=seed)
    else:
        raise ValueError(f"unknown baseline {name!r}; known: {', '.join(BASELINES)}")
    return model.fit(features, labels)
