"""States on eight simulated devices, in a process of its own that can be killed while it saves.

python states_run.py FOLDER begin: save the state of step 7, then kill itself amid the saving of step 8's
python states_run.py FOLDER go-on: what a run that follows finds, as JSON of the form {what: whether it is so}
python states_run.py FOLDER go-on-in-bucket: the same, of states in a bucket
"""

import json
import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ldmscale import bucket
from ldmscale.training.sharding import device_mesh, state_shardings
from ldmscale.training.states import States

jax.config.update("jax_num_cpu_devices", 8)


def tree(step):
    """A state of which two arrays are cut over devices; what is in it says which step's it is."""
    kernels = {name: jnp.arange(2**16, dtype=jnp.float32).reshape(shape) + step for name, shape in SHAPES.items()}
    return {"step": jnp.int32(step), "params": kernels, "moments": (jnp.full(5, 2.5, jnp.float32), None)}


SHAPES = {"long": (2**14, 4), "wide": (4, 2**14)}


def like(devices, fsdp):
    """The state's shapes on a mesh of so many ``devices``."""
    shapes = jax.eval_shape(lambda: tree(0))
    placed = state_shardings(shapes, device_mesh(jax.devices()[:devices], fsdp))
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, placed)


def on(devices, fsdp, step):
    return jax.device_put(tree(step), jax.tree.map(lambda x: x.sharding, like(devices, fsdp)))


def same(found, step, wanted=None):
    """Whether ``found`` is the state of ``step``, and lies as ``wanted`` says."""
    if found is None:
        return False
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(tree(step)), strict=True)
    equal = all(np.asarray(a).dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=wanted is not None)
    return equal and all(a.sharding == b.sharding for a, b in leaves)


def begin(folder):
    states = States(folder, "digest")
    assert states.latest(like(8, 4)) is None
    state = on(8, 4, 7)
    states.save(7, state)
    # What is being written is not what training goes on to change.
    jax.jit(lambda state: jax.tree.map(jnp.zeros_like, state), donate_argnums=0)(state)
    states.wait()
    states.save(8, on(8, 4, 8))
    assert not (folder / "states" / "8").exists(), "it was too quick to be killed"
    os.kill(os.getpid(), signal.SIGKILL)


def damaged(folder, data):
    """Whether the newest state is refused when ``data``, a file of it, is cut, changed or gone."""
    whole, refused = data.read_bytes(), []
    middle = len(whole) // 2
    for spoilt in (whole[:middle], whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], None):
        data.unlink() if spoilt is None else data.write_bytes(spoilt)
        states = States(folder, "digest")
        refused.append(states.latest(like(8, 4)) is None)
        states.close()
    data.write_bytes(whole)
    return all(refused)


def go_on(folder):
    found, states = {}, States(folder, "digest")
    for devices, fsdp in ((8, 4), (2, 2), (1, 1)):
        wanted = like(devices, fsdp)
        found[f"restored on {devices}"] = same(states.latest(wanted), 7, wanted)
    found["restored without a mesh"] = same(states.latest(jax.eval_shape(lambda: tree(0))), 7)
    found["what was half-written is gone"] = os.listdir(folder / "states") == ["7"]
    found["another digest's is none"] = States(folder, "other").latest(like(8, 4)) is None
    (largest,) = sorted(folder.rglob("d/*"), key=lambda path: path.stat().st_size)[-1:]
    described = folder / "states" / "7" / "state" / "_METADATA"
    found["damaged is none"] = damaged(folder, largest) and damaged(folder, described)
    found["and whole again is one"] = same(States(folder, "digest").latest(like(8, 4)), 7)
    states.close()

    states = States(folder, "digest")
    states.save(9, tree(9))  # on one device
    found["a file instead"] = os.listdir(folder) == ["state.safetensors"]
    wanted = like(8, 2)
    state = states.latest(wanted)
    found["a file's on 8"] = same(state, 9, wanted)
    states.save(10, state)
    states.close()
    found["and back"] = os.listdir(folder) == ["states"] and os.listdir(folder / "states") == ["10"]

    states = States(folder, "new")
    for step in (10, 12):  # the first is what the run of another digest has left
        states.save(step, on(8, 4, step))
    states.close()
    found["a new run's is kept"] = os.listdir(folder / "states") == ["12"] and same(
        States(folder, "new").latest(like(8, 4)), 12
    )
    return found


def go_on_in_bucket(folder):
    found, states, wanted = {}, States(folder, "digest"), like(2, 2)
    found["restored on 2"] = same(states.latest(wanted), 7, wanted)
    states.save(9, tree(9))  # on one device, yet in the bucket
    states.close()
    found["and the newest"] = same(States(folder, "digest").latest(wanted), 9, wanted)
    found["another digest's is none"] = States(folder, "other").latest(wanted) is None
    return found


if __name__ == "__main__":
    bucket.WAITS = (0.05, 0.1, 0.1, 0.1)  # seconds: faults here pass at once, or never
    part = {"begin": begin, "go-on": go_on, "go-on-in-bucket": go_on_in_bucket}[sys.argv[2]]
    print(json.dumps(part(Path(sys.argv[1]))))
