"""Rows from a user's file (CSV, Parquet or NPZ) as float features and a target, for the command.

Each error is one sentence that names the column and the line.
"""

import csv
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

BROKEN = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error)  # of a damaged npz


class Table(NamedTuple):
    """Rows of numbers, and the target to be predicted."""

    names: list[str]
    features: np.ndarray  # float64[n, d], each within the range of float32
    target: np.ndarray | None  # [n], as read: numbers, booleans or text


def read(path: str, *, target: str | None, names: list[str] | None = None) -> Table:
    """Read a table; `names` are the feature columns, all but the target where None."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{path} is no file, expected a .csv, .parquet or .npz file")
    columns = _read_npz(file, target) if file.suffix == ".npz" else _read_frame(file)
    if target is not None and target not in columns:
        raise ValueError(f"{path} has no column {target!r}; it has {', '.join(columns)}")
    if names is None:
        names = [name for name in columns if name != target]
        if not names:
            raise ValueError(f"{path} has no column but the target {target!r}, expected features")
    for name in names:
        if name not in columns:
            raise ValueError(
                f"{path} has no column {name!r}, which the model was trained on; it has "
                f"{', '.join(columns)}"
            )
    if len(next(iter(columns.values()))) == 0:
        raise ValueError(f"{path} has no rows below its header, expected at least one")
    features = np.stack([numbers(file, name, columns[name]) for name in names], axis=1)
    wanted = None if target is None else _complete(file, target, columns[target])
    return Table(names, features, wanted)


def _read_frame(file: Path) -> dict[str, np.ndarray]:
    try:
        import pandas
    except ImportError as error:
        raise ValueError("reading tables needs pandas: pip install 'jaxsgd[cli]'") from error
    if file.suffix not in (".csv", ".parquet"):
        raise ValueError(f"{file} ends in {file.suffix!r}, expected .csv, .parquet or .npz")
    try:
        read = pandas.read_csv if file.suffix == ".csv" else pandas.read_parquet
        frame = read(file)
    except (ValueError, OSError, ImportError) as error:  # pandas' own errors are ValueErrors
        cause = " ".join(str(error).split())
        raise ValueError(f"{file} could not be read as {file.suffix[1:]}: {cause}") from error
    if file.suffix == ".csv" and not isinstance(frame.index, pandas.RangeIndex):
        raise ValueError(f"{file} has more fields in its rows than names in its header, line 1")
    if file.suffix == ".csv":
        with file.open(newline="") as lines:
            header = next(csv.reader(lines))
        twice = [name for name in header if header.count(name) > 1]
        if twice:
            raise ValueError(f"{file} has two columns named {twice[0]!r} in its header, line 1")
    for number, name in enumerate(frame.columns, start=1):
        if str(name).startswith("Unnamed: "):
            raise ValueError(
                f"{file}: column {number} has no name in the header, line 1; name it or drop it"
            )
    return {str(name): frame[name].to_numpy() for name in frame.columns}


def _read_npz(file: Path, target: str | None) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {}
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            loaded = {name: arrays[name] for name in arrays.files}
    except BROKEN as error:
        raise ValueError(f"{file} could not be read as npz: {error}") from error
    for name, array in loaded.items():
        if "[" in name:
            raise ValueError(f"{file}: array {name!r} has a bracket in its name, kept for columns")
        if array.ndim not in (1, 2) or (name == target and array.ndim != 1):
            expected = "(rows,)" if name == target else "(rows,) or (rows, features)"
            raise ValueError(f"{file}: array {name!r} has shape {array.shape}, expected {expected}")
        if array.ndim == 1:
            columns[name] = array
        else:
            columns |= {f"{name}[{j}]": array[:, j] for j in range(array.shape[1])}
    lengths = {name: len(array) for name, array in loaded.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"{file}: expected arrays with one row each, found lengths {lengths}")
    return columns


def _complete(file: Path, name: str, column: np.ndarray) -> np.ndarray:
    missing = [v is None or (v != v) is not False for v in column.tolist()]
    if any(missing):
        raise ValueError(
            f"{file}: column {name!r} is empty in {_line(file, missing.index(True))}, "
            "expected a value in every row"
        )
    return column


def numbers(file: Path, name: str, column: np.ndarray) -> np.ndarray:
    """A column as float64[n], or a refusal that names the column and the line.

    It stays in float64 until it is standardised: float32 does not tell timestamps apart.
    """
    _complete(file, name, column)
    if column.dtype.kind not in "biuf":
        for row, value in enumerate(column.tolist()):
            try:
                float(value)
            except (TypeError, ValueError):
                raise ValueError(
                    f"{file}: column {name!r} holds {value!r} in {_line(file, row)}, "
                    "expected a number; drop the column or encode it as numbers"
                ) from None
    column = column.astype(np.float64)
    with np.errstate(over="ignore"):  # reported below, with its line
        infinite = ~np.isfinite(column.astype(np.float32))
    if infinite.any():
        row = int(infinite.argmax())
        raise ValueError(
            f"{file}: column {name!r} holds {column[row]} in {_line(file, row)}, expected "
            "a finite 32-bit number"
        )
    return column


def _line(file: Path, row: int) -> str:
    """The place of a row: the line of a CSV file, blank lines and quoted line breaks counted."""
    if file.suffix != ".csv":
        return f"row {row + 1}"
    with file.open(newline="") as lines:
        reader = csv.reader(lines)
        records = (reader.line_num for record in reader if record)
        for number, line in enumerate(records):
            if number == row + 1:  # after the header
                return f"line {line}"
    return f"row {row + 1}"
