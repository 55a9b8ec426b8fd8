"""Differentiable optimization in JAX.

Optimizers are optax transforms, curvature is a Lineax operator, and an inverse
curvature is built once and used four ways: to precondition an update, to
differentiate a solution, to attribute a prediction to data, to prune weights.
"""

from ._curvature.autodiff import (
    gauss_newton as gauss_newton,
    hessian as hessian,
    hvp as hvp,
    value_grad_and_hvp as value_grad_and_hvp,
)
from ._curvature.base import (
    AbstractCurvature as AbstractCurvature,
    Damped as Damped,
)
from ._curvature.diagonal import (
    hutchinson_diag as hutchinson_diag,
    value_grad_and_diag as value_grad_and_diag,
    value_grad_and_gauss_newton_diag as value_grad_and_gauss_newton_diag,
)
from ._curvature.estimate import Estimate as Estimate
from ._curvature.head import (
    SoftmaxCrossEntropy as SoftmaxCrossEntropy,
    SquaredError as SquaredError,
)
from ._curvature.low_rank import (
    BlockLowRank as BlockLowRank,
    LowRank as LowRank,
    empirical_fisher as empirical_fisher,
)
from ._curvature.masked import Masked as Masked
from ._curvature.trace import hutchinson_trace as hutchinson_trace
from ._influence import influence as influence
from ._inverse.base import (
    AbstractExplicitInverse as AbstractExplicitInverse,
    AbstractInverse as AbstractInverse,
    Inverse as Inverse,
    invert as invert,
)
from ._inverse.cg import CG as CG
from ._inverse.neumann import Neumann as Neumann
from ._inverse.nystrom import (
    Nystrom as Nystrom,
    NystromPreconditioner as NystromPreconditioner,
    nystrom_preconditioner as nystrom_preconditioner,
)
from ._inverse.results import RESULTS as RESULTS
from ._inverse.woodbury import Woodbury as Woodbury, solve_rows as solve_rows
from ._optim.accumulate import (
    AccumulateState as AccumulateState,
    accumulate as accumulate,
)
from ._optim.adahessian import (
    AdaHessianState as AdaHessianState,
    adahessian as adahessian,
    scale_by_adahessian as scale_by_adahessian,
)
from ._optim.adan import (
    AdanState as AdanState,
    adan as adan,
    restart_adan as restart_adan,
    scale_by_adan as scale_by_adan,
)
from ._optim.averages import (
    average_blocks as average_blocks,
    average_conv_kernels as average_conv_kernels,
    average_rows as average_rows,
)
from ._optim.decay import (
    ProximalDecayState as ProximalDecayState,
    proximal_weight_decay as proximal_weight_decay,
)
from ._optim.hutchinson import (
    HutchinsonState as HutchinsonState,
    with_hutchinson as with_hutchinson,
)
from ._optim.mfac import (
    MfacState as MfacState,
    mfac as mfac,
    scale_by_mfac as scale_by_mfac,
)
from ._optim.sophia import (
    SophiaState as SophiaState,
    scale_by_sophia as scale_by_sophia,
    sophia as sophia,
)
from ._pruning import (
    Pruned as Pruned,
    obs_joint as obs_joint,
    obs_prune as obs_prune,
    obs_prune_gradually as obs_prune_gradually,
    obs_saliency as obs_saliency,
    obs_summed as obs_summed,
)
