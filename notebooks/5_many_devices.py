# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5. Many devices
#
# The same model code runs on one device and on a thousand. Where things lie is written in two tables, and a
# **mesh** gives the tables something to lay them on. This notebook looks at the tables, at what lies where,
# and at ring attention, by which a sequence can be longer than one device can hold.
#
# It needs no cluster. The CPU can pose as eight devices, if JAX is told so before it starts:

# %%
import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import dataclasses
import re

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from matplotlib.patches import Rectangle

import worldsim
from worldsim.config import MixConfig, OptimConfig, StageConfig, TrainConfig
from worldsim.data import ArraySource
from worldsim.ops.attention import KNOWN, attend, reference, visible
from worldsim.parallel.mesh import make_mesh
from worldsim.parallel.placement import place_batch, stripes
from worldsim.parallel.sharding import LOGICAL_TO_MESH, by_path, logical_axes, param_shardings
from worldsim.train.optim import make_optimizer
from worldsim.train.stages import dynamics_stage
from worldsim.train.step import init_state, make_step, state_shardings
from worldsim.worlds import clips

FAST = bool(os.environ.get("WORLDSIM_FAST"))  # the tests set it
COLORS = plt.cm.tab10(np.arange(8))
plt.rcParams.update({"figure.dpi": 70, "savefig.bbox": "tight"})

devices = jax.devices()
assert len(devices) == 8
print(len(devices), devices[0].platform, "devices")

# %% [markdown]
# ## A mesh
#
# A mesh gives the devices coordinates along four axes:
#
# - `data`: each device takes other rows of the batch;
# - `fsdp`: other rows as well, and the weights are cut into shards;
# - `context`: other chunks of the same sequence;
# - `tensor`: other heads and widths of the same layer.
#
# On real machines the later axes lie on devices that are closer to each other.

# %%
mesh = make_mesh({"data": 2, "fsdp": 2, "context": 2})
print(dict(mesh.shape))

# %% [markdown]
# ## Two tables
#
# The first table says what each dimension of a parameter *is*, by the parameter's path. The second one says
# which axes of the mesh such a dimension is cut over. Models name nothing of this. A parameter that no row
# matches, or two, is an error.

# %%
world = worldsim.load("sprites")
shapes = by_path(world.params["dynamics"])
shown = ["codes", "transformer/layers/0/attention/query/kernel", "transformer/layers/0/attention/out/kernel"]
shown += ["transformer/layers/0/mlp/up/kernel", "transformer/layers/0/mlp/down/kernel", "head/kernel"]
for path in shown:
    print(f"{path:44} {tuple(shapes[path].shape)!s:12} {logical_axes(path, shapes[path].shape)}")
print()
for name, axes in LOGICAL_TO_MESH.items():
    print(f"{name:6} -> {', '.join(axes)}")

# %% [markdown]
# Together they give a sharding for every parameter on any mesh. Below, one matrix (`embed` downwards, `mlp`
# to the right) on four meshes. A colour is a device; where several colours share a field, all of those
# devices hold it.

# %%
MESHES = {
    "data 8": {"data": 8},
    "fsdp 8": {"fsdp": 8},
    "fsdp 4, tensor 2": {"fsdp": 4, "tensor": 2},
    "data 2, fsdp 2, tensor 2": {"data": 2, "fsdp": 2, "tensor": 2},
}
picked = "transformer/layers/0/mlp/up/kernel"
height, width = shapes[picked].shape


def draw_shards(ax, where, shape):
    """A field for every shard, striped in the colours of the devices that hold it."""
    holders = {}
    for device, index in where.devices_indices_map(shape).items():
        spans = tuple(i.indices(size)[:2] for i, size in zip(index, shape, strict=True))
        holders.setdefault(spans, []).append(device.id)
    for ((top, bottom), (left, right)), ids in holders.items():
        step = (right - left) / len(ids)
        for k, i in enumerate(ids):
            ax.add_patch(Rectangle((left + k * step, top), step, bottom - top, color=COLORS[i]))
        ax.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, lw=1.5))
        text = ", ".join(map(str, ids))
        ax.text((left + right) / 2, (top + bottom) / 2, text, ha="center", va="center", weight="bold")
    ax.set(xlim=(-2, shape[1] + 2), ylim=(shape[0] + 1, -1), xticks=[0, shape[1]], yticks=[0, shape[0]])
    return holders


fig, axes = plt.subplots(1, 4, figsize=(14, 2.8))
for ax, (name, sizes) in zip(axes, MESHES.items(), strict=True):
    where = by_path(param_shardings(make_mesh(sizes), world.params["dynamics"]))[picked]
    holders = draw_shards(ax, where, (height, width))
    assert len(holders) == sizes.get("fsdp", 1) * sizes.get("tensor", 1)
    ax.set_title(name, fontsize=10)
plt.show()

# %% [markdown]
# What that means for the memory of one device: all parameters of the dynamics, and how much of them device 0
# holds.

# %%
whole = sum(leaf.nbytes for leaf in shapes.values())
for name, sizes in MESHES.items():
    where = by_path(param_shardings(make_mesh(sizes), world.params["dynamics"]))
    held = sum(np.prod(where[path].shard_shape(leaf.shape)) * 4 for path, leaf in shapes.items())
    print(f"{name:26} {held / 2**10:7.0f} of {whole / 2**10:.0f} KiB")
    assert held <= whole

# %% [markdown]
# ## A batch on a mesh
#
# Rows of a batch go over `data` and `fsdp`, chunks of a sequence over `context`. Chunks are dealt out like
# cards, one to each device by turns (*stripes*). The next section shows why.

# %%
rows, chunks = 8, 8
dealt = stripes(chunks, mesh.shape["context"])  # the chunk at each place
placed = place_batch(mesh, {"chunk": np.tile(dealt, (rows, 1))}, rows, sequence=True)["chunk"]
holder = np.zeros((rows, chunks), int)
for shard in placed.addressable_shards:
    row, place = np.meshgrid(*(np.arange(*i.indices(8)) for i in shard.index), indexing="ij")
    holder[row, np.asarray(shard.data)] = shard.device.id
assert len(np.unique(holder)) == 8

fig, ax = plt.subplots(figsize=(4.4, 3.6))
ax.imshow(COLORS[holder])
for (i, j), device in np.ndenumerate(holder):
    ax.text(j, i, device, ha="center", va="center")
ax.set(xlabel="chunk of the sequence", ylabel="row of the batch", title="which device has what")
plt.show()

# %% [markdown]
# ## Ring attention
#
# If the chunks of a sequence lie on eight devices, a query on one of them must still see keys on the others.
# In a ring, each device keeps its queries and passes its keys and values to its neighbour, while it computes
# with those that it has. After seven hops everybody has met everybody. Nobody ever held all keys.
#
# Attention is causal, so half of the pairs see nothing. Cut the sequence into eight pieces in a row, and the
# first device has next to nothing to do while the last one works all the time; the others wait for it at
# every hop. With stripes every device has early and late chunks, and each hop is the same work for all.

# %%
CHUNKS, PARTS = 64, 8


def work(order):
    """Share of visible pairs for each device at each hop, with chunks lying in this order."""
    ids = np.stack([np.zeros(CHUNKS, int), order, np.full(CHUNKS, KNOWN)], axis=-1)[None]
    seen = np.asarray(visible(ids, ids)[0]).reshape(PARTS, CHUNKS // PARTS, PARTS, -1).mean((1, 3))
    return np.array(
        [[seen[device, (device - hop) % PARTS] for device in range(PARTS)] for hop in range(PARTS)]
    )


layouts = {"in a row": work(np.arange(CHUNKS)), "in stripes": work(stripes(CHUNKS, PARTS))}
fig, axes = plt.subplots(1, 2, figsize=(9, 4))
for ax, (name, busy) in zip(axes, layouts.items(), strict=True):
    ax.imshow(busy, cmap="Oranges", vmin=0, vmax=1)
    for (hop, device), share in np.ndenumerate(busy):
        ax.text(device, hop, f"{100 * share:.0f}", ha="center", va="center", fontsize=8)
    waited = busy.max(1).sum()  # each hop takes as long as the busiest device
    ax.set(xlabel="device", ylabel="hop")
    ax.set_title(f"{name}: {100 * busy.mean(1).sum() / waited:.0f} % of the time is work", fontsize=10)
plt.show()
assert layouts["in stripes"].max(1).sum() < 0.7 * layouts["in a row"].max(1).sum()

# %% [markdown]
# The integers of the law (segment, order, stream: notebook 2) travel with keys and values. So any layout
# gives the same result, and it is the exact one. Here is `attend` on one device, round a ring of eight, and
# beside the reference, which holds all scores in memory.

# %%
TOKENS, HEADS, WIDTH = 256, 2, 16
ring_mesh = make_mesh({"context": 8})
q, k, v = (
    jax.random.normal(key, (1, TOKENS, HEADS, WIDTH)) for key in jax.random.split(jax.random.key(0), 3)
)
order = jnp.asarray(stripes(TOKENS, 8))
ids = jnp.stack([jnp.zeros_like(order), order, jnp.full_like(order, KNOWN)], axis=-1)[None]

one = attend(q, k, v, ids, ids)
with jax.set_mesh(ring_mesh):
    ring = jax.jit(lambda *args: attend(*args, strategy="ring")).lower(q, k, v, ids, ids).compile()
    many = ring(q, k, v, ids, ids)
exact = reference(q, k, v, ids, ids)
for name, found in (("one device", one), ("ring of eight", many)):
    error = float(np.abs(np.asarray(found) - np.asarray(exact)).max())
    print(f"{name:14} largest difference from the reference {error:.1e}")
    assert error < 1e-5

# %% [markdown]
# That it does go round a ring can be read in the compiled program. There is a `collective-permute`, the
# passing on, and no `all-gather`, which would bring all keys to all devices.

# %%
text = ring.as_text()
found = {name: len(re.findall(rf"= .*{name}", text)) for name in ("collective-permute", "all-gather")}
print(found)
assert found["collective-permute"] > 0 and found["all-gather"] == 0

# %% [markdown]
# ## Memory
#
# What the compiler sets aside for forward and backward together, on each device, as the sequence grows.
# Nothing is run here: the compiled program knows. All scores at once grow with the square of the length.
# `attend` works tile by tile and never holds them; in the ring each device has its share of the sequence
# alone, what arrives, and a tile in hand.

# %%
LENGTHS = (512, 1024) if FAST else (1024, 2048, 4096, 8192)


def mebibytes(attention, tokens, mesh):
    """Memory beside arguments and results, of attention and its gradient."""
    where = NamedSharding(mesh, PartitionSpec(None, "context"))
    x = jax.ShapeDtypeStruct((1, tokens, HEADS, WIDTH), jnp.float32, sharding=where)
    ids = jax.ShapeDtypeStruct((1, tokens, 3), jnp.int32)

    def loss(q, k, v, ids):
        return attention(q, k, v, ids, ids).sum()

    with jax.set_mesh(mesh):
        program = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x, ids).compile()
    return program.memory_analysis().temp_size_in_bytes / 2**20


ways = {
    "all scores, one device": (reference, make_mesh()),
    "attend, one device": (attend, make_mesh()),
    "ring of eight, each": (lambda *args: attend(*args, strategy="ring"), ring_mesh),
}
taken = {name: [mebibytes(*how[:1], n, how[1]) for n in LENGTHS] for name, how in ways.items()}
plt.figure(figsize=(6, 3.4))
for name, sizes in taken.items():
    plt.loglog(LENGTHS, sizes, marker=".", label=name)
plt.xticks(LENGTHS, map(str, LENGTHS))
plt.minorticks_off()
plt.xlabel("tokens")
plt.ylabel("MiB a device")
plt.legend(fontsize=9)
plt.show()
growth = {name: sizes[-1] / sizes[0] for name, sizes in taken.items()}
assert growth["all scores, one device"] > growth["ring of eight, each"]
assert taken["ring of eight, each"][-1] < taken["all scores, one device"][-1]

# %% [markdown]
# ## A step of training
#
# Now all of it together: a training step of the dynamics of `sprites`, on one device and on a mesh of 2 x 2
# x 2. The same parameters, the same batch, the same random key. The loss must be the same as well, up to the
# order in which floats are summed.
#
# On the command line this is `worldsim train ... --mesh data=2,fsdp=2,context=2`.

# %%
held_out = clips("sprites")
source = ArraySource(
    {
        "codes": np.stack([world.encode(clip) for clip in held_out]),
        "actions": np.stack([clip.actions for clip in held_out])[..., None],
    },
    keys=None,
)
sizes = dataclasses.replace(world.config.dynamics, layers=1) if FAST else world.config.dynamics
config = TrainConfig(
    world=dataclasses.replace(world.config, dynamics=sizes),
    dynamics=StageConfig(steps=100, batch=8, frames=16, optim=OptimConfig(learning_rate=1e-3, warmup=1)),
    mix=MixConfig(chunks=8, queries=2),
)


def train_on(mesh, steps):
    """The losses of a few steps, and the state after them."""
    with jax.set_mesh(mesh):
        stage = dynamics_stage(config, source, mesh=mesh)
        optimizer = make_optimizer(stage.config.optim, stage.config.steps)
        init = lambda key: init_state(stage, optimizer, key)
        where = state_shardings(mesh, jax.eval_shape(init, jax.random.key(0)))
        state = jax.jit(init, out_shardings=where)(jax.random.key(0))
        step = make_step(stage, optimizer, mesh, shardings=where)
        losses = []
        for _, batch in zip(range(steps), stage.batches(0), strict=False):
            state, metrics = step(state, None, place_batch(mesh, batch, stage.config.batch, sequence=True))
            losses.append(float(metrics["loss"]))
    return losses, state


COUNT = 2 if FAST else 6
alone, _ = train_on(make_mesh(), COUNT)
together, state = train_on(mesh, COUNT)
for step, (a, b) in enumerate(zip(alone, together, strict=True)):
    print(f"step {step}: loss {a:.5f} on one device, {b:.5f} on eight")
assert np.allclose(alone, together, rtol=1e-3)

# %% [markdown]
# And the state lies where the tables say: parameters, their average and the moments of the optimizer alike.
# The mesh has no `tensor` axis to speak of, so the matrix from above is cut in two by `fsdp`, and four
# devices hold each half.

# %%
kernel = by_path(state.params)[picked]
fig, ax = plt.subplots(figsize=(4.4, 2.6))
holders = draw_shards(ax, kernel.sharding, kernel.shape)
ax.set_title("after training on data 2, fsdp 2, context 2", fontsize=10)
plt.show()
assert len(holders) == mesh.shape["fsdp"]

# %% [markdown]
# A checkpoint of it can be gone on with on any other mesh. For several machines, see *On many machines* in
# the README: the same command is started once on each of them.
