"""Bilevel problems: hypergradients, and solvers that step both levels."""

from ._base import Batches as Batches, BilevelInfo as BilevelInfo
from ._descent import (
    DescentState as DescentState,
    hypergradient_descent as hypergradient_descent,
)
from ._f2sa import f2sa as f2sa
from ._f2sa_schedule import (
    PenaltySchedule as PenaltySchedule,
    f2sa_schedule as f2sa_schedule,
)
from ._f3sa import f3sa as f3sa
from ._f3sa_schedule import (
    MomentumSchedule as MomentumSchedule,
    f3sa_schedule as f3sa_schedule,
)
from ._forward_mode import ForwardMode as ForwardMode
from ._hypergradient import (
    AbstractHypergradient as AbstractHypergradient,
    HypergradientInfo as HypergradientInfo,
    hypergradient as hypergradient,
)
from ._implicit import Implicit as Implicit, ImplicitProjected as ImplicitProjected
from ._penalized import PenaltyState as PenaltyState
from ._penalty import penalty as penalty
from ._penalty_momentum import penalty_momentum as penalty_momentum
from ._saba import (
    SabaMemory as SabaMemory,
    SabaState as SabaState,
    Term as Term,
    saba as saba,
)
from ._schedules import (
    Constants as Constants,
    scale_by_penalty as scale_by_penalty,
    sigma_schedule as sigma_schedule,
)
from ._soba import SobaState as SobaState, soba as soba
from ._unrolled import Unrolled as Unrolled
