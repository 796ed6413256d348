"""Files of a format that this version does not read are refused, with the version that wrote them."""

import json
import shutil

import numpy as np
import pytest

import jaxsgd
from jaxsgd.cli import task
from tests.processes import small


@pytest.fixture
def checkpoint(tmp_path):
    return jaxsgd.save(tmp_path / "run", small(1.0))


def rewrite(checkpoint, **changes):
    """Change entries of a checkpoint's JSON file; None deletes one."""
    file = checkpoint / "about" / "metadata"
    about = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: x for name, x in about.items() if x is not None}))


def test_a_checkpoint_holds_its_format_and_the_version_that_wrote_it(checkpoint):
    about = json.loads((checkpoint / "about" / "metadata").read_text())
    assert about["format"] == 2
    assert about["version"] == jaxsgd.__version__


def test_a_checkpoint_of_a_later_format_is_refused(checkpoint):
    rewrite(checkpoint, format=3, version="9.0", checksums=None, shapes=None)
    shutil.rmtree(checkpoint / "arrays")  # whatever its layout is, it is not taken for damaged
    reads = f"expected format 2, which jaxsgd {jaxsgd.__version__} reads"
    with pytest.raises(ValueError, match=f"{reads}, got format 3, written by jaxsgd 9.0"):
        jaxsgd.restore(checkpoint.parent, small(0.0))


def test_a_checkpoint_of_the_first_format_is_refused(checkpoint):
    rewrite(checkpoint, format=1, version=None)
    with pytest.raises(ValueError, match="got format 1, written by jaxsgd 0.1.0 or earlier"):
        jaxsgd.restore(checkpoint.parent, small(0.0))


def rewritten_model(path, **changes):
    """A model file with some of its facts changed; None deletes one."""
    empty = np.zeros((0, 2)), np.zeros(0)
    rows = task.Rows(empty, None, ["a", "b"], None, np.zeros(2), np.ones(2), np.array([0.0, 1.0]))
    params = {"bias": np.zeros(1, np.float32), "weight": np.ones((1, 2), np.float32)}
    task.save(path, params, rows, "linear", "squared_error")
    with np.load(path) as file:
        arrays = dict(file)
    facts = json.loads(str(arrays["facts"]))
    assert facts["version"] == jaxsgd.__version__
    facts = {name: x for name, x in (facts | changes).items() if x is not None}
    np.savez(path, **arrays | {"facts": np.array(json.dumps(facts))})
    return str(path)


def test_a_model_file_of_another_format_is_refused(tmp_path):
    path = rewritten_model(tmp_path / "model.npz")
    assert task.load(path)[2].names == ["a", "b"]
    path = rewritten_model(tmp_path / "model.npz", version=None)  # as before it was stored
    assert task.load(path)[2].names == ["a", "b"]
    path = rewritten_model(tmp_path / "model.npz", format="jaxsgd model 3", version="9.0")
    reads = f"expected format 'jaxsgd model 2', which jaxsgd {jaxsgd.__version__} reads"
    with pytest.raises(ValueError, match=f"{reads}, got 'jaxsgd model 3', written by jaxsgd 9.0"):
        task.load(path)
    path = rewritten_model(tmp_path / "model.npz", format="jaxsgd model 1", version=None)
    with pytest.raises(ValueError, match="'jaxsgd model 1', written by jaxsgd 0.1.0 or earlier"):
        task.load(path)
    path = rewritten_model(tmp_path / "model.npz", format=None)
    with pytest.raises(ValueError, match="is no model that jaxsgd fit wrote"):
        task.load(path)
