import torch

from lib.kernels.dispatch import check_dtype, interpreting, pick_backend
from tests.helpers import raises


def test_cpu_tensors_take_the_reference():
    assert pick_backend("auto", torch.zeros(2)) == "reference"
    assert pick_backend("reference", torch.zeros(2)) == "reference"


def test_triton_is_never_replaced_in_silence():
    if interpreting():
        assert pick_backend("triton", torch.zeros(2)) == "triton"
    else:
        with raises(ValueError, match="needs CUDA tensors, got cpu"):
            pick_backend("triton", torch.zeros(2))


def test_bad_input_is_named():
    with raises(ValueError, match="backend='cuda': allowed are"):
        pick_backend("cuda", torch.zeros(1))
    with raises(ValueError, match="one device, got cpu, meta"):
        pick_backend("auto", torch.zeros(1), torch.zeros(1, device="meta"))
    with raises(TypeError, match="x: dtype int64 is not supported; allowed are float32"):
        check_dtype("x", torch.zeros(1, dtype=torch.int64), (torch.float32,))
