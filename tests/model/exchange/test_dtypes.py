"""Array types in files are exact if float32 holds all their values, and are refused otherwise."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Transformer
from implicit_reasoning.model.exchange import load_weights, save_weights
from implicit_reasoning.model.exchange.arrays import read_arrays
from tests.model.exchange.models import SPEC, filled

VALUES = np.array([[0.0, 1.0, -2.5], [0.4375, 24.0, -0.015625]])
"""Numbers that every signed 8-bit floating-point type represents exactly."""


def write_raw(path, dtype, shape, data):
    """Write a safetensors file with one array `x` by hand, following the format."""
    about = {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}
    header = json.dumps({"x": about}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


@pytest.mark.parametrize(
    ("dtype", "numpy_type"),
    [
        ("F64", np.float64),
        ("F16", np.float16),
        ("BF16", ml_dtypes.bfloat16),
        ("F8_E4M3", ml_dtypes.float8_e4m3fn),
        ("F8_E5M2", ml_dtypes.float8_e5m2),
        ("F8_E4M3FNUZ", ml_dtypes.float8_e4m3fnuz),
        ("F8_E5M2FNUZ", ml_dtypes.float8_e5m2fnuz),
    ],
)
def test_floating_point_types_are_exact(tmp_path, dtype, numpy_type):
    values = VALUES.astype(numpy_type)
    write_raw(tmp_path / "w.safetensors", dtype, [2, 3], values.tobytes())
    read = read_arrays(tmp_path / "w.safetensors")["x"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values.astype(np.float64))


def test_every_byte_of_fp8(tmp_path):
    """E4M3 has 1 sign bit, 4 exponent bits with bias 7, 3 mantissa bits and no infinity."""
    write_raw(tmp_path / "w.safetensors", "F8_E4M3", [256], bytes(range(256)))
    read = read_arrays(tmp_path / "w.safetensors")["x"]
    for byte, value in enumerate(read):
        sign, exponent, mantissa = (-1) ** (byte >> 7), (byte >> 3) & 15, byte & 7
        if (exponent, mantissa) == (15, 7):
            assert np.isnan(value)
        elif exponent:
            assert value == sign * 2.0 ** (exponent - 7) * (1 + mantissa / 8)
        else:
            assert value == sign * 2.0**-6 * mantissa / 8


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        *(("I8", 6), ("U8", 6), ("I32", 24), ("I64", 48), ("BOOL", 6), ("C64", 48)),
        *(("F4", 3), ("F6_E2M3", 6)),
    ],
)
def test_types_that_are_no_weights_are_named(tmp_path, dtype, size):
    shape = [8] if dtype.startswith("F6") else [2, 3]  # a number of elements that fills whole bytes
    write_raw(tmp_path / "w.safetensors", dtype, shape, bytes([1] * size))
    with pytest.raises(InputError, match=r"x has type .*floating-point"):
        read_arrays(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "array",
    [
        np.ones(3, np.int8),
        np.ones(3, bool),
        np.ones(3, complex),
        np.array(["1.5", "2"]),
        np.array([b"1"]),
        np.array(["2026-11-28"], "datetime64[D]"),
        np.ones(3, ml_dtypes.bfloat16),
    ],
    ids=lambda array: str(array.dtype),
)
def test_types_of_npz_that_are_no_weights_are_named(tmp_path, array):
    np.savez(tmp_path / "w.npz", x=array)
    with pytest.raises(InputError, match="x has type"):
        read_arrays(tmp_path / "w.npz")


def test_a_value_beyond_float32(tmp_path):
    save_file({"x": np.array([1.0, 1e39])}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="x contains float64 values outside the range of float32"):
        read_arrays(tmp_path / "w.safetensors")
    save_file({"x": np.array([1.0, np.inf])}, tmp_path / "w.safetensors")
    np.testing.assert_array_equal(read_arrays(tmp_path / "w.safetensors")["x"], [1.0, np.inf])


def test_a_model_in_fp8_and_one_in_int8(tmp_path):
    model = Transformer(SPEC)
    save_weights(tmp_path / "w.safetensors", model, filled(model))
    arrays = read_arrays(tmp_path / "w.safetensors")
    small = {name: array.astype(ml_dtypes.float8_e4m3fn) for name, array in arrays.items()}
    write_many(tmp_path / "w.safetensors", "F8_E4M3", small)
    _, params = load_weights(tmp_path / "w.safetensors")
    expected = small["blocks.1.mlp.W_in"].astype(np.float32)
    np.testing.assert_array_equal(params["blocks"]["1"]["mlp"]["W_in"], expected)

    whole = arrays | {"blocks.1.mlp.W_in": np.ones((16, 24), np.int8)}
    save_file(whole, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"blocks\.1\.mlp\.W_in has type int8"):
        load_weights(tmp_path / "w.safetensors")


def write_many(path, dtype, arrays):
    header, data = {}, b""
    for name, array in arrays.items():
        start, data = len(data), data + array.tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [start, len(data)],
        }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
