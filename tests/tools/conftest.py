"""The tools are scripts: their folder goes onto the path, as Python does for the one that it runs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
