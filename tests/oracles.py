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


class AdaHessian:
    """The authors' official single-tensor step, given the averaged |Hz|."""

    def __init__(
        self,
        theta,
        lr,
        betas=(0.9, 0.999),
        eps=1e-4,
        hessian_power=1.0,
        weight_decay=0.0,
    ):
        self.theta = np.array(theta)
        self.lr = lr if callable(lr) else lambda step: lr
        self.betas, self.eps, self.k = betas, eps, hessian_power
        self.weight_decay = weight_decay
        self.step_count = 0
        self.exp_avg = np.zeros_like(self.theta)
        self.exp_hessian_diag_sq = np.zeros_like(self.theta)

    def step(self, grad, hut_trace):
        beta1, beta2 = self.betas
        lr = self.lr(self.step_count)
        self.step_count += 1
        self.exp_avg = self.exp_avg * beta1 + (1 - beta1) * grad
        self.exp_hessian_diag_sq = (
            self.exp_hessian_diag_sq * beta2 + (1 - beta2) * hut_trace * hut_trace
        )
        correction1 = 1 - beta1**self.step_count
        correction2 = 1 - beta2**self.step_count
        root = np.sqrt(self.exp_hessian_diag_sq) / np.sqrt(correction2)
        denom = root**self.k + self.eps
        self.theta = self.theta - lr * (
            self.exp_avg / correction1 / denom + self.weight_decay * self.theta
        )
        return self.theta


def adahessian_conv_kernels(h):
    """`image_classification`: h of a kernel OIHW, the mean over H and W."""
    out = np.array(h)
    for o in range(h.shape[0]):
        for i in range(h.shape[1]):
            out[o, i] = np.mean(h[o, i])
    return out


def adahessian_rows(h):
    """`instruction`: h of weights (out, in) or (out, in, width), the last axis."""
    out = np.array(h)
    for index in np.ndindex(h.shape[:-1]):
        out[index] = np.mean(h[index])
    return out


def adahessian_blocks(h, block):
    """`fairseq`: blocks of the flattened weights."""
    out = np.array(h).reshape(-1)
    for start in range(0, out.size, block):
        out[start : start + block] = np.mean(out[start : start + block])
    return out.reshape(h.shape)


class Sophia:
    """Algorithm 3, given the estimate at every step; it is used at each k-th."""

    def __init__(
        self,
        theta,
        lr,
        betas=(0.96, 0.99),
        gamma=0.01,
        eps=1e-12,
        weight_decay=0.0,
        k=10,
    ):
        self.theta = np.array(theta)
        self.lr = lr if callable(lr) else lambda step: lr
        self.betas, self.gamma, self.eps, self.k = betas, gamma, eps, k
        self.weight_decay = weight_decay
        self.t = 0
        self.m = np.zeros_like(self.theta)
        self.h = np.zeros_like(self.theta)

    def step(self, grad, estimate):
        beta1, beta2 = self.betas
        lr = self.lr(self.t)
        self.t += 1
        self.m = beta1 * self.m + (1 - beta1) * grad
        if (self.t - 1) % self.k == 0:
            self.h = beta2 * self.h + (1 - beta2) * estimate
        ratio = self.m / np.maximum(self.gamma * self.h, self.eps)
        self.win_rate = np.mean(np.abs(ratio) < 1)
        self.theta = self.theta - lr * self.weight_decay * self.theta
        self.theta = self.theta - lr * np.clip(ratio, -1, 1)
        return self.theta


class Mfac:
    """The authors' dynamic algorithm and optimizer: ring buffer, LU, then D and B."""

    def __init__(self, theta, m, damp, lr, momentum=0.0, weight_decay=0.0):
        self.theta = np.array(theta)
        self.m, self.lambd, self.lr = m, 1.0 / damp, lr
        self.momentum, self.weight_decay = momentum, weight_decay
        self.grads = np.zeros((m, self.theta.size))
        self.gram = np.zeros((m, m))
        self.last = 0
        self.v = np.zeros_like(self.theta)

    def integrate_gradient(self, g):
        """F^-1 g with g in the window."""
        m, lambd = self.m, self.lambd
        self.grads[self.last] = g
        row = self.grads @ g
        self.gram[self.last], self.gram[:, self.last] = row, row
        self.last = (self.last + 1) % m

        # torch.lu(..., pivot=False): the upper factor, by elimination without pivots.
        upper = lambd * self.gram + m * np.eye(m)
        for i in range(m):
            for j in range(i + 1, m):
                upper[j] = upper[j] - upper[i] * upper[j, i] / upper[i, i]
        D = np.triu(upper - m * np.eye(m))
        q = m + np.diagonal(D)
        B = np.diag(np.full(m, lambd))
        for i in range(1, m):
            B[i, :i] = (-D[:i, i] / q[:i]) @ B[:i, :i]

        y = lambd * (self.grads @ g)
        for i in range(m):
            y[i + 1 :] -= D[i, i + 1 :] * y[i] / q[i]
        return lambd * g - ((y / q) @ B) @ self.grads

    def step(self, grad):
        u = self.integrate_gradient(grad + self.weight_decay * self.theta)
        self.v = self.momentum * self.v + (1 - self.momentum) * u
        self.theta = self.theta - self.lr * self.v
        return self.theta
