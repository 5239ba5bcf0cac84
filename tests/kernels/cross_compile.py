"""Compiles every kernel for GPUs that are not here, and reads from the machine code what would make it slow.

python tests/kernels/cross_compile.py [--target sm_90|gfx942] [--only NAME] [--update] prints one JSON object. ``--update``
writes it to compiled.json beside this file, which the tests compare with. Not under TRITON_INTERPRET.

Launchers are called with tensors on torch's meta device, which have shapes and no memory; where they launch a kernel, it is
compiled with the very signature that a launch would give it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TABLE = Path(__file__).with_name("compiled.json")
TARGETS = {"sm_90": GPUTarget("cuda", 90, 32), "gfx942": GPUTarget("hip", "gfx942", 64)}
TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.bool: "*i1",
    torch.uint8: "*u8",
}
H100_PROCESSORS = 132
ONCE = (
    "rms_norm 2048 residual",
    "qk_norm_rope 0.6b",
    "activation gelu",
    "activation_linear silu",
    "cross_entropy_ everything",
    "linear_lse 576",
    "embedding",
    "newton_schulz 1024",
    "linear_kl jsd",
    "short_conv",
    "attention 64 64",
)
"""One case of each op, for GPUs other than the first."""


def signature(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any], floats: str) -> tuple[dict, dict, dict, dict]:
    """What Triton makes of the arguments of a launch: types, constants, what is divisible by 16, options."""
    names = [p.name for p in kernel.params]
    given = dict(zip(names, args, strict=False)) | {k: v for k, v in kwargs.items() if k in names}
    options = {k: v for k, v in kwargs.items() if k not in names}
    types, constants, attributes = {}, {}, {}
    for i, p in enumerate(kernel.params):
        value = given[p.name]
        if p.is_constexpr or value is None or (isinstance(value, int) and not isinstance(value, bool) and value == 1):
            types[p.name], constants[(i,)] = "constexpr", value
        elif isinstance(value, Tensor):
            types[p.name], attributes[(i,)] = TYPES[value.dtype], [["tt.divisibility", 16]]
        elif isinstance(value, bool):
            types[p.name] = "i1"
        elif isinstance(value, int):
            types[p.name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            types[p.name] = floats
    return types, constants, attributes, options


@contextmanager
def compiling(target: GPUTarget, floats: str = "fp32") -> Iterator[dict[str, dict[str, int]]]:
    """While this holds, a launch compiles its kernel and adds what is known of it to the result."""
    found: dict[str, dict[str, int]] = {}

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        types, constants, attributes, options = signature(self, args, kwargs, floats)
        source = ASTSource(self, types, constants, attributes)
        found[self.fn.__name__] = facts(triton.compile(source, target=target, options=options), target)

    rows, before = importlib.import_module("slm_kernels._rows"), JITFunction.run
    many, rows.processors = rows.processors, lambda device: H100_PROCESSORS
    JITFunction.run = run  # type: ignore[method-assign]
    try:
        yield found
    finally:
        JITFunction.run, rows.processors = before, many  # type: ignore[method-assign]


def facts(compiled: Any, target: GPUTarget) -> dict[str, int]:
    """Registers, spills, shared memory, loads by width, fp64 arithmetic, matrix instructions."""
    shared = int(compiled.metadata.shared)
    if target.backend == "hip":
        asm = compiled.asm["amdgcn"]

        def number(name: str) -> int:
            return int(re.search(rf"\.{name}:\s*(\d+)", asm).group(1))  # type: ignore[union-attr]

        return {
            "registers": number("vgpr_count"),
            "spills": number("vgpr_spill_count"),  # scalar registers spill into vector registers, not into memory
            "shared": shared,
            "fp64": len(re.findall(r"\bv_(?:add|mul|fma)_f64", asm)),
            "matrix": len(re.findall(r"\bv_mfma", asm)),
        }
    ptx = compiled.asm["ptx"]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        ptxas = triton.knobs.nvidia.ptxas.path
        command = [ptxas, "-v", f"--gpu-name=sm_{target.arch}a", file.name, "-o", os.devnull]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stderr

    def told(pattern: str) -> int:
        return sum(int(n) for n in re.findall(pattern, log))

    loads = re.findall(r"ld\.global\S*?(\.v\d)?\.b(\d+)", ptx)
    widths = [int(v[2:] or 1 if v else 1) * int(b) for v, b in loads]
    return {
        "registers": told(r"Used (\d+) registers"),
        "spills": told(r"(\d+) bytes spill"),
        "shared": shared,
        "fp64": len(re.findall(r"^\s*(?!cvt)(?:@\S+ )?(?:add|sub|mul|fma|div|neg|ex2|max|min)\S*\.f64", ptx, re.M)),
        "matrix": len(re.findall(r"wgmma\.mma_async|\bmma\.sync", ptx)),
        "loads_128": sum(w == 128 for w in widths),
        "loads_narrow": sum(w < 32 for w in widths),
        "serialised": log.count("wgmma") + log.count("serializ"),
    }


def bf16(*shape: int, grad: bool = True) -> Tensor:
    return torch.empty(shape, device="meta", dtype=torch.bfloat16, requires_grad=grad)


def fp32(*shape: int, grad: bool = False) -> Tensor:
    return torch.empty(shape, device="meta", requires_grad=grad)


def ids(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta", dtype=torch.int64)


def both(out: Any) -> None:
    """The way back as well."""
    out = [t for t in ([out] if isinstance(out, Tensor) else out) if t.requires_grad]
    torch.autograd.backward(out, [torch.empty_like(t) for t in out])


def home(name: str) -> Any:
    return importlib.import_module(f"slm_kernels.{name}")


def cases() -> dict[str, Callable[[], None]]:
    """Ops at the sizes of presets: SmolLM2 135M, Qwen3 0.6B, Llama 3.2 1B, Qwen3 4B; bf16, 8192 tokens."""
    made: dict[str, Callable[[], None]] = {}
    N = 8192
    for H in (576, 1024, 2048, 2560, 4096):
        made[f"rms_norm {H}"] = lambda H=H: both(home("rms_norm")._triton(bf16(N, H), bf16(H), 1e-5, 0.0, None, None))
    made["rms_norm 2048 residual"] = lambda: both(
        home("rms_norm")._triton(
            bf16(N, 2048), fp32(2048, grad=True), 1e-6, 1.0, fp32(N, 2048, grad=True), torch.bfloat16
        )
    )
    for name, H, G, K, eps in (("135m", 9, 3, 64, None), ("0.6b", 16, 8, 128, 1e-6), ("1b", 32, 8, 64, None)):

        def rope(H: int = H, G: int = G, K: int = K, eps: float | None = eps) -> None:
            weight = None if eps is None else bf16(K)
            tables = fp32(1, N, K // 2)
            both(
                home("qk_norm_rope")._function(
                    bf16(1, N, H, K), bf16(1, N, G, K), tables, tables, weight, weight, eps, 0.0, False
                )
            )

        made[f"qk_norm_rope {name}"] = rope
    for act in ("silu", "gelu_tanh", "gelu", "relu2"):
        up = None if act == "relu2" else bf16(N, 1536)
        made[f"activation {act}"] = lambda act=act, up=up: both(home("gated")._function(bf16(N, 1536), up, act, False))
    made["activation_linear silu"] = lambda: both(
        home("gated")._linear_triton(bf16(N, 3072), bf16(1024, 3072), bf16(N, 3072), None, "silu", False)
    )
    for V in (49152, 151936):

        def loss(V: int = V) -> None:
            head = home("cross_entropy").Head(z_loss=1e-4)
            home("cross_entropy").in_place_triton(bf16(2048, V, grad=False), ids(2048), head, None, None, True)

        made[f"cross_entropy_ {V}"] = loss
    made["cross_entropy_ everything"] = lambda: home("cross_entropy").in_place_triton(
        bf16(2048, 50304, grad=False),
        ids(2048),
        home("cross_entropy").Head(0.5, 30.0, 50257, -100, 1e-4, 0.1),
        bf16(50304, grad=False),
        fp32(2048),
        True,
    )  # fmt: skip
    for D, V in ((576, 49152), (1024, 151936)):
        made[f"linear_lse {D}"] = lambda D=D, V=V: home("linear_lse").never_stored(
            bf16(N, D, grad=False), bf16(V, D, grad=False), ids(N), home("cross_entropy").PLAIN, None
        )  # fmt: skip
    made["embedding"] = lambda: both(home("embedding")._function(ids(N), bf16(49152, 576)))
    made["newton_schulz 1024"] = lambda: home("newton_schulz")._triton(
        bf16(4, 1024, 3072, grad=False), ((3.0, -4.0, 2.0),), 1.0, None
    )
    for kind in ("forward", "jsd"):
        made[f"linear_kl {kind}"] = lambda kind=kind: home("linear_kl").in_place_triton(
            bf16(N, 49152, grad=False), bf16(N, 49152, grad=False), fp32(N), kind, 2.0, 0.5, 49152
        )
    made["short_conv"] = lambda: both(
        home("short_conv")._function(bf16(4, 2048, 576), bf16(576, 4), None, ids(4, 2048), True)
    )
    for K, V in ((64, 64), (128, 128), (64, 128)):

        def attend(K: int = K, V: int = V) -> None:
            q, k, v = bf16(4, 16, 2048, K), bf16(4, 8, 2048, K), bf16(4, 8, 2048, V)
            both(home("attention")._triton(q, k, v, bf16(16), fp32(16), ids(4, 2048), 0.125, 1024, 50.0))

        made[f"attention {K} {V}"] = attend
    return made


def compile_all(target: str, only: str = "", floats: str = "fp32") -> dict[str, dict[str, int]]:
    """Facts of every kernel of every case whose name begins with ``only``, by "case: kernel"."""
    table = {}
    for name, run in cases().items():
        if name.startswith(only) and (target == "sm_90" or name in ONCE):
            with compiling(TARGETS[target], floats) as found:
                run()
            table |= {f"{name}: {kernel.strip('_')}": known for kernel, known in found.items()}
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", choices=TARGETS, default="sm_90")
    parser.add_argument("--only", default="")
    parser.add_argument("--floats", default="fp32", help="fp64: as torch.compile may hand them over")
    parser.add_argument("--update", action="store_true")
    asked = parser.parse_args()
    result = {"triton": triton.__version__, asked.target: compile_all(asked.target, asked.only, asked.floats)}
    print(json.dumps(result, indent=1))
    if asked.update:
        known = json.loads(TABLE.read_text()) if TABLE.exists() else {}
        known = known if known.get("triton") == triton.__version__ else {}
        TABLE.write_text(json.dumps(known | result, indent=1, sort_keys=True) + "\n")
