"""`python -m jaxsgd.about`: versions, devices, and what is on."""

import platform
from importlib import metadata

import jax

from jaxsgd.loops.cpu_fusion import why_off


def report() -> str:
    """The lines that a bug report needs."""
    off = why_off()
    lines = {"python": platform.python_version()}
    lines |= {
        name: metadata.version(name) for name in ("jaxsgd", "jax", "jaxlib", "optax", "numpy")
    }
    lines["devices"] = ", ".join(map(str, jax.devices()))
    lines["x64"] = "on" if jax.config.read("jax_enable_x64") else "off"
    lines["cpu fusion"] = "on" if off is None else f"off: {off}"
    return "\n".join(f"{name:12}{value}" for name, value in lines.items())


if __name__ == "__main__":
    print(report())
