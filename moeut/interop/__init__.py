"""Models of other published code, imported: options and state dict to a model of ours."""

from moeut.interop.arithmetic import from_arithmetic
from moeut.interop.huginn import from_huginn
from moeut.interop.looped import from_looped_length, from_looped_window
from moeut.interop.mor import from_mor
from moeut.interop.ndr import from_ndr
from moeut.interop.ouro import from_ouro
from moeut.interop.parcae import from_parcae
from moeut.interop.recursive_reasoning import from_recursive_reasoning
from moeut.interop.relaxed import from_relaxed
from moeut.interop.release import from_release
from moeut.interop.training_checkpoint import from_training_checkpoint
from moeut.interop.training_code import from_training_code
from moeut.interop.transformer_generalization import from_transformer_generalization
from moeut.interop.universal import from_universal

__all__ = [
    "from_arithmetic",
    "from_huginn",
    "from_looped_length",
    "from_looped_window",
    "from_mor",
    "from_ndr",
    "from_ouro",
    "from_parcae",
    "from_recursive_reasoning",
    "from_relaxed",
    "from_release",
    "from_training_checkpoint",
    "from_training_code",
    "from_transformer_generalization",
    "from_universal",
]
