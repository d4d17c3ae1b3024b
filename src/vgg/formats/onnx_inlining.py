"""ONNX models that define functions, as torch 2.1 to 2.4 and onnxscript write them for modules, without them."""

from graphlib import TopologicalSorter
from pathlib import Path

from ..errors import ModelError
from ..extras import require

MOST = 10_000  # operators of a graph


def inlined(path: Path) -> bytes:
    """The model in a file, in whose graph each call of a function is replaced by the function's operators.

    Raises:
        Error: the onnx package is missing.
        ModelError: the functions have branches or several versions.
        ValueError: functions call themselves, or become too many operators: each could double the one before.
    """
    require(f"{path}: a graph with functions", "onnx", "onnx")
    import onnx
    from onnx import inliner

    model = onnx.load(path, load_external_data=False)
    bodies = [model.graph, *model.functions]
    nested = any(one.HasField("g") or one.graphs for body in bodies for node in body.node for one in node.attribute)
    functions = {(one.domain, one.name): [(node.domain, node.op_type) for node in one.node] for one in model.functions}
    if nested or len(functions) < len(model.functions):
        raise ModelError(
            f"{path}: unsupported functions with branches or several versions; export the model again with torch 2.5 or later, "
            "which writes none"
        )
    sizes: dict[tuple[str, str], int] = {}
    calls = {name: [one for one in body if one in functions] for name, body in functions.items()}
    for name in TopologicalSorter(calls).static_order():
        sizes[name] = sum(sizes.get(one, 1) for one in functions[name])
    if sum(sizes.get((node.domain, node.op_type), 1) for node in model.graph.node) > MOST:
        raise ValueError(f"functions of more than {MOST} operators")
    return bytes(inliner.inline_local_functions(model).SerializeToString())
