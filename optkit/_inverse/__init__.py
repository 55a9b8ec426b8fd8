"""How the inverse of a damped curvature acts: each method is a Lineax solver."""
