"""Published figures that ours stand beside, each with its source. `examples.measure` prints them, and nothing else
holds them in code; docs/applications.md says what lies between ours and theirs.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """figure: in the metric's own unit. by: which method, and where it was published."""

    figure: float
    by: str


_HANDBOOK = "Fraud Detection Handbook, chapters 3 and 7"

PUBLISHED: dict[tuple[str, str], tuple[Published, ...]] = {
    ("digits perceptron", "accuracy"): (
        Published(0.9101, "perceptron of 7,850 parameters; as given to the project, source not found"),
        Published(0.880, "linear classifier: LeCun et al. 1998"),
    ),
    ("digits mlp", "accuracy"): (
        Published(0.9514, "MLP of 118,282 parameters; as given to the project, source not found"),
    ),
    ("digits lenet-5", "accuracy"): (Published(0.9905, "LeNet-5: LeCun et al. 1998"),),
    ("digits cnn", "accuracy"): (
        Published(0.9936, "CNN of 1,256,080 parameters; as given to the project, source not found"),
    ),
    ("sentiment", "accuracy"): (
        Published(0.761, "CNN-rand: Kim 2014, table 2, ten folds"),
        Published(0.815, "CNN-non-static, word vectors learned elsewhere: Kim 2014, table 2, ten folds"),
    ),
    ("turbofan", "rmse"): (
        Published(12.61, "DCNN: Li, Ding and Sun 2018"),
        Published(16.14, "LSTM: Zheng et al. 2017"),
        Published(18.45, "CNN: Babu, Zhao and Li 2016"),
    ),
    ("fraud (Handbook)", "average_precision"): (
        Published(0.653, f"neural network: {_HANDBOOK}"),
        Published(0.606, f"logistic regression: {_HANDBOOK}"),
        Published(0.658, f"random forest: {_HANDBOOK}"),
    ),
    ("fraud (Handbook)", "card_precision_100"): (
        Published(0.286, f"neural network: {_HANDBOOK}"),
        Published(0.291, f"logistic regression: {_HANDBOOK}"),
        Published(0.287, f"random forest: {_HANDBOOK}"),
    ),
    ("fraud (Handbook)", "roc_auc"): (
        Published(0.864, f"neural network: {_HANDBOOK}"),
        Published(0.871, f"logistic regression: {_HANDBOOK}"),
        Published(0.867, f"random forest: {_HANDBOOK}"),
    ),
}
"""By what was measured, as the table of `examples.measure` names it, and metric: the nearest method first."""
