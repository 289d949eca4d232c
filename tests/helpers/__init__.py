"""What the tests share; Triton's interpreter is chosen before a helper can import Triton."""

from . import triton_on_cpu as triton_on_cpu
