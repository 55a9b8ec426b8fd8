"""One protocol for iterative solvers, and the loop around them."""
