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


class NoisyQuadratic:
    """The gradients of `problems.noisy_upper` (f) and `noisy_lower` (g)."""

    @staticmethod
    def f_x(x, y, b):
        return 0.1 * x + b["C"] @ y

    @staticmethod
    def f_y(x, y, b):
        return y - b["t"] + b["C"].T @ x

    @staticmethod
    def g_x(x, y, b):
        return b["e"] * x - b["B"].T @ y  # e has one entry

    @staticmethod
    def g_y(x, y, b):
        return b["A"] @ y - b["B"] @ x


def f2sa(p, x, y, z, samples, inner_steps, alpha, gamma, delta, penalty, ratio):
    """F2SA as its pseudo-code; `samples[k]` is a `Batches` of NumPy arrays."""
    for k, s in enumerate(samples):
        for t in range(inner_steps):
            phi_z, zeta_y, phi_y = (
                {name: a[t] for name, a in b.items()}
                for b in (s.lower_z, s.upper_y, s.lower_y)
            )
            z = z - gamma(k) * p.g_y(x, z, phi_z)
            y = y - alpha(k) * (p.f_y(x, y, zeta_y) + penalty * p.g_y(x, y, phi_y))
        gap = p.g_x(x, y, s.lower_x) - p.g_x(x, z, s.lower_x)
        x = x - ratio * alpha(k) * (p.f_x(x, y, s.upper_x) + penalty * gap)
        penalty = penalty + delta(k, penalty)
    return x, y, z, penalty


def f3sa(p, x, y, z, samples, alpha, gamma, eta, delta, penalty, ratio):
    """F3SA with all six estimators of its pseudo-code."""
    x_old, y_old, z_old = x, y, z
    h = dict.fromkeys(("z", "fy", "gy", "fx", "gxy", "gxz"), 0.0)

    def momentum(name, k, new, old):
        h[name] = new + (1 - eta(k)) * (h[name] - old)
        return h[name]

    for k, s in enumerate(samples):
        h_z = momentum("z", k, p.g_y(x, z, s.lower_z), p.g_y(x_old, z_old, s.lower_z))
        h_f = momentum("fy", k, p.f_y(x, y, s.upper_y), p.f_y(x_old, y_old, s.upper_y))
        h_g = momentum("gy", k, p.g_y(x, y, s.lower_y), p.g_y(x_old, y_old, s.lower_y))
        z_new = z - gamma(k) * h_z
        y_new = y - alpha(k) * (h_f + penalty * h_g)
        xi, phi = s.upper_x, s.lower_x
        h_fx = momentum("fx", k, p.f_x(x, y_new, xi), p.f_x(x_old, y, xi))
        h_gxy = momentum("gxy", k, p.g_x(x, y_new, phi), p.g_x(x_old, y, phi))
        h_gxz = momentum("gxz", k, p.g_x(x, z_new, phi), p.g_x(x_old, z, phi))
        x_old, y_old, z_old = x, y, z
        x = x - ratio * alpha(k) * (h_fx + penalty * (h_gxy - h_gxz))
        y, z = y_new, z_new
        penalty = penalty + delta(k, penalty)
    return x, y, z, penalty


def penalty_double_loop(
    p, x, y, z, samples, inner_steps, alpha, gamma, sigma, rho, beta, project
):
    """The proximal double loop, onto {project(v) = v} on both levels."""
    for k, s in enumerate(samples):
        u, w = y, z
        for t in range(inner_steps):
            phi_w, zeta_u, phi_u = (
                {name: a[t] for name, a in b.items()}
                for b in (s.lower_z, s.upper_y, s.lower_y)
            )
            h_u = sigma(k) * p.f_y(x, u, zeta_u) + p.g_y(x, u, phi_u)
            w = project(w - gamma * (p.g_y(x, w, phi_w) + (w - z) / rho))
            u = project(u - gamma * (h_u + (u - y) / rho))
        z = (1 - beta) * z + beta * w
        y = (1 - beta) * y + beta * u
        gap = p.g_x(x, u, s.lower_x) - p.g_x(x, w, s.lower_x)
        x = project(x - alpha * (p.f_x(x, u, s.upper_x) + gap / sigma(k)))
    return x, y, z


def penalty_single_loop(
    p, x, y, z, samples, alpha, gamma, eta, sigma, rho, beta, project
):
    """The proximal method in one loop, with all six estimators."""
    u, w = y, z
    x_old, u_old, w_old = x, u, w
    h = dict.fromkeys(("w", "fu", "gu", "fx", "gxu", "gxw"), 0.0)

    def momentum(name, k, new, old):
        h[name] = new + (1 - eta(k)) * (h[name] - old)
        return h[name]

    for k, s in enumerate(samples):
        h_w = momentum("w", k, p.g_y(x, w, s.lower_z), p.g_y(x_old, w_old, s.lower_z))
        h_f = momentum("fu", k, p.f_y(x, u, s.upper_y), p.f_y(x_old, u_old, s.upper_y))
        h_g = momentum("gu", k, p.g_y(x, u, s.lower_y), p.g_y(x_old, u_old, s.lower_y))
        w_new = project(w - gamma * (h_w + (w - z) / rho))
        u_new = project(u - gamma * (sigma(k) * h_f + h_g + (u - y) / rho))
        xi, phi = s.upper_x, s.lower_x
        h_fx = momentum("fx", k, p.f_x(x, u_new, xi), p.f_x(x_old, u, xi))
        h_gxu = momentum("gxu", k, p.g_x(x, u_new, phi), p.g_x(x_old, u, phi))
        h_gxw = momentum("gxw", k, p.g_x(x, w_new, phi), p.g_x(x_old, w, phi))
        x_old, u_old, w_old = x, u, w
        x = project(x - alpha * (h_fx + (h_gxu - h_gxw) / sigma(k)))
        u, w = u_new, w_new
        z = (1 - beta) * z + beta * w
        y = (1 - beta) * y + beta * u
    return x, y, z


class QuadraticSlopes:
    """Derivatives of `benchmarks.problems.quadratic`, a mean of rank-one quadratics."""

    @staticmethod
    def first(x, y, b):
        """The derivatives in x and y."""
        n = len(b.a)
        d_x = (b.b.T @ (b.b @ x) + b.u.T @ (b.w @ y) + b.q.sum(0)) / n
        d_y = (b.a.T @ (b.a @ y) + b.w.T @ (b.u @ x) + b.p.sum(0)) / n
        return d_x, d_y

    @staticmethod
    def products(v, b):
        """J v and H v."""
        n = len(b.a)
        return b.u.T @ (b.w @ v) / n, b.a.T @ (b.a @ v) / n


def soba(x, y, v, upper_batches, lower_batches, rho, gamma):
    """SOBA: all directions at the same point, step sizes as functions of the step."""
    slopes = QuadraticSlopes
    for k, (f, g) in enumerate(zip(upper_batches, lower_batches, strict=True)):
        f_x, f_y = slopes.first(x, y, f)
        _, g_y = slopes.first(x, y, g)
        j_v, h_v = slopes.products(v, g)
        x, y, v = (
            x - gamma(k) * (j_v + f_x),
            y - rho(k) * g_y,
            v - rho(k) * (h_v + f_y),
        )
    return x, y, v


def saba(x, y, v, upper_terms, lower_terms, draws, rho, gamma):
    """SABA: five SAGA tables, all zero at first, and one term of each level a step."""
    slopes = QuadraticSlopes
    tables = {}

    def reduced(name, i, new, n):
        table = tables.setdefault(name, [np.zeros_like(new) for _ in range(n)])
        direction = new - table[i] + sum(table) / n
        table[i] = new
        return direction

    n, m = len(upper_terms), len(lower_terms)
    for i, j in draws:
        f_x, f_y = slopes.first(x, y, upper_terms[i])
        _, g_y = slopes.first(x, y, lower_terms[j])
        j_v, h_v = slopes.products(v, lower_terms[j])
        d_x = reduced("j_v", j, j_v, m) + reduced("f_x", i, f_x, n)
        d_v = reduced("h_v", j, h_v, m) + reduced("f_y", i, f_y, n)
        d_y = reduced("g_y", j, g_y, m)
        x, y, v = x - gamma * d_x, y - rho * d_y, v - rho * d_v
    return x, y, v
