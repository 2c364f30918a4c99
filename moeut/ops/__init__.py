"""Multiply states by weights: by dense ones, and routed rows by those of their experts.

``linear`` is the product of every dense layer, and ``Linear`` a module of it.

``Dispatch`` sorts a routing decision once; ``expert_linear`` and ``expert_mlp`` use it, forward and
backward. Every backend computes the same functions: ``reference`` defines them, ``grouped`` is fast
on a CPU and works everywhere, ``triton`` is for GPUs (``moeut.ops.triton.tuning.warmup`` compiles
its kernels and finds their block sizes ahead of time). From the top down:

* ``interface`` checks arguments and hands them to the backend that ``backend`` chooses;
* ``products`` chooses who multiplies: dense layers, and the rows of one expert;
* ``native`` holds operations in C++ for float32 on some CPUs;
* ``grouped`` walks through ``blocks`` of rows, whose products it gives to the faster
  of PyTorch's and oneDNN's routines;
* ``triton/operators`` registers what ``triton/compute`` computes by the launches of
  ``triton/launch``;
* ``shared`` casts a weight once for all applications of a pass.
"""

from moeut.ops.backend import available_backends, resolve_backend
from moeut.ops.dispatch import Dispatch
from moeut.ops.interface import expert_linear, expert_mlp
from moeut.ops.native import cross_entropy_sum, dropout
from moeut.ops.products import Linear, fewest_rows, linear, relu_mlp, takes_any_rows
from moeut.ops.shared import SharedWeight, SharedWeights

__all__ = [
    "Dispatch",
    "Linear",
    "SharedWeight",
    "SharedWeights",
    "available_backends",
    "cross_entropy_sum",
    "dropout",
    "expert_linear",
    "expert_mlp",
    "fewest_rows",
    "linear",
    "relu_mlp",
    "resolve_backend",
    "takes_any_rows",
]
