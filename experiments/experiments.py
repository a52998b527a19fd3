"""Lets `python experiments/train.py` work as `python -m experiments.train` does.

Python then looks for packages beside the command, so `import experiments` finds this file. It puts
the real package in its place.
"""

import importlib
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).absolute().parent.parent)
del sys.modules[__name__]
importlib.import_module("experiments")
