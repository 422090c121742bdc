"""torchvision, with either build of torch.

The wheels of torchvision on the Python package index are built against the CUDA build of torch. Beside the CPU build
their compiled extension does not load, and `import torchvision` stops because it describes two operators, `nms` and
`qnms`, that the extension should have declared. Data sets and image grids need neither, so declaring the two schemas
is enough. Calling one of the operators still fails, as it should: they have no implementation.
"""

from types import ModuleType

import torch


def import_torchvision() -> ModuleType:
    """The module `torchvision`. Where it imports by itself, nothing else is done.

    Raises whatever `import torchvision` raises for another reason, unchanged.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        for operator in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", schema)
        import torchvision
    return torchvision
