"""Arithmetic of pytrees and of stacked rows, each operation once."""

from .arithmetic import (
    add as add,
    all_finite as all_finite,
    axpy as axpy,
    cast_like as cast_like,
    constant as constant,
    dot as dot,
    multiply as multiply,
    norm as norm,
    scale as scale,
    strong as strong,
    subtract as subtract,
    where as where,
    widen as widen,
    zeros_like as zeros_like,
)
from .blocks import combine_blocks as combine_blocks, project_blocks as project_blocks
from .models import (
    SPLIT as SPLIT,
    call_rebuilt as call_rebuilt,
    first_leaf_unlike as first_leaf_unlike,
)
from .random import normals as normals, signs as signs
from .rows import (
    combine as combine,
    gram as gram,
    num_rows as num_rows,
    project as project,
    zero_rows as zero_rows,
)
from .scaling import (
    normalised as normalised,
    over_peak as over_peak,
    relative_norm as relative_norm,
    safe_norm as safe_norm,
)
from .select import smallest as smallest
from .structure import (
    common_dtype as common_dtype,
    explicit_sharding as explicit_sharding,
    first_difference as first_difference,
    from_vector as from_vector,
    gathered as gathered,
    narrowest_eps as narrowest_eps,
    place_like as place_like,
    structure_of as structure_of,
    to_vector as to_vector,
)
