"""By what an application's candidates are compared with other versions."""

from dataclasses import dataclass

from deeplambda.application import Application, deciding_metric
from deeplambda.metrics import lower_is_better

_FORGETTING_MARGINS = 4


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """The application's attributes, as `Application` describes them."""

    metric: str
    lower_is_better: bool = False
    margin: float = Application.margin
    proof: bool = Application.proof
    minimum_effect: float | None = Application.minimum_effect
    forgetting: float | None = Application.forgetting
    calibration_margin: float = Application.calibration_margin
    latency_budget_ms: float | None = Application.latency_budget_ms

    @classmethod
    def of(cls, application: Application) -> "Criterion":
        """The application's own."""
        name = deciding_metric(application)
        return cls(
            metric=name,
            lower_is_better=lower_is_better(application, name),
            margin=application.margin,
            proof=application.proof,
            minimum_effect=application.minimum_effect,
            forgetting=application.forgetting,
            calibration_margin=application.calibration_margin,
            latency_budget_ms=application.latency_budget_ms,
        )

    def gain(self, found: float, wanted: float) -> float:
        """How much better the first figure is."""
        return wanted - found if self.lower_is_better else found - wanted

    @property
    def forgetting_margin(self) -> float:
        """How much worse on the test split one may be that is better on the newest labelled events."""
        return _FORGETTING_MARGINS * self.margin if self.forgetting is None else self.forgetting
