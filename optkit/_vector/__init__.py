"""Arithmetic of pytrees and of tall matrices of stacked rows; one function of each."""

from .arithmetic import (
    all_finite as all_finite,
    axpy as axpy,
    cast_like as cast_like,
    constant as constant,
    dot as dot,
    norm as norm,
    scale as scale,
    strong as strong,
    subtract as subtract,
    where as where,
    widen as widen,
)
from .blocks import combine_blocks as combine_blocks, project_blocks as project_blocks
from .random import normals as normals, signs as signs
from .rows import (
    combine as combine,
    gram as gram,
    num_rows as num_rows,
    project as project,
)
from .scaling import (
    normalised as normalised,
    over_peak as over_peak,
    safe_norm as safe_norm,
)
from .select import smallest as smallest
from .structure import (
    common_dtype as common_dtype,
    explicit_sharding as explicit_sharding,
    first_difference as first_difference,
    from_vector as from_vector,
    structure_of as structure_of,
    to_vector as to_vector,
)
