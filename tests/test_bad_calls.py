"""Each wrong argument is refused in a sentence that names it, from jaxsgd's own code."""

import re
import time
import traceback
from pathlib import Path

import pytest

import jaxsgd
from tests.bad_calls import ALIASES, bad_calls, calls

OWN = str(Path(jaxsgd.__file__).parent)


@pytest.mark.filterwarnings("ignore")
def test_right_calls_are_right(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for good in calls().values():
        good.fn(**good.arguments)


@pytest.mark.filterwarnings("ignore")
def test_wrong_arguments_are_refused(tmp_path, monkeypatch, pytestconfig):
    monkeypatch.chdir(tmp_path)
    count, failures = 0, []
    for name, argument, what, call in bad_calls():
        count += 1
        start = time.perf_counter()
        try:
            call()
        except (TypeError, ValueError) as error:
            own = traceback.extract_tb(error.__traceback__)[-1].filename.startswith(OWN)
            named = re.search(rf"\b({argument}|{ALIASES.get(argument, argument)})\b", str(error))
            if own and named and time.perf_counter() - start < 2:
                continue
            failures.append((name, argument, what, f"own code: {own}", str(error)[:200]))
        except Exception as error:
            failures.append((name, argument, what, repr(error)[:200]))
        else:
            failures.append((name, argument, what, "accepted"))
    assert not failures, "\n".join(map(str, failures))
    assert count > 1_000


def test_every_public_name_is_tried():
    """Or takes no argument of a user's: contracts, records, markers of fields."""
    named = {name.split(".")[0] for name in calls()}
    rest = set(jaxsgd.__all__) - named
    assert rest == set(NOT_TRIED.split())


NOT_TRIED = """
Batch Check CounterSampler Ending EpochSampler Estimate Gradient GradientState HalvingResult Info
Loss NoiseEstimate ProximalPenalty Ranked Reason Result Rows Rule Rung Sampler SamplerState
ScheduledRule State Stop StreamedRows __version__ field number part plots problems static take
"""
