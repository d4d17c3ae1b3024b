"""Graphs as ONNX Runtime saves them after its optimisations."""

from pathlib import Path

import onnxruntime


def optimise(path: Path, level: str) -> None:
    """Replace a file by what ONNX Runtime's optimisation level BASIC, EXTENDED or ALL makes of it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
