"""Loss terms: pure functions or small modules on float tensors, each returning a float32 scalar."""

from translate.losses.adversarial import Objective, ObjectiveField, ObjectiveSettings
from translate.losses.feature_matching import feature_matching, mean_feature_matching, pulling_away
from translate.losses.moment_matching import mmd
from translate.losses.penalties import BottleneckSettings, Penalty, PenaltySettings, VariationalBottleneck
from translate.losses.perceptual import PerceptualLoss, PerceptualSettings
from translate.losses.reconstruction import ReconstructionSettings
from translate.losses.regularisers import Regulariser, RegulariserSettings, clip_weights

__all__ = [
    "BottleneckSettings",
    "Objective",
    "ObjectiveField",
    "ObjectiveSettings",
    "Penalty",
    "PenaltySettings",
    "PerceptualLoss",
    "PerceptualSettings",
    "ReconstructionSettings",
    "Regulariser",
    "RegulariserSettings",
    "VariationalBottleneck",
    "clip_weights",
    "feature_matching",
    "mean_feature_matching",
    "mmd",
    "pulling_away",
]
