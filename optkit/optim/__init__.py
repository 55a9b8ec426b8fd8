"""Optimizers as optax transforms: one algorithm, one file."""

from ._accumulate import AccumulateState as AccumulateState, accumulate as accumulate
from ._adahessian import (
    AdaHessianState as AdaHessianState,
    adahessian as adahessian,
    scale_by_adahessian as scale_by_adahessian,
)
from ._adan import (
    AdanState as AdanState,
    adan as adan,
    restart_adan as restart_adan,
    scale_by_adan as scale_by_adan,
)
from ._averages import (
    average_blocks as average_blocks,
    average_conv_kernels as average_conv_kernels,
    average_rows as average_rows,
)
from ._complex import split_real_and_imaginary as split_real_and_imaginary
from ._decay import (
    ProximalDecayState as ProximalDecayState,
    proximal_weight_decay as proximal_weight_decay,
)
from ._hutchinson import (
    HutchinsonState as HutchinsonState,
    with_hutchinson as with_hutchinson,
)
from ._mfac import MfacState as MfacState, mfac as mfac, scale_by_mfac as scale_by_mfac
from ._sophia import (
    SophiaState as SophiaState,
    scale_by_sophia as scale_by_sophia,
    sophia as sophia,
)
