"""The type of NumPy arrays in annotations."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
