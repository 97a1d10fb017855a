"""A training of nothing, in a process of its own: steps until it is told to stop, then saves and reads what it saved.

python preemption_run.py FOLDER; as the last of the processes that LDMSCALE_HOSTS tells of, it tells itself, by SIGUSR1.
Says as JSON after which step it stopped, and whether what it read is what it saved.
"""

import json
import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from ldmscale import hosts, preemption
from ldmscale.training.sharding import device_mesh, place, state_shardings
from ldmscale.training.states import States

STEPS = 1000

jax.config.update("jax_num_cpu_devices", 2)
hosts.connect()
start = {"step": np.int32(0), "kernel": np.arange(2**16, dtype=np.float32).reshape(4, -1)}
shardings = state_shardings(start, device_mesh(jax.devices(), 4))
like = jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), start, shardings)
state = place(start, shardings)
train_step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), out_shardings=shardings, donate_argnums=0)

with preemption.noted():
    for step in range(1, STEPS + 1):
        state = train_step(state)
        time.sleep(0.02)  # its hosts' note of the signal takes a second
        if step == 10 and hosts.index() == hosts.count() - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        if preemption.asked(step):
            break
states = States(sys.argv[1], "digest")
states.save(step, state)
states.wait()
found = states.latest(like)
equal = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), found, state)
same = found is not None and found["kernel"].sharding == shardings["kernel"] and all(jax.tree.leaves(equal))
print(json.dumps({"stopped": step, "same": same, "steps": int(found["step"])}))
states.close()
preemption.leave()
