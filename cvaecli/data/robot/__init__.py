"""Robot arms: trajectories of frames, actions and end-effector positions.

There are two layouts, recognised from the files: folders of pictures and tables (`folders`), and BAIR's
TFRecord files (`records`). In both, the condition of a clip is float32 ``[T, A + P]``, action then
position, in the units of the files: ``condition[t]`` is that of step t - 1, and row 0 is zeros (see
`condition.shifted_condition`).
"""

from __future__ import annotations

from .condition import condition_stats, shifted_condition
from .source import Robot

__all__ = ["Robot", "condition_stats", "shifted_condition"]
