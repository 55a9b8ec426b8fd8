"""Sets and norms: their proximal operators and projections."""
