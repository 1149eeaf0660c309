"""How many bytes of tensors are alive: on any device, also on the meta device, where tensors have sizes and no memory."""
import weakref

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class AliveBytes(TorchDispatchMode):
    """Counts what is made inside: the bytes that are alive `now`, and the `most` at any time. What kernels take for
    themselves is not seen."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given:
                self._add(leaf)
        return result

    def _add(self, tensor: Tensor):
        storage = tensor.untyped_storage()  # torch keeps one Python object for a storage as long as that is alive
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known[key] = weakref.ref(storage, lambda _: self._freed(key, size))
            self.now += size
            self.most = max(self.most, self.now)

    def _freed(self, key: int, size: int):
        del self.known[key]
        self.now -= size
