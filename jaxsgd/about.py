"""`python -m jaxsgd.about`: versions, devices, and what is on."""

import platform
from importlib import metadata

import jax

from jaxsgd.loops import cpu_convolutions, cpu_fusion


def report() -> str:
    """The lines that a bug report needs."""
    lines = {"python": platform.python_version()}
    lines |= {
        name: metadata.version(name) for name in ("jaxsgd", "jax", "jaxlib", "optax", "numpy")
    }
    lines["devices"] = ", ".join(map(str, jax.devices()))
    lines["x64"] = "on" if jax.config.read("jax_enable_x64") else "off"
    for name, module in (("cpu fusion", cpu_fusion), ("cpu convolutions", cpu_convolutions)):
        off = module.why_off()
        lines[name] = "on" if off is None else f"off: {off}"
    return "\n".join(f"{name:18}{value}" for name, value in lines.items())


if __name__ == "__main__":
    print(report())
