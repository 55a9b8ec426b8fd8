"""Solvers of deterministic equations and minimisation problems."""

from ._anderson import AndersonInfo as AndersonInfo, anderson as anderson
