"""The fused block against the one in pure JAX and float64, and who gets which block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldsim.ops import attention, blocks, pallas_attention
from worldsim.ops import tiled_attention as tiled
from worldsim.parallel.mesh import make_mesh

pytestmark = pytest.mark.law


@pytest.fixture
def fresh(monkeypatch):
    """Nothing of what a block was found to be is kept from before or for later."""
    blocks._refusal.cache_clear()
    monkeypatch.delenv(blocks.VARIABLE, raising=False)
    yield monkeypatch
    blocks._refusal.cache_clear()


@pytest.fixture
def gpu(fresh):
    """As if JAX computed on a GPU."""
    fresh.setattr(jax, "default_backend", lambda: "gpu")
    return fresh


def tokens(*, heads=4, group=2, width=16, count=96, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = [(2, count, n, width) for n in (heads, heads // group, heads // group)]
    order = rng.permutation(count) // 8
    ids = np.stack([order * 0, order, rng.integers(0, 2, count)], axis=-1).astype(np.int32)
    return [jnp.asarray(rng.normal(size=s), dtype) for s in shapes], jnp.asarray(np.stack([ids, ids[::-1]]))


@pytest.mark.parametrize(
    ("dtype", "bar", "width", "group"),
    [
        ("float32", 2e-6, 16, 8),
        pytest.param("float16", 4e-3, 16, 8, marks=pytest.mark.slow),
        pytest.param("bfloat16", 4e-3, 16, 8, marks=pytest.mark.slow),
        pytest.param("bfloat16", 4e-3, 32, 1, marks=pytest.mark.slow),
    ],
)
def test_the_fused_block_and_its_gradients_are_exact(dtype, bar, width, group, monkeypatch):
    """By the check that it has to pass before it serves, whose bar is the same."""
    met = set()

    def watched(*args, **options):
        lists = tiled.relations(*args, **options)
        jax.debug.callback(lambda x: met.update(np.unique(x).tolist()), lists)
        return lists

    monkeypatch.setattr(pallas_attention, "relations", watched)
    errors = blocks.errors_of("pallas", dtype, width=width, group=group)
    assert set(errors) == {"o", "dq", "dk", "dv"}
    assert blocks.TOLERANCE[dtype] == bar
    assert max(errors.values()) < bar, errors
    jax.effects_barrier()
    assert met == {tiled.NOTHING, tiled.SOME, tiled.ALL}


def test_rows_of_a_batch_have_lists_of_their_own():
    """A tile that one row of the batch does not see is not visited for it because another row does."""
    ids, chunk = np.zeros((2, 96, 3), np.int32), np.arange(96) // 8
    ids[:, :, 1] = [chunk, 11 - chunk]
    cut = tiled.cut_ids(jnp.asarray(ids), 16)
    rows, columns = (
        tiled.Rows((), cut),
        tiled.Columns(jnp.zeros((6, 2, 1, 16, 16)), jnp.zeros((6, 2, 1, 16, 16)), cut),
    )
    _, count = pallas_attention._lists(pallas_attention._relations(rows, columns, None))
    seen = np.asarray(count)[:, :, 2]
    assert seen.tolist() == [[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]]
    assert (np.asarray(tiled.relations(cut, cut)) != tiled.NOTHING).all()


@pytest.mark.parametrize("strategy", ["local", "ring"])
def test_kernels_compile_down_to_triton(gpu, strategy):
    """As far as it goes without a GPU: the program of a training step over two devices, with six kernels."""
    gpu.setattr(blocks, "errors_of", lambda *_, **__: dict.fromkeys(("o", "dq", "dk", "dv"), 0.0))
    (q, k, v), ids = tokens(width=64, count=512, dtype=jnp.bfloat16)
    loss = lambda *x: (attention.attend(*x, ids, ids, strategy=strategy) ** 2).sum()
    with jax.set_mesh(make_mesh({"context": 2}, devices=jax.devices()[:2])), blocks.use_block("pallas"):
        traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(q, k, v)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__gpu$xla.gpu.triton") == (6 if strategy == "ring" else 3)
    assert ("collective_permute" in text) == (strategy == "ring")


def test_a_block_asked_for_by_name_serves_or_says_why_not(fresh):
    (q, k, v), ids = tokens()
    want = attention.attend(q, k, v, ids, ids)
    fresh.setenv(blocks.VARIABLE, "pallas")
    with pytest.raises(RuntimeError, match=r"'pallas' cannot serve: it needs a GPU.*take 'jax' or 'auto'"):
        attention.attend(q, k, v, ids, ids)
    with blocks.use_block("auto"):
        np.testing.assert_array_equal(attention.attend(q, k, v, ids, ids), want)
    fresh.setenv(blocks.VARIABLE, "fast")
    with pytest.raises(ValueError, match=r"'fast'; take one of \['jax', 'pallas', 'auto'\]"):
        attention.attend(q, k, v, ids, ids)
    with pytest.raises(ValueError, match="'cudnn'; take one of"), blocks.use_block("cudnn"):
        pass


@pytest.mark.parametrize(("width", "group", "why"), [(48, 1, "48 is not"), (8, 1, "width 16 to 256")])
@pytest.mark.usefixtures("gpu")
def test_sizes_that_the_fused_block_lacks_are_refused(width, group, why):
    with pytest.raises(RuntimeError, match=why), blocks.use_block("pallas"):
        blocks.chosen(jnp.dtype("float32"), width=width, group=group)


def test_a_block_that_is_wrong_or_does_not_run_is_not_used(gpu):
    ask = lambda dtype: blocks.chosen(jnp.dtype(dtype), width=64, group=1)
    wrong = {"o": 1e-7, "dq": 3e-4, "dk": float("nan"), "dv": 0.0}
    gpu.setattr(blocks, "errors_of", lambda *_, **__: wrong)
    with blocks.use_block("pallas"):
        with pytest.raises(RuntimeError, match=r"wrong here in float32, .* 2e-06: dq 3.0e-04, dk"):
            ask("float32")

        def broken(*_, **__):
            raise NotImplementedError("no such instruction")

        gpu.setattr(blocks, "errors_of", broken)
        with pytest.raises(RuntimeError, match="did not run: NotImplementedError: no such instruction"):
            ask("bfloat16")
    with blocks.use_block("auto"):
        assert ask("float32") == ask("bfloat16") == "jax"
    blocks._refusal.cache_clear()
    gpu.setattr(blocks, "errors_of", lambda *_, **__: dict.fromkeys(wrong, 1e-7))
    with blocks.use_block("auto"):
        assert ask("float32") == "pallas"
    assert ask("float32") == "jax"


def test_the_check_runs_outside_of_a_trace(gpu):
    """Within a program that is being traced the errors of the check are numbers all the same."""
    gpu.setattr(blocks, "errors_of", lambda *_, **__: {"o": float(jnp.ones(3).sum()) * 1e-9})
    found = []

    @jax.jit
    def f(x):
        with blocks.use_block("pallas"):
            found.append(blocks.chosen(x.dtype, width=64, group=1))
        return x

    f(jnp.ones(2))
    assert found == ["pallas"]
