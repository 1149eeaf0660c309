"""Let a CUDA build of torchvision import beside a CPU-only torch.

The package index has no CPU build of torchvision, and the CUDA build refuses to import because its compiled operators
are missing: "operator torchvision::nms does not exist". ComfyUI and transformers import torchvision but never call those
operators here, so declaring their signatures is enough.

`scripts/environment.py` copies this file into the demo environment with a `.pth` line that imports it at every start of
Python. It costs nothing until somebody imports torchvision.
"""
import importlib.abc
import sys


class _DeclareOperatorsFirst(importlib.abc.MetaPathFinder):
    library = None

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            self.__class__.library = library  # its destructor would take the declarations back
        return None


sys.meta_path.insert(0, _DeclareOperatorsFirst())
