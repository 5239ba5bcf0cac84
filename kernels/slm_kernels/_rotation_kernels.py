"""The kernels of `qk_norm_rope`: forward (`_turn`) and backward (`_turn_back`) for queries or keys, and one kernel each for both.

What is computed stands in `qk_norm_rope`'s text.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from slm_kernels._triton import f32, tl, triton

# Tiles are (TOKENS, HEADS, numbers). Whatever lacks one of the three is loaded without it and expanded afterwards: as a
# tile with a 1 in that place, each thread would load it once for every number that it holds along it.


@triton.jit
def _places(first, N, T, heads, i_head, HEADS: tl.constexpr, TOKENS: tl.constexpr):
    """Batch and position of TOKENS tokens from ``first`` on (vectors), HEADS heads from ``i_head`` on; which exist."""
    i_n = first + tl.arange(0, TOKENS).to(tl.int64)
    i_h = i_head + tl.arange(0, HEADS)
    return i_n, i_h, (i_n < N)[:, None, None] & (i_h < heads)[None, :, None]


@triton.jit
def _columns(half, INTERLEAVED: tl.constexpr, HALF: tl.constexpr):
    """The number of each pair and where its two stand in a head."""
    i_r = tl.arange(0, HALF)
    if INTERLEAVED:
        return i_r, 2 * i_r, 2 * i_r + 1
    return i_r, i_r, i_r + half


@triton.jit
def _angles(cos_ptr, sin_ptr, i_n, i_r, cos_sb, N, T, half):
    """Cosines and sines, (TOKENS, 1, HALF)."""
    at = (i_n // T * cos_sb + i_n % T * half)[:, None] + i_r[None, :]
    mask = (i_n < N)[:, None] & (i_r < half)[None, :]
    cos = tl.load(cos_ptr + at, mask=mask, other=0.0)
    sin = tl.load(sin_ptr + at, mask=mask, other=0.0)
    return cos[:, None, :], sin[:, None, :]


@triton.jit
def _gains(w_ptr, i_h, columns, there, w_sh, offset):
    """Gains of some columns, (1, HEADS, columns)."""
    w = tl.load(w_ptr + i_h[:, None] * w_sh + columns[None, :], mask=there, other=0.0)
    return (w.to(tl.float32) + f32(offset))[None]


@triton.jit
def _loaded(
    p_x, c1, c2, c3, mask, mask3, K, eps, NORM: tl.constexpr, REST: tl.constexpr
):  # fmt: skip
    """Both of each pair and the rest of each head, normalised if NORM, and what they were multiplied by. Without a rest, the third is of no use."""
    x1 = tl.load(p_x + c1[None, None, :], mask=mask, other=0.0).to(tl.float32)
    x2 = tl.load(p_x + c2[None, None, :], mask=mask, other=0.0).to(tl.float32)
    squares = tl.sum(x1 * x1 + x2 * x2, 2, keep_dims=True)
    x3 = x1
    if REST:
        x3 = tl.load(p_x + c3[None, None, :], mask=mask3, other=0.0).to(tl.float32)
        squares += tl.sum(x3 * x3, 2, keep_dims=True)
    r = squares
    if NORM:
        r = 1 / tl.sqrt(squares / K + f32(eps))
        x1, x2, x3 = x1 * r, x2 * r, x3 * r
    return x1, x2, x3, r


@triton.jit
def _unturned(p_dy, c1, c2, c3, mask, mask3, cos, sin, REST: tl.constexpr):
    """Gradients of what was rotated. Without a rest, the third is of no use."""
    dy1 = tl.load(p_dy + c1[None, None, :], mask=mask, other=0.0).to(tl.float32)
    dy2 = tl.load(p_dy + c2[None, None, :], mask=mask, other=0.0).to(tl.float32)
    da1, da2 = dy1 * cos + dy2 * sin, dy2 * cos - dy1 * sin
    da3 = da1
    if REST:
        da3 = tl.load(p_dy + c3[None, None, :], mask=mask3, other=0.0).to(tl.float32)
    return da1, da2, da3


@triton.jit
def _turn(
    x_ptr,
    w_ptr,
    y_ptr,
    cos_ptr,
    sin_ptr,
    sb,
    st,
    sh,
    cos_sb,
    w_sh,
    first,
    i_head,
    heads,
    N,
    T,
    K,
    half,
    eps,
    offset,
    NORM: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
):
    """Forward for queries or keys. REST is 0 where all of a head is turned."""
    i_n, i_h, there = _places(first, N, T, heads, i_head, HEADS, TOKENS)
    i_r, c1, c2 = _columns(half, INTERLEAVED, HALF)
    mask, real = there & (i_r < half)[None, None, :], i_h[:, None] < heads
    p_x = x_ptr + (i_n // T * sb + i_n % T * st)[:, None, None] + (i_h * sh)[None, :, None]
    p_y = y_ptr + (i_n * heads)[:, None, None] * K + (i_h * K)[None, :, None]
    c3 = 2 * half + tl.arange(0, REST if REST else 1)
    mask3 = there & (c3 < K)[None, None, :]
    a1, a2, a3, _ = _loaded(p_x, c1, c2, c3, mask, mask3, K, eps, NORM, REST)
    if HAS_WEIGHT:
        a1 *= _gains(w_ptr, i_h, c1, real & (i_r < half)[None, :], w_sh, offset)
        a2 *= _gains(w_ptr, i_h, c2, real & (i_r < half)[None, :], w_sh, offset)
        if REST:
            a3 *= _gains(w_ptr, i_h, c3, real & (c3 < K)[None, :], w_sh, offset)
    cos, sin = _angles(cos_ptr, sin_ptr, i_n, i_r, cos_sb, N, T, half)
    tl.store(p_y + c1[None, None, :], a1 * cos - a2 * sin, mask=mask)
    tl.store(p_y + c2[None, None, :], a2 * cos + a1 * sin, mask=mask)
    if REST:
        tl.store(p_y + c3[None, None, :], a3, mask=mask3)


@triton.jit
def forward_kernel(
    q_ptr,
    k_ptr,
    qw_ptr,
    kw_ptr,
    qy_ptr,
    ky_ptr,
    cos_ptr,
    sin_ptr,
    q_sb,
    q_st,
    q_sh,
    k_sb,
    k_st,
    k_sh,
    cos_sb,
    qw_sh,
    kw_sh,
    H,
    G,
    N,
    T,
    K,
    half,
    eps,
    offset,
    NORM: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
):
    """Programs (tokens, heads): blocks of query heads first, then of key heads."""
    first = tl.program_id(0).to(tl.int64) * TOKENS
    i_head = tl.program_id(1) * HEADS
    q_end = tl.cdiv(H, HEADS) * HEADS
    if i_head < q_end:
        _turn(
            q_ptr, qw_ptr, qy_ptr, cos_ptr, sin_ptr, q_sb, q_st, q_sh, cos_sb, qw_sh, first, i_head, H, N, T, K, half,
            eps, offset, NORM, HAS_WEIGHT, INTERLEAVED, HEADS, TOKENS, HALF, REST,
        )  # fmt: skip
    else:
        _turn(
            k_ptr, kw_ptr, ky_ptr, cos_ptr, sin_ptr, k_sb, k_st, k_sh, cos_sb, kw_sh, first, i_head - q_end, G, N, T, K,
            half, eps, offset, NORM, HAS_WEIGHT, INTERLEAVED, HEADS, TOKENS, HALF, REST,
        )  # fmt: skip


@triton.jit
def _turn_back(
    dy_ptr,
    x_ptr,
    w_ptr,
    dx_ptr,
    dw_ptr,
    cos_ptr,
    sin_ptr,
    dy_sb,
    dy_st,
    dy_sh,
    sb,
    st,
    sh,
    cos_sb,
    w_sh,
    program,
    tiles,
    i_head,
    heads,
    N,
    T,
    K,
    half,
    eps,
    offset,
    NORM: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
):
    """Backward for queries or keys: ``tiles`` tiles of TOKENS tokens, one after the other."""
    i_r, c1, c2 = _columns(half, INTERLEAVED, HALF)
    c3 = 2 * half + tl.arange(0, REST if REST else 1)
    _, i_h, _ = _places(0, N, T, heads, i_head, HEADS, TOKENS)
    in_w, in_w3 = (i_h[:, None] < heads) & (i_r < half)[None, :], (i_h[:, None] < heads) & (c3 < K)[None, :]
    if HAS_WEIGHT:
        w1 = _gains(w_ptr, i_h, c1, in_w, w_sh, offset)
        w2 = _gains(w_ptr, i_h, c2, in_w, w_sh, offset)
        dw1 = tl.zeros((TOKENS, HEADS, HALF), tl.float32)
        dw2 = tl.zeros((TOKENS, HEADS, HALF), tl.float32)
        if REST:
            w3 = _gains(w_ptr, i_h, c3, in_w3, w_sh, offset)
            dw3 = tl.zeros((TOKENS, HEADS, REST), tl.float32)
    for tile in range(tiles):
        i_n, i_h, there = _places((program * tiles + tile) * TOKENS, N, T, heads, i_head, HEADS, TOKENS)
        mask = there & (i_r < half)[None, None, :]
        mask3 = there & (c3 < K)[None, None, :]
        p_dy = dy_ptr + (i_n // T * dy_sb + i_n % T * dy_st)[:, None, None] + (i_h * dy_sh)[None, :, None]
        p_dx = dx_ptr + (i_n * heads)[:, None, None] * K + (i_h * K)[None, :, None]
        cos, sin = _angles(cos_ptr, sin_ptr, i_n, i_r, cos_sb, N, T, half)
        da1, da2, da3 = _unturned(p_dy, c1, c2, c3, mask, mask3, cos, sin, REST)
        if NORM:
            p_x = x_ptr + (i_n // T * sb + i_n % T * st)[:, None, None] + (i_h * sh)[None, :, None]
            n1, n2, n3, r = _loaded(p_x, c1, c2, c3, mask, mask3, K, eps, NORM, REST)
            if HAS_WEIGHT:
                dw1 += da1 * n1
                dw2 += da2 * n2
                da1, da2 = da1 * w1, da2 * w2
            mean = tl.sum(da1 * n1 + da2 * n2, 2, keep_dims=True)
            if REST:
                if HAS_WEIGHT:
                    dw3 += da3 * n3
                    da3 *= w3
                mean += tl.sum(da3 * n3, 2, keep_dims=True)
            mean /= K
            da1, da2 = r * (da1 - n1 * mean), r * (da2 - n2 * mean)
            if REST:
                da3 = r * (da3 - n3 * mean)
        tl.store(p_dx + c1[None, None, :], da1, mask=mask)
        tl.store(p_dx + c2[None, None, :], da2, mask=mask)
        if REST:
            tl.store(p_dx + c3[None, None, :], da3, mask=mask3)
    if HAS_WEIGHT:
        p_dw = dw_ptr + (program * heads + i_h)[:, None] * K
        tl.store(p_dw + c1[None, :], tl.sum(dw1, 0), mask=in_w)
        tl.store(p_dw + c2[None, :], tl.sum(dw2, 0), mask=in_w)
        if REST:
            tl.store(p_dw + c3[None, :], tl.sum(dw3, 0), mask=in_w3)


@triton.jit
def backward_kernel(
    qdy_ptr,
    kdy_ptr,
    q_ptr,
    k_ptr,
    qw_ptr,
    kw_ptr,
    dq_ptr,
    dk_ptr,
    dqw_ptr,
    dkw_ptr,
    cos_ptr,
    sin_ptr,
    qdy_sb,
    qdy_st,
    qdy_sh,
    kdy_sb,
    kdy_st,
    kdy_sh,
    q_sb,
    q_st,
    q_sh,
    k_sb,
    k_st,
    k_sh,
    cos_sb,
    qw_sh,
    kw_sh,
    H,
    G,
    N,
    T,
    K,
    half,
    tiles,
    eps,
    offset,
    NORM: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    i_head = tl.program_id(1) * HEADS
    q_end = tl.cdiv(H, HEADS) * HEADS
    if i_head < q_end:
        _turn_back(
            qdy_ptr, q_ptr, qw_ptr, dq_ptr, dqw_ptr, cos_ptr, sin_ptr, qdy_sb, qdy_st, qdy_sh, q_sb, q_st, q_sh, cos_sb,
            qw_sh, program, tiles, i_head, H, N, T, K, half, eps, offset, NORM, HAS_WEIGHT, INTERLEAVED, HEADS, TOKENS,
            HALF, REST,
        )  # fmt: skip
    else:
        _turn_back(
            kdy_ptr, k_ptr, kw_ptr, dk_ptr, dkw_ptr, cos_ptr, sin_ptr, kdy_sb, kdy_st, kdy_sh, k_sb, k_st, k_sh, cos_sb,
            kw_sh, program, tiles, i_head - q_end, G, N, T, K, half, eps, offset, NORM, HAS_WEIGHT, INTERLEAVED, HEADS,
            TOKENS, HALF, REST,
        )  # fmt: skip
