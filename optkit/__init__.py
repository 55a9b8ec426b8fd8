"""Differentiable optimization in JAX.

Optimizers are optax transforms, curvature is a Lineax operator, and an inverse
curvature is built once and used four ways: to precondition an update, to
differentiate a solution, to attribute a prediction to data, to prune weights.
"""

from . import (
    _interrupt as _interrupt,
    bilevel as bilevel,
    optim as optim,
    solvers as solvers,
)
from ._curvature.base import AbstractCurvature as AbstractCurvature
from ._curvature.damped import Damped as Damped
from ._curvature.diagonal import (
    hutchinson_diag as hutchinson_diag,
    value_grad_and_diag as value_grad_and_diag,
    value_grad_and_gauss_newton_diag as value_grad_and_gauss_newton_diag,
)
from ._curvature.estimate import Estimate as Estimate
from ._curvature.gauss_newton import gauss_newton as gauss_newton
from ._curvature.head import (
    AbstractHead as AbstractHead,
    SoftmaxCrossEntropy as SoftmaxCrossEntropy,
    SquaredError as SquaredError,
)
from ._curvature.hessian import hessian as hessian
from ._curvature.hvp import hvp as hvp, value_grad_and_hvp as value_grad_and_hvp
from ._curvature.low_rank import (
    BlockLowRank as BlockLowRank,
    LowRank as LowRank,
    empirical_fisher as empirical_fisher,
)
from ._curvature.masked import Masked as Masked
from ._curvature.spectrum import Spectrum as Spectrum, spectrum as spectrum
from ._curvature.trace import hutchinson_trace as hutchinson_trace
from ._curvature.xdiag import xdiag as xdiag
from ._curvature.xnystrace import xnystrace as xnystrace
from ._curvature.xtrace import xtrace as xtrace
from ._diagnostics import plot as plot
from ._diagnostics.progress import scan_with_progress as scan_with_progress
from ._geometry import projections as projections, prox as prox
from ._implicit import optimality as optimality
from ._implicit.base import ImplicitSolve as ImplicitSolve
from ._implicit.check import (
    ImplicitReport as ImplicitReport,
    check_implicit as check_implicit,
)
from ._implicit.fixed_point import implicit_fixed_point as implicit_fixed_point
from ._implicit.host import host_solver as host_solver
from ._implicit.minimum import implicit_minimum as implicit_minimum
from ._implicit.root import implicit_root as implicit_root
from ._implicit.unroll import unroll as unroll
from ._influence import influence as influence, self_influence as self_influence
from ._inverse.base import (
    AbstractExplicitInverse as AbstractExplicitInverse,
    AbstractInverse as AbstractInverse,
)
from ._inverse.cg import CG as CG
from ._inverse.gmres import GMRES as GMRES
from ._inverse.inverse import Inverse as Inverse, invert as invert
from ._inverse.neumann import Neumann as Neumann
from ._inverse.nystrom import Nystrom as Nystrom
from ._inverse.nystrom_preconditioner import (
    NystromPreconditioner as NystromPreconditioner,
    nystrom_preconditioner as nystrom_preconditioner,
)
from ._inverse.one_step import OneStep as OneStep
from ._inverse.rows import solve_rows as solve_rows
from ._inverse.woodbury import Woodbury as Woodbury
from ._pruning.base import obs_saliency as obs_saliency
from ._pruning.prune import (
    Pruned as Pruned,
    obs_prune as obs_prune,
    obs_prune_gradually as obs_prune_gradually,
)
from ._pruning.update import obs_joint as obs_joint, obs_summed as obs_summed
from ._results import RESULTS as RESULTS
from ._solver.run import Run as Run, run as run
from ._solver.solver import Solver as Solver
from ._version import __version__ as __version__
