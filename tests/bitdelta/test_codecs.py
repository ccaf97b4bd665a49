"""Codecs give back what they represent, for any shape and any bits."""

import contextlib
import math
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_grpo_ext.bitdelta.codecs import Encoded, add_delta, decode, encoded_signs, layout
from trl_grpo_ext.bitdelta.errors import DamagedDeltaError
from trl_grpo_ext.bitdelta.narrow import may_add_narrow
from trl_grpo_ext.bitdelta.packing import SignPacker, SignUnpacker, unpack_signs
from trl_grpo_ext.bitdelta.signs import sign_code
from trl_grpo_ext.bitdelta.sparse import SparseCode, sparse_code, sparse_decode

SEEDS = st.integers(0, 2**31)
SIDES = st.integers(1, 40)
DTYPES = st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.int8, torch.float64])
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits_of(tensor):
    return tensor.view(INTEGERS[tensor.element_size()])


def normal(shape, seed, size=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size


def packed_signs(values):
    out = torch.empty(len(values), math.ceil(values.shape[1] / 8), dtype=torch.uint8)
    SignPacker(*values.shape).pack(values, out)
    return out


@settings(max_examples=60, deadline=None)
@given(SIDES, st.integers(1, 70), SEEDS)
def test_bits_survive_packing(rows, columns, seed):
    values = normal((rows, columns), seed)
    packed = packed_signs(values)
    wanted = torch.where(values >= 0, 1.0, -1.0)
    assert torch.equal(SignUnpacker(rows + 1, columns).unpack(packed), wanted)
    assert torch.equal(unpack_signs(packed, columns), wanted)


def test_bits_are_little_endian():
    assert packed_signs(torch.tensor([[1.0, -1.0, -1.0, 0.0] + [-1.0] * 5 + [1.0]])).tolist() == [[9, 2]]


@settings(max_examples=60, deadline=None)
@given(
    SIDES,
    st.integers(1, 70),
    st.integers(1, 4),
    st.sampled_from(["matrix", "row", "group"]),
    st.sampled_from([8, 16, 128]),
    SEEDS,
)
def test_sign_codes_decode_to_what_they_say(rows, columns, masks, scale, group, seed):
    """Against the definition: base + sum_k scale_k sign_k, and against the error that `share` promises."""
    base, delta = normal((rows, columns), seed), normal((rows, columns), seed + 1)
    code = sign_code(base, base + delta, masks, scale, group if scale == "group" else None)
    item = encoded_signs(code, scale)
    wanted = layout("sign", item.params, [rows, columns], torch.float32)
    assert {name: (part.dtype, list(part.shape)) for name, part in item.parts.items()} == wanted
    coded = torch.zeros(rows, columns)
    for mask in range(masks):
        scales = code.scales[mask].float()
        if scale == "group":
            scales = scales.repeat_interleave(code.group, 1)[:, :columns]
        coded += unpack_signs(code.signs[mask], columns) * (scales[:, None] if scales.ndim == 1 else scales)
    decoded = decode(item, base, [rows, columns], torch.float32, torch.float32)
    torch.testing.assert_close(decoded, base + coded, rtol=1e-6, atol=1e-6)
    left = float(((base + delta).sub(base) - coded).double().square().sum() / delta.double().square().sum())
    # Scales of rows and groups are rounded to bfloat16, at most by 1 / 256.
    assert math.isclose(1 - left, code.share, abs_tol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    SIDES,
    st.sampled_from([8, 40, 70, 384]),
    st.sampled_from([None, 8, 16, 128]),
    st.integers(1, 2),
    st.booleans(),
    SEEDS,
)
def test_adding_in_bfloat16_is_adding_in_float32_and_rounding_once(rows, columns, group, masks, negative, seed):
    """Bit for bit, also with the negative scales that a fit to inputs may give."""
    base = normal((rows, columns), seed, 0.02).bfloat16()
    tuned = base + normal((rows, columns), seed + 1, 1e-3).bfloat16()
    code = sign_code(base, tuned, masks, "group" if group else "row", group)
    if negative:
        code.scales[0, 0] = -code.scales[0, 0]
    item = encoded_signs(code, "group" if group else "row")
    out = torch.empty_like(base)
    assert may_add_narrow(code, base, out) == (masks == 1 and columns % 8 == 0 and columns % code.group == 0)
    wide = (base.float() + code.tile(0, rows)).bfloat16()
    assert torch.equal(bits_of(add_delta(item, base, out)), bits_of(wide))


@settings(max_examples=30, deadline=None)
@given(SIDES, st.integers(1, 70), SEEDS)
def test_bfloat16_deltas_have_the_signs_and_sizes_of_float32(rows, columns, seed):
    base = normal((rows, columns), seed, 0.02).bfloat16()
    tuned = (base.float() + normal((rows, columns), seed + 1, 1e-2)).bfloat16()
    narrow, wide = (sign_code(*pair, 1, "row", None) for pair in ((base, tuned), (base.float(), tuned.float())))
    assert torch.equal(narrow.signs, wide.signs)
    torch.testing.assert_close(narrow.scales, wide.scales, rtol=1e-2, atol=0)
    assert math.isclose(narrow.share, wide.share, abs_tol=5e-3)


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_every_further_mask_explains_more(seed):
    base = torch.zeros(16, 40)
    shares = [sign_code(base, normal((16, 40), seed), masks, "row", None).share for masks in (1, 2, 3, 4)]
    assert shares == sorted(shares) and shares[3] > 0.93


@settings(max_examples=120, deadline=None)
@given(st.integers(1, 400), DTYPES, st.sampled_from([0.0, 0.02, 0.4, 1.0]), SEEDS)
def test_sparse_codes_are_exact_for_any_bits(numel, dtype, share, seed):
    """Also NaN, infinities, minus zero and subnormal numbers: every bit pattern comes back."""
    generator = torch.Generator().manual_seed(seed)
    width = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(0, 256, (2, numel * width), dtype=torch.uint8, generator=generator)
    base, other = raw[0].view(dtype), raw[1].view(dtype)
    chosen = torch.rand(numel, generator=generator) < share
    tuned = base.clone()
    bits_of(tuned)[chosen] = bits_of(other)[chosen]
    code = sparse_code(base, tuned)
    assert torch.equal(bits_of(sparse_decode(code, base)), bits_of(tuned))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_pattern_to_every_neighbour(dtype):
    base = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    for shift in (1, -1, 255, 2**14):
        tuned = base.roll(shift)
        assert torch.equal(bits_of(sparse_decode(sparse_code(base, tuned), base)), bits_of(tuned))


def test_blocks_join(monkeypatch):
    monkeypatch.setattr("trl_grpo_ext.bitdelta.sparse.BLOCK", 64)
    base = normal((1000,), 0).bfloat16()
    tuned = (base.float() + normal((1000,), 1, 1e-2)).bfloat16()
    code = sparse_code(base, tuned)
    assert code.lengths.shape == (16, 4)
    assert torch.equal(sparse_decode(code, base), tuned)


def rl_like(density, numel=1 << 20):
    """A bf16 checkpoint and what small, equal steps in fp32 make of it; the step is chosen for the density."""
    master = normal((numel,), 0, 0.02)
    base = master.bfloat16()
    steps = torch.empty_like(master).uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
    low, high = 1e-8, 1e-2
    for _ in range(40):
        size = math.sqrt(low * high)
        tuned = (base.float() + steps * size).bfloat16()
        share = float((tuned != base).float().mean())
        low, high = (size, high) if share < density else (low, size)
    return base, tuned, share


@pytest.mark.parametrize(("density", "limit"), [(0.33, 2.4), (0.3, 1.3), (0.05, 0.6)])
def test_lossless_size_of_rl_like_deltas(density, limit):
    base, tuned, share = rl_like(density)
    assert math.isclose(share, density, abs_tol=0.01)
    bits = 8 * sparse_code(base, tuned).nbytes / base.numel()
    assert bits <= limit, bits


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_sparse_streams_are_refused_or_harmless(data):
    """Any change of lengths or of a byte: an error of ours, or a tensor of the base's size. Never a crash."""
    base = normal((300,), 3).bfloat16()
    tuned = (base.float() + normal((300,), 4, 1e-2)).bfloat16()
    code = sparse_code(base, tuned)
    lengths, content = code.lengths.clone(), code.data.clone()
    if data.draw(st.booleans()):
        lengths[0, data.draw(st.integers(0, 3))] = data.draw(st.integers(-(2**62), 2**62))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    with contextlib.suppress(DamagedDeltaError):
        assert sparse_decode(SparseCode(content, lengths), base).shape == base.shape


def test_a_deflate_bomb_gives_out_no_more_than_the_base():
    import zlib

    base = torch.zeros(800, dtype=torch.bfloat16)
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = coder.compress(bytes(50_000_000)) + coder.flush()
    data = torch.frombuffer(bytearray(bomb), dtype=torch.uint8)
    lengths = torch.tensor([[0, len(bomb), 0, 0]])
    tracemalloc.start()
    with pytest.raises(DamagedDeltaError, match="instead of 100"):
        sparse_decode(SparseCode(data, lengths), base)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize(
    ("index", "message"), [([0, 9], "outside"), ([1, 1], "ascend"), ([-1, 2], "outside"), ([2, 1], "ascend")]
)
def test_rows_out_of_range_are_refused(index, message):
    item = Encoded("rows", {"index": torch.tensor(index), "value": torch.zeros(2, 3)})
    with pytest.raises(DamagedDeltaError, match=message):
        decode(item, torch.zeros(4, 3), [4, 3], torch.float32, torch.float32)


def test_rows_past_the_end_must_all_be_there():
    item = Encoded("rows", {"index": torch.tensor([0, 4]), "value": torch.ones(2, 3)})
    with pytest.raises(DamagedDeltaError, match="past the base's end"):
        decode(item, torch.zeros(4, 3), [6, 3], torch.float32, torch.float32)


def test_low_rank_and_residual_add_up():
    base, left, right = normal((12, 20), 0), normal((12, 3), 1).bfloat16(), normal((3, 20), 2).bfloat16()
    code = encoded_signs(sign_code(base, base + 1, 1, "row", None), "row")
    low = Encoded("low_rank", {"a": left, "b": right}, {"rank": 3})
    both = Encoded("sign_low_rank", code.parts | low.parts, code.params | low.params)
    product = left.float() @ right.float()
    torch.testing.assert_close(decode(low, base, [12, 20], torch.float32, torch.float32), base + product)
    torch.testing.assert_close(decode(both, base, [12, 20], torch.float32, torch.float32), base + 1 + product)
