"""Loss terms: pure functions or small modules on float tensors, each returning a float32 scalar."""

from translate.losses.adversarial import OBJECTIVES, Objective, ObjectiveName
from translate.losses.feature_matching import feature_matching
from translate.losses.perceptual import PerceptualLoss, PerceptualSettings
from translate.losses.reconstruction import ReconstructionSettings

__all__ = [
    "OBJECTIVES",
    "Objective",
    "ObjectiveName",
    "PerceptualLoss",
    "PerceptualSettings",
    "ReconstructionSettings",
    "feature_matching",
]
