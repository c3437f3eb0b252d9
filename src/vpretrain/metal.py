"""On a Mac's GPU (mps) operators that Metal lacks run on the CPU, if torch was asked for that before its import."""

import os
import sys

_SETTING = "PYTORCH_ENABLE_MPS_FALLBACK"


def let_fall_back() -> None:
    """Ask torch for it on a Mac, unless the environment says otherwise or torch is imported already and would not look."""
    if sys.platform == "darwin" and "torch" not in sys.modules:
        os.environ.setdefault(_SETTING, "1")


def remark() -> str:
    """The line for a user whose learner is on such a device."""
    if os.environ.get(_SETTING, "0") == "0":
        return "mps: an operator that Metal lacks ends the run; set PYTORCH_ENABLE_MPS_FALLBACK=1 to have it run on the CPU"
    return "mps: operators that Metal lacks run on the CPU, which takes time"
