"""The built-in schedulers of knobs. All are pure functions of progress, so they keep no state."""

from limbeck.interfaces import SchedulerPlugin
from limbeck.schedulers.constant import Constant, ConstantConfig
from limbeck.schedulers.piecewise import Piecewise, PiecewiseConfig
from limbeck.schedulers.ramps import Cosine, Linear, RampConfig

PLUGINS = (
    SchedulerPlugin(name="constant", config=ConstantConfig, factory=Constant, summary="One value from start to end."),
    SchedulerPlugin(name="linear", config=RampConfig, factory=Linear, summary="A straight line from start to end."),
    SchedulerPlugin(
        name="cosine", config=RampConfig, factory=Cosine, summary="Half a cosine: flat at start and end, steep between."
    ),
    SchedulerPlugin(
        name="piecewise",
        config=PiecewiseConfig,
        factory=Piecewise,
        summary="Steps: from each progress on, a value.",
    ),
)

__all__ = [
    "PLUGINS",
    "Constant",
    "ConstantConfig",
    "Cosine",
    "Linear",
    "Piecewise",
    "PiecewiseConfig",
    "RampConfig",
]
