import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis_fixtures import random_crosscoder
from tunediff.dictionaries import sparse
from tunediff.dictionaries.sparse import SparseCode
from tunediff.latents import scaling
from tunediff.latents.scaling import (
    BASE_DIRECTION,
    ScalingSums,
    betas,
    bootstrap_nu,
    column_quantile,
    direction_terms,
    document_block,
    effective_blocks,
    expanded_tail,
    grouped_projections,
    nu,
    nu_standard_error,
    projections,
    random_directions,
    scaling_directions,
    shuffled_index,
    whole_projections,
)
from tunediff.latents.table import TARGETS
from tunediff.statistics import resample_weights

BLOCKS = 5


@pytest.fixture(params=["sparse", "dense"])
def path(request, monkeypatch):
    """Force one way of adding sums, whatever the share of nonzeros."""
    monkeypatch.setitem(sparse.DENSE_FROM, "cpu", {"sparse": 2.0, "dense": -1.0}[request.param])
    return request.param


def data(n=300, seed=0, d_model=6, dict_size=20):
    """Return activations, a crosscoder, its code, float64 reconstruction and the block of each token."""
    crosscoder = random_crosscoder(d_model, dict_size, seed)
    g = torch.Generator().manual_seed(seed + 1)
    h = torch.randn(n, 2, d_model, generator=g, dtype=torch.float64)
    h[:, 1] += 0.5 * h[:, 0]
    code = crosscoder.encode(h)
    dense = code.to_dense(dict_size).double()
    hat = torch.einsum("nf,fmd->nmd", dense, crosscoder.decoder_weight.double()) + crosscoder.decoder_bias.double()
    block = torch.from_numpy(document_block(np.arange(n) // 3, BLOCKS))
    return h, crosscoder, code, hat, block


def sums_of(h, crosscoder, code, hat, block, directions=None):
    directions = scaling_directions(crosscoder).double() if directions is None else directions
    sums = ScalingSums.zeros(BLOCKS, crosscoder.dict_size, directions.shape[1])
    sums.add(code, torch.cat([h, hat], dim=1), directions, block)
    return sums


def least_squares(h, crosscoder, code, target, m, j, u, tokens=slice(None)):
    """β of y ~ f_j u by numpy's lstsq on the targets as section 4 writes them."""
    f = code.to_dense(crosscoder.dict_size).double().numpy()[tokens]
    decoder, bias = crosscoder.decoder_weight.double().numpy(), crosscoder.decoder_bias.double().numpy()
    y = h[tokens, m].numpy()
    others = np.delete(np.arange(crosscoder.dict_size), j)
    if target == "activation_no_bias":
        y = y - bias[m]
    elif target == "reconstruction":
        y = f @ decoder[:, m] + bias[m]
    elif target == "error":  # the leave-one-out residual
        y = y - f[:, others] @ decoder[others, m] - bias[m]
    design = np.outer(f[:, j], u).reshape(-1, 1)
    return np.linalg.lstsq(design, y.reshape(-1), rcond=None)[0][0]


@pytest.mark.parametrize("direction", [0, 1])
@pytest.mark.parametrize("target", TARGETS)
def test_betas_are_the_least_squares_scales(target, direction, path):
    h, crosscoder, code, hat, block = data()
    sums = sums_of(h, crosscoder, code, hat, block)
    ours = betas(sums.total(), direction_terms(crosscoder), direction)[target][0]
    u = crosscoder.decoder_weight.double().numpy()[:, 1 - direction]
    expected = [
        [least_squares(h, crosscoder, code, target, m, j, u[j]) for m in range(2)] for j in range(crosscoder.dict_size)
    ]
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-10)


def test_float32_data_stays_within_a_millionth(path):
    h, crosscoder, code, hat, block = data(2000)
    exact = betas(sums_of(h, crosscoder, code, hat, block).total(), direction_terms(crosscoder))
    rows = h.float()
    single = sums_of(rows, crosscoder, code, crosscoder.decode(code), block, scaling_directions(crosscoder))
    for target, beta in betas(single.total(), direction_terms(crosscoder)).items():
        torch.testing.assert_close(beta, exact[target], rtol=1e-6, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(0, 2**31))
def test_projections_for_any_number_of_nonzeros_per_token(counts, seed):
    g = torch.Generator().manual_seed(seed)
    counts = torch.tensor(counts)
    token = torch.repeat_interleave(torch.arange(len(counts)), counts)
    latent = torch.randint(0, 11, (len(token),), generator=g)
    code = SparseCode(token, latent, torch.ones(len(token)), len(counts))
    rows = torch.randn(len(counts), 4, 3, generator=g, dtype=torch.float64)
    directions = torch.randn(11, 2, 3, generator=g, dtype=torch.float64)
    expected = torch.einsum("ztd,zud->zut", rows[token], directions[latent])
    for ours in (projections, grouped_projections, whole_projections):  # on a CPU, a GPU
        torch.testing.assert_close(ours(code, rows, directions), expected)


def test_many_groups_give_the_same_projections(monkeypatch):
    h, crosscoder, code, hat, block = data()
    whole = sums_of(h, crosscoder, code, hat, block).table
    monkeypatch.setattr("tunediff.latents.scaling._PRODUCTS", 200)
    monkeypatch.setitem(sparse.DENSE_FROM, "cpu", 2.0)
    torch.testing.assert_close(sums_of(h, crosscoder, code, hat, block).table, whole)


@pytest.mark.parametrize("n_directions", [1, 2, 4])
@pytest.mark.parametrize(("entries", "summed"), [(1 << 27, 1 << 19), (20 * 7, 4 * 6 * 3)])
def test_dense_and_sparse_sums_are_those_of_the_definition(monkeypatch, n_directions, entries, summed):
    """Also in pieces of 7 tokens and 3 latents; a token, a latent and a block may have nothing."""
    monkeypatch.setattr(sparse, "DENSE_ENTRIES", entries)
    monkeypatch.setitem(scaling._SUMMED_ELEMENTS, "cpu", summed)
    h, crosscoder, _, _, block = data(n=120)
    crosscoder.threshold[4] = 1e9
    h[5] = 0
    crosscoder.encoder_bias.clamp_(max=0)
    code = crosscoder.encode(h)
    hat = crosscoder.decode(code).double()
    block = torch.where(block == 2, 3, block)
    directions = torch.randn(20, n_directions, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert 0 in torch.bincount(code.token, minlength=120)
    f = code.to_dense(20).double()
    dots = torch.einsum("nyd,jud->njuy", torch.cat([h, hat], dim=1), directions).flatten(2)
    terms = torch.cat([(f > 0).double()[..., None], f[..., None], f[..., None] ** 2, f[..., None] * dots], dim=2)
    expected = torch.stack([terms[block == b].sum(0) for b in range(BLOCKS)])
    for share in (2.0, -1.0):
        monkeypatch.setitem(sparse.DENSE_FROM, "cpu", share)
        ours = sums_of(h, crosscoder, code, hat, block, directions)
        torch.testing.assert_close(ours.table, expected, rtol=1e-12, atol=1e-12)


def test_dense_sums_in_float32_stay_within_a_millionth_of_sparse_ones(monkeypatch):
    """As in a residual stream, the mean is far larger than the spread."""
    h, crosscoder, _, _, block = data(2000)
    rows, directions = (h + 30).float(), scaling_directions(crosscoder)
    code = crosscoder.encode(h.float())
    tables = []
    for share in (2.0, -1.0):
        monkeypatch.setitem(sparse.DENSE_FROM, "cpu", share)
        tables.append(sums_of(rows, crosscoder, code, crosscoder.decode(code), block, directions).table)
    difference, size = (tables[0] - tables[1]).abs().amax((0, 1)), tables[0].abs().amax((0, 1))
    assert difference[0] == 0 and (difference[3:] > 0).all()  # two ways
    assert (difference <= 1e-6 * size).all()


@pytest.mark.parametrize(("share", "way"), [(0.0625, "_add_dense"), (0.0588, "_add_sparse")])
def test_the_share_of_nonzeros_decides_the_way(monkeypatch, share, way):
    token = torch.arange(1000).repeat_interleave(2)
    code = SparseCode(token, torch.zeros_like(token), torch.ones(2000), 1000)
    dict_size = round(2 / share)
    asked = []
    for name in ("_add_dense", "_add_sparse"):
        monkeypatch.setattr(ScalingSums, name, lambda *_, name=name: asked.append(name))
    rows, directions = torch.zeros(1000, 2, 3), torch.zeros(dict_size, 2, 3)
    ScalingSums.zeros(1, dict_size).add(
        code, torch.cat([rows, rows], dim=1), directions, torch.zeros(1000, dtype=torch.int64)
    )
    assert asked == [way]


def test_blocks_add_up_and_batches_add():
    h, crosscoder, code, hat, block = data()
    whole = sums_of(h, crosscoder, code, hat, block)
    one = sums_of(h, crosscoder, code, hat, torch.zeros_like(block))
    torch.testing.assert_close(whole.total().table[0], one.table[0])
    parts = []
    for part in (slice(0, 100), slice(100, 300)):
        piece = crosscoder.encode(h[part])
        parts.append(sums_of(h[part], crosscoder, piece, hat[part], block[part]))
    torch.testing.assert_close(parts[0].table + parts[1].table, whole.table)
    for b in range(BLOCKS):
        assert torch.equal(whole.count[b], (code.to_dense(20)[block == b] > 0).sum(0).double())


def test_jackknife_is_the_spread_of_fits_without_each_block():
    h, crosscoder, code, hat, block = data()
    errors = nu_standard_error(sums_of(h, crosscoder, code, hat, block), direction_terms(crosscoder))
    u = crosscoder.decoder_weight.double().numpy()[:, 1]
    for target, j in (("error", 3), ("reconstruction", 7)):
        fits = []
        for b in range(BLOCKS):
            rest = (block != b).numpy()
            base, chat = (least_squares(h, crosscoder, code, target, m, j, u[j], rest) for m in range(2))
            fits.append(base / chat)
        jackknife = np.sqrt((len(fits) - 1) * np.var(fits))  # Efron & Stein 1981
        assert errors[target][j].item() == pytest.approx(jackknife, rel=1e-8)


def test_bootstrap_refits_resampled_blocks():
    h, crosscoder, code, hat, block = data()
    sums, terms = sums_of(h, crosscoder, code, hat, block), direction_terms(crosscoder)
    interval = bootstrap_nu(sums, terms, 200, seed=4)["error"]
    j, u = 3, crosscoder.decoder_weight.double().numpy()[3, 1]
    samples = []
    for counts in resample_weights(BLOCKS, 200, 4).astype(int):
        tokens = np.concatenate([np.tile(np.flatnonzero(block == b), c) for b, c in enumerate(counts)])
        base, chat = (least_squares(h, crosscoder, code, "error", m, j, u, tokens) for m in range(2))
        samples.append(base / chat)
    tail = float(expanded_tail(effective_blocks(sums), 0.95)[j])
    np.testing.assert_allclose([interval.low[j], interval.high[j]], np.quantile(samples, [tail, 1 - tail]), rtol=1e-8)


def test_the_tail_is_widened_for_few_blocks():
    """Closed form by hand: n = 10 equal blocks, t(9) at 2.5 % is -2.2622; Φ(-2.2622 · √(10/9)) = 0.00855."""
    table = torch.ones(10, 1, 11, dtype=torch.float64)
    n = effective_blocks(ScalingSums(table, 2))
    assert n.tolist() == pytest.approx([10])
    assert expanded_tail(n, 0.95).tolist() == pytest.approx([0.00855], abs=1e-5)
    assert expanded_tail(torch.tensor([1e7]), 0.95).tolist() == pytest.approx([0.025], abs=1e-5)
    assert torch.isnan(expanded_tail(torch.tensor([1.0]), 0.95)).all()


def test_a_latent_in_one_block_has_no_interval():
    h, crosscoder, code, hat, block = data()
    kept = (code.latent != 3) | (block[code.token] == 1)
    code = SparseCode(code.token[kept], code.latent[kept], code.value[kept], code.n_tokens)
    interval = bootstrap_nu(sums_of(h, crosscoder, code, hat, block), direction_terms(crosscoder), 50, 0)["error"]
    assert torch.isnan(interval.low[3]) and torch.isnan(interval.high[3])
    assert torch.isfinite(interval.low[2])


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 30), st.integers(0, 2**31))
def test_column_quantile_is_numpys(n, seed):
    rng = np.random.default_rng(seed)
    samples, share = rng.normal(size=(n, 4)), rng.uniform(size=4)
    samples[rng.uniform(size=samples.shape) < 0.2] = np.nan
    samples[0] = 0.5
    expected = [np.nanquantile(samples[:, j], share[j]) for j in range(4)]
    ours = column_quantile(torch.from_numpy(samples), torch.from_numpy(share))
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_bootstrap_slices_of_latents_agree(monkeypatch):
    h, crosscoder, code, hat, block = data()
    sums, terms = sums_of(h, crosscoder, code, hat, block), direction_terms(crosscoder)
    whole = bootstrap_nu(sums, terms, 50, seed=0)
    monkeypatch.setattr("tunediff.latents.scaling._RESAMPLED_ELEMENTS", 50 * 11 * 3)
    for target, interval in bootstrap_nu(sums, terms, 50, seed=0).items():
        torch.testing.assert_close(interval.low, whole[target].low)
        torch.testing.assert_close(interval.high, whole[target].high)


def test_a_latent_that_never_fires_has_no_nu():
    h, crosscoder, _, _, block = data()
    crosscoder.threshold[4] = 1e9
    code = crosscoder.encode(h)
    sums, terms = sums_of(h, crosscoder, code, crosscoder.decode(code).double(), block), direction_terms(crosscoder)
    assert torch.isnan(nu(betas(sums.total(), terms)["error"][0])[4])
    assert torch.isnan(nu_standard_error(sums, terms)["error"][4])
    assert torch.isnan(bootstrap_nu(sums, terms, 20, 0)["error"].low[4])


def test_planted_latents_have_the_nu_of_their_construction():
    """A chat-only direction has ν^ε = 0; one that base carries at 0.7 of the strength, unseen by d^base, has 0.7."""
    d_model, n = 8, 400
    g = torch.Generator().manual_seed(0)
    f = torch.rand(n, 2, generator=g, dtype=torch.float64) * (torch.rand(n, 2, generator=g) < 0.3)
    eye = torch.eye(d_model, dtype=torch.float64)
    h = torch.zeros(n, 2, d_model, dtype=torch.float64)
    h[:, 1] = f[:, :1] * eye[0] + f[:, 1:] * eye[1]
    h[:, 0] = 0.7 * f[:, 1:] * eye[1]
    crosscoder = random_crosscoder(d_model, 2)
    crosscoder.decoder_weight.zero_()
    crosscoder.decoder_weight[0, 1, 0] = 1
    crosscoder.decoder_weight[1, 1, 1] = 1  # shrunk: the base decoder is 0 although the base model has the direction
    crosscoder.decoder_bias.zero_()
    token, latent = f.nonzero(as_tuple=True)
    code = SparseCode(token, latent, f[token, latent], n)
    hat = torch.einsum("nf,fmd->nmd", f, crosscoder.decoder_weight.double())
    sums = sums_of(h, crosscoder, code, hat, torch.zeros(n, dtype=torch.int64))
    scales = betas(sums.total(), direction_terms(crosscoder))
    assert nu(scales["error"][0]).tolist() == pytest.approx([0, 0.7], abs=1e-6)
    assert nu(scales["activation"][0]).tolist() == pytest.approx([0, 0.7], abs=1e-6)
    assert nu(scales["reconstruction"][0]).tolist() == pytest.approx([0, 0], abs=1e-6)


def test_mirrored_nu_swaps_the_models():
    h, crosscoder, code, hat, block = data()
    swapped = random_crosscoder()
    for name in ("decoder_weight", "encoder_weight"):
        getattr(swapped, name).copy_(getattr(crosscoder, name).flip(1))
    swapped.decoder_bias.copy_(crosscoder.decoder_bias.flip(0))
    mirrored = betas(sums_of(h, crosscoder, code, hat, block).total(), direction_terms(crosscoder), BASE_DIRECTION)
    plain = betas(sums_of(h.flip(1), swapped, code, hat.flip(1), block).total(), direction_terms(swapped))
    for target in TARGETS:
        torch.testing.assert_close(nu(mirrored[target], mirrored=True), nu(plain[target]))


def test_controls_keep_norms_and_move_every_live_latent():
    directions = torch.randn(50, 6)
    drawn = random_directions(directions, seed=0)
    torch.testing.assert_close(drawn.norm(dim=1), directions.norm(dim=1))
    assert torch.cosine_similarity(drawn, directions).abs().mean() < 0.6
    alive = np.arange(50) % 3 > 0
    index = shuffled_index(alive, seed=0)
    assert (index[alive] != np.flatnonzero(alive)).all()
    assert sorted(index[alive]) == np.flatnonzero(alive).tolist()
    assert (index[~alive] == np.flatnonzero(~alive)).all()


def test_document_blocks_are_stable_and_even():
    # splitmix64 of states 0 and 1, published: 0xE220A8397B1DCDAF and 0x910A2DEC89025CC1
    assert document_block(np.arange(2, dtype=np.int32), 1 << 12).tolist() == [0xDAF, 0xCC1]
    counts = np.bincount(document_block(np.arange(64_000), 64))
    assert len(counts) == 64 and counts.min() > 850 and counts.max() < 1150
