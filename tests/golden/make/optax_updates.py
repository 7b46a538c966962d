"""Writes ``traces/optax_updates.npz``: weights after updates of optax, with first moments in fp32 and bfloat16.

Run by hand, in an environment of its own: ``pip install "jax[cpu]==0.10.2" optax==0.2.8`` and
``python tests/golden/make/optax_updates.py``. The updates are compiled, as they are in a training step: XLA keeps the
product of a moment and its decay in fp32 then.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

TARGET = Path(__file__).parent.parent / "traces" / "optax_updates.npz"
STEPS, LR, DECAY = 30, 0.02, 0.1
SHAPES = {"kernel": (32, 36), "bias": (32,)}


def main() -> None:
    """Writes the file again."""
    random = np.random.RandomState(0)
    start = {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    # Gradients with a mean, so that a moment settles, of very different sizes, so that the second moment matters.
    gradients = {
        name: (
            (random.standard_normal((STEPS, *shape)) + 0.5) * 10.0 ** random.randint(-3, 2, size=(1, *shape))
        ).astype(np.float16)  # exact in fp32, and half the file
        for name, shape in SHAPES.items()
    }
    arrays = {f"start/{name}": array for name, array in start.items()}
    arrays |= {f"gradient/{name}": array for name, array in gradients.items()}
    for dtype in ("float32", "bfloat16"):
        for name, transform in transforms(dtype).items():
            weights = run(transform, start, gradients)
            arrays |= {f"{name}/{dtype}/{key}": array for key, array in weights.items()}
    np.savez_compressed(TARGET, **arrays, lr=LR, decay=DECAY)


def transforms(dtype: str) -> dict[str, optax.GradientTransformation]:
    """Optimisers as big_vision chains them. Only kernels decay; in SGD the decay is added to the gradient."""
    decay = optax.add_decayed_weights(DECAY, mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree))
    factored = optax.scale_by_factored_rms(
        min_dim_size_to_factor=32,
        decay_rate=0.8,
        epsilon=1e-30,
        decay_rate_fn=lambda step, power: jnp.minimum(1.0 - jnp.array(step + 1, jnp.float32) ** -power, 0.999),
    )
    descend = optax.scale(-LR)
    return {
        "adamw": optax.chain(optax.scale_by_adam(0.9, 0.999, 1e-8, mu_dtype=dtype), decay, descend),
        "sgd": optax.chain(decay, optax.trace(0.9, accumulator_dtype=dtype), descend),
        "adafactor": optax.chain(factored, optax.ema(0.9, debias=False, accumulator_dtype=dtype), decay, descend),
    }


def run(
    transform: optax.GradientTransformation, start: dict[str, np.ndarray], gradients: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The weights after updates 10 and 30: (2, ...)."""

    @jax.jit
    def update(gradient: dict, state: optax.OptState, weights: dict) -> tuple[dict, optax.OptState]:
        changes, state = transform.update(gradient, state, weights)
        return optax.apply_updates(weights, changes), state

    weights = {name: jnp.asarray(array) for name, array in start.items()}
    state, seen = transform.init(weights), []
    for step in range(STEPS):
        weights, state = update(
            {name: array[step].astype(np.float32) for name, array in gradients.items()}, state, weights
        )
        if step + 1 in (10, 30):
            seen.append({name: np.asarray(array) for name, array in weights.items()})
    return {name: np.stack([entry[name] for entry in seen]) for name in start}


if __name__ == "__main__":
    main()
