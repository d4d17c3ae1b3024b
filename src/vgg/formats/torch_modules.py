"""Whole modules of torch, saved by torch.save(model): their layers in order, from inert records.

The pickle has each module's class by name, its attributes, its parameters and its children, but not its forward method. A
Sequential runs its children in order. For a class of a user's own, that order is assumed and stated.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from ..arrays import Array
from .checkpoints import combined, parts_of
from .layouts import Bare
from .pickles import Record
from .torch_operations import Operations
from .torch_tensors import Tensor

# Classes that run their children in order.
_IN_ORDER = frozenset((
    "torch.nn.modules.container.Sequential", "torchvision.models.vgg.VGG", "torch.nn.parallel.data_parallel.DataParallel",
    "torch.nn.parallel.distributed.DistributedDataParallel", "torch._dynamo.eval_frame.OptimizedModule",
    "torch.optim.swa_utils.AveragedModel",
))  # fmt: skip
_OWN = ("torch.nn.", "torch.ao.", "torch.jit.")  # whose classes are known, or refused by name
_NOTHING = ("torch.nn.modules.loss.", "torchmetrics.")  # beside the network, in training
_COMBINING = ("torch.nn.utils.prune.", "torch.nn.utils.weight_norm.", "torch.nn.utils.spectral_norm.")  # hooks; see checkpoints
_RESHAPES = ("flatten", "identity", "view", "reshape", "squeeze")  # names of users' classes without parameters
_DEPTH = 50  # of modules in modules
_MOST = 10_000  # modules; one that stands in several places counts each time

_Leaf = Callable[[Operations, str, "_Module"], None]


class _Module:
    """A module's attributes by name, with parameters and buffers among them."""

    def __init__(self, record: Record) -> None:
        self.name = record.name
        self.attributes: dict[Any, Any] = record.state if isinstance(record.state, dict) else {}

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def entries(self, name: str) -> dict[Any, Any]:
        found = self.get(name)
        return found if isinstance(found, dict) else {}

    @property
    def children(self) -> dict[str, Record]:
        return {str(key): child for key, child in self.entries("_modules").items() if isinstance(child, Record)}

    @property
    def kind(self) -> str:
        """The name of the class, if it is one of torch's."""
        return self.name.rpartition(".")[2] if self.name.startswith("torch.nn.modules.") else ""

    def array(self, name: str) -> Array | None:
        held = self.entries("_parameters") | self.entries("_buffers")
        if isinstance(value := held.get(name), Tensor):
            return value.array()
        parts = parts_of(map(str, held)).get(name, {})
        return combined({part: held[key].array() for part, key in parts.items() if isinstance(held[key], Tensor)})

    def weight(self) -> Array:
        found = self.array("weight")
        if found is None:
            raise ValueError(f"{self.name} without a weight")
        return found


def _conv(operations: Operations, name: str, module: _Module) -> None:
    operations.require(name, padding_mode=(module.get("padding_mode", "zeros"), "zeros"))
    arguments = (module.get(key) for key in ("stride", "padding", "dilation", "groups"))
    operations.conv2d(f"{name}.weight", module.weight(), module.array("bias"), *arguments)


def _norm(operations: Operations, name: str, module: _Module) -> None:
    roles = {"mean": "running_mean", "variance": "running_var", "scale": "weight", "bias": "bias"}
    operations.normalise(name, {role: module.array(key) for role, key in roles.items()}, module.get("eps", 1e-5))


def _max_pool(operations: Operations, name: str, module: _Module) -> None:
    keys = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    operations.max_pool2d(name, *(module.get(key) for key in keys))


def _activation(operation: str, attribute: str = "") -> _Leaf:
    return lambda operations, _, module: operations.activation(operation, module.get(attribute))


def _nothing(*_: Any) -> None:
    pass


def _softmax(operation: str) -> _Leaf:
    return lambda operations, name, module: operations.softmax(name, module.get("dim"), operation)


def _dropout(operations: Operations, _: str, module: _Module) -> None:
    operations.dropout(module.get("p", 0.5))


_ACTIVATIONS: dict[str, _Leaf] = {
    "ReLU": _activation("relu"), "LeakyReLU": _activation("leaky_relu", "negative_slope"), "ELU": _activation("elu", "alpha"),
    "SiLU": _activation("silu"), "Tanh": _activation("tanh"), "Sigmoid": _activation("sigmoid"),
    "GELU": lambda operations, _, module: operations.gelu(module.get("approximate", "none")),
}  # fmt: skip
# Classes of torch.nn without children.
_LEAVES: dict[str, _Leaf] = {
    **_ACTIVATIONS,
    "Conv2d": _conv,
    "Linear": lambda operations, name, module: operations.linear(f"{name}.weight", module.weight(), module.array("bias")),
    "BatchNorm1d": _norm, "BatchNorm2d": _norm, "SyncBatchNorm": _norm,
    "MaxPool2d": _max_pool,
    "AvgPool2d": lambda o, name, m: o.avg_pool2d(name, m.get("kernel_size"), m.get("stride"), m.get("padding")),
    "AdaptiveAvgPool2d": lambda o, name, m: o.adaptive_avg_pool2d(name, m.get("output_size")),
    "AdaptiveMaxPool2d": lambda o, name, m: o.adaptive_max_pool2d(name, m.get("output_size")),
    "Softmax": _softmax("softmax"), "LogSoftmax": _softmax("log_softmax"),
    "Flatten": lambda o, name, m: o.require(name, start_dim=(m.get("start_dim"), 1), end_dim=(m.get("end_dim"), -1)),
    "Identity": _nothing,
    **dict.fromkeys(("Dropout", "Dropout1d", "Dropout2d", "AlphaDropout", "FeatureAlphaDropout"), _dropout),
}  # fmt: skip


def is_module(value: Any) -> bool:
    """Whether a value in a pickle is a module."""
    return isinstance(value, Record) and isinstance(value.state, dict) and "_modules" in value.state


def convolves(record: Record) -> bool:
    """Whether a module or one within it has the weight of a convolution."""
    found, seen = [record], {id(record)}
    while found:
        module = _Module(found.pop())
        if any(isinstance(one, Tensor) and len(one.shape) == 4 for one in module.entries("_parameters").values()):
            return True
        found += [child for child in module.children.values() if id(child) not in seen]
        seen |= {id(child) for child in module.children.values()}
    return False


def read(path: object, record: Record) -> Bare:
    """The network that a module is.

    Raises:
        ModelError: it is none; the message names the first module that doesn't fit.
    """
    operations = Operations(path)
    budget = iter(range(_MOST))
    for name, module in _leaves(operations, "", record, budget):
        _LEAVES[module.kind](operations, name, module)
    return operations.bare()


def _leaves(
    operations: Operations, name: str, record: Record, budget: Iterator[int], depth: int = _DEPTH
) -> Iterator[tuple[str, _Module]]:
    """The modules without children in order, each with its name."""
    if next(budget, None) is None:
        raise operations.error(f"more than {_MOST} modules")
    module = _Module(record)
    title = f"{name} ({module.name})" if name else module.name
    if module.name.startswith(_NOTHING):
        return
    hooks = [*module.entries("_forward_hooks").values(), *module.entries("_forward_pre_hooks").values()]
    if any(not isinstance(hook, Record) or not hook.name.startswith(_COMBINING) for hook in hooks):
        raise operations.error(f"{title} has hooks, whose effect is unknown")
    if module.kind in _LEAVES:
        for key, one in (module.entries("_parameters") | module.entries("_buffers")).items():
            if isinstance(one, Record):
                raise operations.error(f"{title}: its {key} is not a tensor of floats, but {one.name}")
        yield name, module
        return
    held = [key for place in ("_parameters", "_buffers") for key, one in module.entries(place).items() if one is not None]
    held = [key for key in held if key != "n_averaged"]
    if not depth or held or not is_module(record) or (not module.children and not _reshapes(module)):
        raise operations.error(f"unsupported module {title}")
    children = list(module.children.items())
    if module.name not in _IN_ORDER:
        if module.name.startswith(_OWN) and not module.kind.startswith("Module"):  # ModuleList, ModuleDict
            raise operations.error(f"unsupported module {title}")
        completed = _completed(children)
        if len(children) > 1:
            names = ", ".join(key for key, _ in completed)
            operations.assumed.append(f"that {module.name} runs its modules in the order {names}")
        children = completed
    for key, child in children:
        yield from _leaves(operations, f"{name}.{key}" if name else key, child, budget, depth - 1)


def _reshapes(module: _Module) -> bool:
    """Whether a class without parameters or children only reshapes, by its name, or is an empty container."""
    last = module.name.rpartition(".")[2].lower()
    return module.name in _IN_ORDER or any(word in last for word in _RESHAPES)


def _completed(children: list[tuple[str, Record]]) -> list[tuple[str, Record]]:
    """The children of a user's class, with an activation between linear layers that follow each other.

    Its forward method applies a function there, or one module several times: that among the children, or else ReLU.
    """
    kinds = [_Module(child).kind for _, child in children]
    places = [place for place, kind in enumerate(kinds) if kind == "Linear"]
    between = [kinds[one + 1 : other] for one, other in pairwise(places)]
    if not between or all(any(kind in _ACTIVATIONS for kind in found) for found in between):
        return children
    last = places[-1]
    shared = [child for child, kind in zip(children, kinds, strict=True) if kind in _ACTIVATIONS and kind != "Sigmoid"]
    activation = shared[0] if shared else ("relu", Record("torch.nn.modules.activation.ReLU", ()))
    completed = []
    for place, child in enumerate(children):
        if child not in shared:
            completed.append(child)
        normed = place + 1 < len(kinds) and kinds[place + 1].startswith("BatchNorm")
        follows = kinds[place] == "Linear" or (kinds[place].startswith("BatchNorm") and place > places[0])
        if follows and not normed and place < last:
            completed.append(activation)
    return completed
