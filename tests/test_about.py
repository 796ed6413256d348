"""The report of versions, devices, and what is on."""

import jax
import pytest

import jaxsgd
from jaxsgd import about
from jaxsgd.loops import cpu_fusion


def test_the_report_names_versions_devices_and_what_is_on(monkeypatch):
    lines = dict(line.split(maxsplit=1) for line in about.report().splitlines())
    assert (lines["jaxsgd"], lines["jax"]) == (jaxsgd.__version__, jax.__version__)
    assert str(jax.devices()[0]) in lines["devices"]
    monkeypatch.setenv("JAXSGD_CPU_FUSION", "1")
    if jax.default_backend() == "cpu":
        monkeypatch.setattr(cpu_fusion, "TRIED", ((0, 1), (0, 2)))
        assert "cpu fusion        off: it was tried on JAX 0.1 to below 0.2" in about.report()
    monkeypatch.setenv("JAXSGD_CPU_FUSION", "0")
    assert "cpu fusion        off: JAXSGD_CPU_FUSION is 0" in about.report()
    monkeypatch.setenv("JAXSGD_CPU_CONVOLUTIONS", "0")
    assert "cpu convolutions  off: JAXSGD_CPU_CONVOLUTIONS is 0" in about.report()
    monkeypatch.setenv("JAXSGD_CPU_FUSION", "off")
    with pytest.raises(ValueError, match="JAXSGD_CPU_FUSION: expected 0 or 1, got 'off'"):
        about.report()
