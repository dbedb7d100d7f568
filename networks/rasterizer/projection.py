"""EWA projection of one 3D Gaussian to the image, and its vector-Jacobian product, as numba helpers.

After "EWA volume splatting" (Zwicker et al., 2001) with gsplat's conventions: OpenCV cameras, pixel centres at +0.5,
the Jacobian held at 1.3 times the field of view. All is computed in float64, whatever the inputs: the cost is the same
in scalar code, and the determinant of a needle seen from near does not cancel. A Gaussian's divisions are few: each
holds up the divider, so a reciprocal is taken once and multiplied. Matrices are row-major tuples of 9.
"""

import math

from visa.networks.rasterizer.compiler import inline
from visa.networks.rasterizer.constants import ALPHA_THRESHOLD, EPS_2D, FIELD_OF_VIEW_MARGIN

Matrix = tuple[float, float, float, float, float, float, float, float, float]


@inline
def _product(a: Matrix, b: Matrix) -> Matrix:
    """a @ b."""
    return (
        a[0] * b[0] + a[1] * b[3] + a[2] * b[6],
        a[0] * b[1] + a[1] * b[4] + a[2] * b[7],
        a[0] * b[2] + a[1] * b[5] + a[2] * b[8],
        a[3] * b[0] + a[4] * b[3] + a[5] * b[6],
        a[3] * b[1] + a[4] * b[4] + a[5] * b[7],
        a[3] * b[2] + a[4] * b[5] + a[5] * b[8],
        a[6] * b[0] + a[7] * b[3] + a[8] * b[6],
        a[6] * b[1] + a[7] * b[4] + a[8] * b[7],
        a[6] * b[2] + a[7] * b[5] + a[8] * b[8],
    )


@inline
def _transpose(a: Matrix) -> Matrix:
    return (a[0], a[3], a[6], a[1], a[4], a[7], a[2], a[5], a[8])


@inline
def _rotation(w: float, x: float, y: float, z: float) -> Matrix:
    """Rotation matrix of a unit quaternion."""
    return (
        1 - 2 * (y * y + z * z),
        2 * (x * y - w * z),
        2 * (x * z + w * y),
        2 * (x * y + w * z),
        1 - 2 * (x * x + z * z),
        2 * (y * z - w * x),
        2 * (x * z - w * y),
        2 * (y * z + w * x),
        1 - 2 * (x * x + y * y),
    )


@inline
def _quaternion_gradient(w: float, x: float, y: float, z: float, g: Matrix) -> tuple[float, float, float, float]:
    """Gradient with respect to the unit quaternion, from that of its rotation matrix."""
    return (
        2 * (x * (g[7] - g[5]) + y * (g[2] - g[6]) + z * (g[3] - g[1])),
        2 * (-2 * x * (g[4] + g[8]) + y * (g[1] + g[3]) + z * (g[2] + g[6]) + w * (g[7] - g[5])),
        2 * (x * (g[1] + g[3]) - 2 * y * (g[0] + g[8]) + z * (g[5] + g[7]) + w * (g[2] - g[6])),
        2 * (x * (g[2] + g[6]) + y * (g[5] + g[7]) - 2 * z * (g[0] + g[4]) + w * (g[3] - g[1])),
    )


@inline
def _scaled_columns(a: Matrix, s: tuple[float, float, float]) -> Matrix:
    return (
        a[0] * s[0], a[1] * s[1], a[2] * s[2],
        a[3] * s[0], a[4] * s[1], a[5] * s[2],
        a[6] * s[0], a[7] * s[1], a[8] * s[2],
    )  # fmt: skip


@inline
def _held_slope(slope: float, focal: float, centre: float, size: float) -> tuple[float, bool]:
    """x/z held to 1.3 times the field of view, and whether it was free (not held)."""
    margin = FIELD_OF_VIEW_MARGIN * 0.5 * size / focal
    low, high = -(centre / focal + margin), (size - centre) / focal + margin
    return min(max(slope, low), high), low <= slope <= high


@inline
def _camera_space(mean: tuple, rotation: Matrix, translation: tuple) -> tuple[float, float, float]:
    return (
        rotation[0] * mean[0] + rotation[1] * mean[1] + rotation[2] * mean[2] + translation[0],
        rotation[3] * mean[0] + rotation[4] * mean[1] + rotation[5] * mean[2] + translation[1],
        rotation[6] * mean[0] + rotation[7] * mean[1] + rotation[8] * mean[2] + translation[2],
    )


@inline
def _unit_quaternion(quat: tuple) -> tuple[float, float, float, float, float]:
    """Normalised quaternion and 1 / norm (the norm floored, as torch's `normalize` does)."""
    inverse = 1.0 / max(math.sqrt(quat[0] ** 2 + quat[1] ** 2 + quat[2] ** 2 + quat[3] ** 2), 1e-12)
    return quat[0] * inverse, quat[1] * inverse, quat[2] * inverse, quat[3] * inverse, inverse


@inline
def project(
    mean: tuple, quat: tuple, scale: tuple, opacity: float, rotation: Matrix, translation: tuple, pinhole: tuple,
    width: int, height: int, near: float,
) -> tuple[bool, float, float, float, float, float, float, float, float, float]:  # fmt: skip
    """Project one Gaussian: (seen, x, y, conic a, b, c, depth, half width, half height of its box, reach).

    In px, 1/px^2 and m; `reach` is the exponent at which alpha falls to the threshold. `pinhole` is (fx, fy, cx, cy).
    The conic is the inverse covariance [[a, b], [b, c]]. The box holds every pixel centre whose alpha reaches the
    threshold ("StopThePop", Radl et al. 2024, section B.2).
    """
    x, y, z = _camera_space(mean, rotation, translation)
    if z <= near or opacity < ALPHA_THRESHOLD:
        return False, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    qw, qx, qy, qz, _ = _unit_quaternion(quat)
    axes = _product(rotation, _scaled_columns(_rotation(qw, qx, qy, qz), scale))
    fx, fy, cx, cy = pinhole
    inverse_z = 1.0 / z
    kx, ky = fx * inverse_z, fy * inverse_z
    u, _ = _held_slope(x * inverse_z, fx, cx, width)
    v, _ = _held_slope(y * inverse_z, fy, cy, height)
    # rows of J @ axes, J = [[fx/z, 0, -fx u/z], [0, fy/z, -fy v/z]]
    p0, p1, p2 = (axes[0] - u * axes[6]) * kx, (axes[1] - u * axes[7]) * kx, (axes[2] - u * axes[8]) * kx
    q0, q1, q2 = (axes[3] - v * axes[6]) * ky, (axes[4] - v * axes[7]) * ky, (axes[5] - v * axes[8]) * ky
    xx, xy, yy = p0 * p0 + p1 * p1 + p2 * p2 + EPS_2D, p0 * q0 + p1 * q1 + p2 * q2, q0 * q0 + q1 * q1 + q2 * q2 + EPS_2D
    determinant = xx * yy - xy * xy
    if determinant <= 0.0:
        return False, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    inverse = 1.0 / determinant
    reach = math.log(opacity * (1.0 / ALPHA_THRESHOLD))
    return (
        True, kx * x + cx, ky * y + cy, yy * inverse, -xy * inverse, xx * inverse, z, math.sqrt(2.0 * reach * xx),
        math.sqrt(2.0 * reach * yy), reach,
    )  # fmt: skip


@inline
def project_gradient(
    mean: tuple, quat: tuple, scale: tuple, rotation: Matrix, translation: tuple, pinhole: tuple,
    width: int, height: int, g_centre: tuple, g_conic: tuple, g_depth: float,
) -> tuple[tuple, tuple, tuple, Matrix, tuple, tuple]:  # fmt: skip
    """Vector-Jacobian product of `project`: gradients of mean, quat, scale, rotation, translation and pinhole.

    `g_centre` is that of (x, y), `g_conic` that of (a, b, c).
    """
    (g_x, g_y), (g_a, g_b, g_c) = g_centre, g_conic
    x, y, z = _camera_space(mean, rotation, translation)
    qw, qx, qy, qz, inverse_norm = _unit_quaternion(quat)
    turn = _rotation(qw, qx, qy, qz)
    local = _scaled_columns(turn, scale)
    axes = _product(rotation, local)
    fx, fy, cx, cy = pinhole
    inverse_z = 1.0 / z
    slope_x, slope_y = x * inverse_z, y * inverse_z
    u, free_u = _held_slope(slope_x, fx, cx, width)
    v, free_v = _held_slope(slope_y, fy, cy, height)
    d0, d1, d2 = axes[0] - u * axes[6], axes[1] - u * axes[7], axes[2] - u * axes[8]
    e0, e1, e2 = axes[3] - v * axes[6], axes[4] - v * axes[7], axes[5] - v * axes[8]
    kx, ky = fx * inverse_z, fy * inverse_z
    xx = kx * kx * (d0 * d0 + d1 * d1 + d2 * d2) + EPS_2D
    xy = kx * ky * (d0 * e0 + d1 * e1 + d2 * e2)
    yy = ky * ky * (e0 * e0 + e1 * e1 + e2 * e2) + EPS_2D
    inverse = 1.0 / (xx * yy - xy * xy)
    a, b, c = yy * inverse, -xy * inverse, xx * inverse
    # covariance: -Q G Q, with the off-diagonal gradient shared by both entries
    h_xx = -(a * a * g_a + a * b * g_b + b * b * g_c)
    h_xy = -(2 * a * b * g_a + (a * c + b * b) * g_b + 2 * b * c * g_c)
    h_yy = -(b * b * g_a + b * c * g_b + c * c * g_c)
    # rows p = kx d and q = ky e of J @ axes
    w_xx, w_xy, w_yx, w_yy = 2 * h_xx * kx, h_xy * ky, h_xy * kx, 2 * h_yy * ky
    m0, m1, m2 = w_xx * d0 + w_xy * e0, w_xx * d1 + w_xy * e1, w_xx * d2 + w_xy * e2
    n0, n1, n2 = w_yy * e0 + w_yx * d0, w_yy * e1 + w_yx * d1, w_yy * e2 + w_yx * d2
    g_axes = (
        kx * m0, kx * m1, kx * m2,
        ky * n0, ky * n1, ky * n2,
        -kx * u * m0 - ky * v * n0, -kx * u * m1 - ky * v * n1, -kx * u * m2 - ky * v * n2,
    )  # fmt: skip
    g_kx, g_ky = m0 * d0 + m1 * d1 + m2 * d2, n0 * e0 + n1 * e1 + n2 * e2
    g_u = -kx * (m0 * axes[6] + m1 * axes[7] + m2 * axes[8])
    g_v = -ky * (n0 * axes[6] + n1 * axes[7] + n2 * axes[8])
    # centre (fx x/z + cx, fy y/z + cy), depth, and k = f/z
    t_x, t_y = g_x * kx, g_y * ky
    t_z = g_depth - (g_x * kx * x + g_y * ky * y + g_kx * kx + g_ky * ky) * inverse_z
    g_fx, g_fy, g_cx, g_cy = g_x * slope_x + g_kx * inverse_z, g_y * slope_y + g_ky * inverse_z, g_x, g_y
    if free_u:
        t_x, t_z = t_x + g_u * inverse_z, t_z - g_u * slope_x * inverse_z
    else:  # the limit is a function of the intrinsics alone
        g_fx, g_cx = g_fx - g_u * u / fx, g_cx - g_u / fx
    if free_v:
        t_y, t_z = t_y + g_v * inverse_z, t_z - g_v * slope_y * inverse_z
    else:
        g_fy, g_cy = g_fy - g_v * v / fy, g_cy - g_v / fy
    back = _transpose(rotation)
    g_mean = _camera_space((t_x, t_y, t_z), back, (0.0, 0.0, 0.0))
    outer = (
        t_x * mean[0], t_x * mean[1], t_x * mean[2],
        t_y * mean[0], t_y * mean[1], t_y * mean[2],
        t_z * mean[0], t_z * mean[1], t_z * mean[2],
    )  # fmt: skip
    w = _product(g_axes, _transpose(local))
    g_rotation = (
        w[0] + outer[0], w[1] + outer[1], w[2] + outer[2], w[3] + outer[3], w[4] + outer[4], w[5] + outer[5],
        w[6] + outer[6], w[7] + outer[7], w[8] + outer[8],
    )  # fmt: skip
    g_local = _product(back, g_axes)
    g_scale = (
        g_local[0] * turn[0] + g_local[3] * turn[3] + g_local[6] * turn[6],
        g_local[1] * turn[1] + g_local[4] * turn[4] + g_local[7] * turn[7],
        g_local[2] * turn[2] + g_local[5] * turn[5] + g_local[8] * turn[8],
    )
    r0, r1, r2, r3 = _quaternion_gradient(qw, qx, qy, qz, _scaled_columns(g_local, scale))
    along = r0 * qw + r1 * qx + r2 * qy + r3 * qz
    g_quat = (
        (r0 - along * qw) * inverse_norm, (r1 - along * qx) * inverse_norm,
        (r2 - along * qy) * inverse_norm, (r3 - along * qz) * inverse_norm,
    )  # fmt: skip
    return g_mean, g_quat, g_scale, g_rotation, (t_x, t_y, t_z), (g_fx, g_fy, g_cx, g_cy)
