"""Differentiable optimization in JAX.

Optimizers are optax transforms, curvature is a Lineax operator, and an inverse
curvature is built once and used four ways: to precondition an update, to
differentiate a solution, to attribute a prediction to data, to prune weights.
"""

from ._bilevel.base import (
    Batches as Batches,
    BilevelInfo as BilevelInfo,
    BilevelSolver as BilevelSolver,
)
from ._bilevel.descent import (
    DescentState as DescentState,
    hypergradient_descent as hypergradient_descent,
)
from ._bilevel.f2sa import F2saState as F2saState, f2sa as f2sa
from ._bilevel.f3sa import F3saState as F3saState, f3sa as f3sa
from ._bilevel.hypergradient import (
    AbstractHypergradient as AbstractHypergradient,
    HypergradientInfo as HypergradientInfo,
    hypergradient as hypergradient,
)
from ._bilevel.implicit import (
    Implicit as Implicit,
    ImplicitProjected as ImplicitProjected,
)
from ._bilevel.penalty import PenaltyState as PenaltyState, penalty as penalty
from ._bilevel.penalty_momentum import (
    PenaltyMomentumState as PenaltyMomentumState,
    penalty_momentum as penalty_momentum,
)
from ._bilevel.run import Run as Run, run as run
from ._bilevel.saba import (
    SabaMemory as SabaMemory,
    SabaState as SabaState,
    Term as Term,
    saba as saba,
)
from ._bilevel.schedules import (
    PenaltySchedule as PenaltySchedule,
    scale_by_penalty as scale_by_penalty,
    sigma_schedule as sigma_schedule,
)
from ._bilevel.soba import SobaState as SobaState, soba as soba
from ._bilevel.theory import (
    Constants as Constants,
    f2sa_schedule as f2sa_schedule,
    f3sa_schedule as f3sa_schedule,
)
from ._bilevel.unrolled import ForwardMode as ForwardMode, Unrolled as Unrolled
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
from ._curvature.spectrum import Spectrum as Spectrum, spectrum as spectrum
from ._curvature.trace import hutchinson_trace as hutchinson_trace
from ._diagnostics import plot as plot
from ._diagnostics.progress import scan_with_progress as scan_with_progress
from ._implicit import (
    optimality as optimality,
    projections as projections,
    prox as prox,
)
from ._implicit.anderson import AndersonInfo as AndersonInfo, anderson as anderson
from ._implicit.base import ImplicitSolve as ImplicitSolve
from ._implicit.check import (
    ImplicitReport as ImplicitReport,
    check_implicit as check_implicit,
)
from ._implicit.fixed_point import implicit_fixed_point as implicit_fixed_point
from ._implicit.host import host_solver as host_solver
from ._implicit.linear import OneStep as OneStep
from ._implicit.minimum import implicit_minimum as implicit_minimum
from ._implicit.root import implicit_root as implicit_root
from ._implicit.unroll import unroll as unroll
from ._influence import influence as influence
from ._inverse.base import (
    AbstractExplicitInverse as AbstractExplicitInverse,
    AbstractInverse as AbstractInverse,
)
from ._inverse.cg import CG as CG
from ._inverse.gmres import GMRES as GMRES
from ._inverse.inverse import Inverse as Inverse, invert as invert
from ._inverse.neumann import Neumann as Neumann
from ._inverse.nystrom import (
    Nystrom as Nystrom,
    NystromPreconditioner as NystromPreconditioner,
    nystrom_preconditioner as nystrom_preconditioner,
)
from ._inverse.results import RESULTS as RESULTS
from ._inverse.rows import solve_rows as solve_rows
from ._inverse.woodbury import Woodbury as Woodbury
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
