"""Each algorithm as its source prints it, in plain NumPy float64, one array at a time.

Nothing here imports optkit or JAX: an oracle that shares code proves nothing.
"""

import numpy as np


class Adan:
    """The authors' official single-tensor step, with `restart_opt`."""

    def __init__(
        self,
        theta,
        lr,
        betas=(0.98, 0.92, 0.99),
        eps=1e-8,
        weight_decay=0.0,
        no_prox=False,
    ):
        self.theta = np.array(theta)
        self.lr = lr if callable(lr) else lambda step: lr
        self.betas, self.eps = betas, eps
        self.weight_decay, self.no_prox = weight_decay, no_prox
        self.num_updates = 0
        self.restart_opt()

    def restart_opt(self):
        self.step_count = 0
        self.exp_avg = np.zeros_like(self.theta)
        self.exp_avg_sq = np.zeros_like(self.theta)
        self.exp_avg_diff = np.zeros_like(self.theta)

    def step(self, grad):
        beta1, beta2, beta3 = self.betas
        lr = self.lr(self.num_updates)
        self.num_updates += 1
        self.step_count += 1
        if self.step_count == 1:
            self.neg_pre_grad = -grad
        correction1 = 1.0 - beta1**self.step_count
        correction2 = 1.0 - beta2**self.step_count
        correction3_sqrt = np.sqrt(1.0 - beta3**self.step_count)

        diff = self.neg_pre_grad + grad
        self.exp_avg = beta1 * self.exp_avg + (1 - beta1) * grad
        self.exp_avg_diff = beta2 * self.exp_avg_diff + (1 - beta2) * diff
        look_ahead = beta2 * diff + grad
        self.exp_avg_sq = beta3 * self.exp_avg_sq + (1 - beta3) * look_ahead**2

        denom = np.sqrt(self.exp_avg_sq) / correction3_sqrt + self.eps
        if self.no_prox:
            self.theta = self.theta * (1 - lr * self.weight_decay)
        self.theta = self.theta - lr / correction1 * self.exp_avg / denom
        self.theta = self.theta - lr * beta2 / correction2 * self.exp_avg_diff / denom
        if not self.no_prox:
            self.theta = self.theta / (1 + lr * self.weight_decay)
        self.neg_pre_grad = -grad
        return self.theta


def mfac_static(gradients, damping):
    """M-FAC's static recursion, rows V of F_i^-1 g_i and their q."""
    m = len(gradients)
    v, q = [], []
    for i in range(m):
        row = gradients[i] / damping
        for j in range(i):
            row = row - v[j] * (v[j] @ gradients[i]) / q[j]
        v.append(row)
        q.append(m + gradients[i] @ row)
    return np.array(v), np.array(q)


def mfac_product(v, q, damping, x):
    """F^-1 x."""
    return x / damping - sum(v[i] * (v[i] @ x) / q[i] for i in range(len(q)))


def mfac_diagonal(v, q, damping):
    """diag(F^-1)."""
    return 1 / damping - sum(v[i] * v[i] / q[i] for i in range(len(q)))


def mfac_entry(v, q, damping, a, b):
    """[F^-1]_ab, from one column of V for each index."""
    return (a == b) / damping - np.sum(v[:, a] * v[:, b] / q)
