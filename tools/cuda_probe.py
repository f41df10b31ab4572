#!/usr/bin/env python3
"""Hold the CUDA kernels of gated FFNs against float64, and measure them, without the rest of the engine.

    python3 tools/cuda_probe.py check
    python3 tools/cuda_probe.py bench [--shape 4096x14336] [--dtype bf16|f16] [--define NAME=VALUE]

The device code in crates/kernels/src/cuda/src is compiled with NVRTC as the engine does it, and launched through the driver.

`check` runs every kernel on awkward sizes, with no, some and all neurons kept. The rows that a method must not read hold NaN. The error of y must lie
within what rounding can do: each sum's depth times 2^-24 times the sum of absolute terms, carried through the activation. The
count of neurons kept must be exact (thresholds lie in gaps between scores), two runs must agree bit for bit, and the
memory that blocks speak through must be empty afterwards.

`bench` times a CUDA graph of several layers with weights of their own, so that the second-level cache does not help, each launch a programmatic
dependent of the one before, and prints the median over replays of the time per layer, the bytes that must be read, GB/s, and the
share of the floor, which is those bytes at the rate of a plain read of the same memory.

Needs PyTorch with CUDA and an NVIDIA GPU of compute capability 9.0 or later; run with torch 2.11.0+cu130.
"""
import argparse
import ctypes
import glob
import statistics
import sys
from pathlib import Path

import torch

SOURCES = Path(__file__).resolve().parent.parent / "crates/kernels/src/cuda/src"
FILES = "types products weights base barrier ring flow levels state score_rows score_low_rank score_outer select neurons joined gather ffn".split()
EMPTY = -1
# The part of its expected neurons that a block may take before all counts are known.
EARLY = 0.85
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}
SCORES = {"magnitude": 0, "value": 1, "weighted": 2}

cuda = ctypes.CDLL("libcuda.so.1")


def load_nvrtc():
    found = [p for d in sys.path for p in glob.glob(f"{d}/nvidia/*/lib/libnvrtc.so.*[0-9]")]
    return ctypes.CDLL(found[0] if found else "libnvrtc.so")


nvrtc = load_nvrtc()


def ok(code):
    if code:
        raise SystemExit(f"CUDA or NVRTC error {code}")


def compile_cubin(source, defines):
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    ok(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"ffn.cu", 0, None, None))
    major, minor = torch.cuda.get_device_capability()
    options = [f"--gpu-architecture=sm_{major}{minor}", "-std=c++17"] + [f"-D{k}={v}" for k, v in defines.items()]
    code = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*[o.encode() for o in options]))
    if code:
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        raise SystemExit(log.value.decode())
    ok(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)))
    cubin = ctypes.create_string_buffer(size.value)
    ok(nvrtc.nvrtcGetCUBIN(program, cubin))
    return cubin


class Attribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_int * 16)]


class Config(ctypes.Structure):
    _fields_ = [("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint), ("stream", ctypes.c_void_p),
                ("attributes", ctypes.POINTER(Attribute)), ("count", ctypes.c_uint)]


PROGRAMMATIC_STREAM_SERIALIZATION = 6
MAX_DYNAMIC_SHARED_SIZE_BYTES, PREFERRED_SHARED_MEMORY_CARVEOUT = 8, 9


class Module:
    """Kernels compiled for one shape."""

    def __init__(self, source, defines=None):
        self.module = ctypes.c_void_p()
        torch.cuda.current_stream().synchronize()
        ok(cuda.cuModuleLoadData(ctypes.byref(self.module), compile_cubin(source, defines or {})))

    def launch(self, name, grid, block, shared, argument, dependent=True):
        function = ctypes.c_void_p()
        ok(cuda.cuModuleGetFunction(ctypes.byref(function), self.module, name.encode()))
        ok(cuda.cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED_SIZE_BYTES, shared))
        ok(cuda.cuFuncSetAttribute(function, PREFERRED_SHARED_MEMORY_CARVEOUT, 100 if shared else -1))
        attribute = Attribute(PROGRAMMATIC_STREAM_SERIALIZATION, 0, (ctypes.c_int * 16)(1 if dependent else 0))
        config = Config((grid, 1, 1), (block, 1, 1), shared, torch.cuda.current_stream().cuda_stream, ctypes.pointer(attribute), 1)
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
        ok(cuda.cuLaunchKernelEx(ctypes.byref(config), function, parameters, None))


POINTERS = "gate up down x residual y kept positive negative".split()


class Ffn(ctypes.Structure):
    """As in state.cu."""

    _fields_ = ([(n, ctypes.c_void_p) for n in POINTERS] + [("tau", ctypes.c_float), ("score", ctypes.c_uint), ("early", ctypes.c_uint)]
                + [(n, ctypes.c_void_p) for n in "inner outer bias partial low shares entries norm".split()] + [("eps", ctypes.c_float)])


class Shape:
    """A shape compiled, with the memory that its launches share."""

    def __init__(self, hidden, inter, rank, dtype, gelu=False, blocks=None, defines=None):
        self.hidden, self.inter, self.rank, self.dtype, self.gelu = hidden, inter, rank, DTYPES[dtype], gelu
        self.blocks = blocks or torch.cuda.get_device_properties(0).multi_processor_count
        types = {k: int(dtype == "f16") for k in ("WEIGHTS", "DOWN", "INNER", "OUTER")}
        self.defines = dict(HIDDEN=hidden, INTER=inter, BLOCKS=self.blocks, SHARED_BYTES=115712, JOINED=0, ATTENDED=hidden, ACT_GELU=int(gelu), **types) | (defines or {})
        source = "".join(f'#line 1 "{f}.cu"\n' + (SOURCES / f"{f}.cu").read_text() for f in FILES)
        self.modules = {name: Module(source, self.defines | p) for name, p in self.predictors().items() if name != "copy4" or hidden % 32 == 0}
        half = -(-hidden // 1024) * 32
        teams = int(self.defines.get("TEAMS", 0)) or max(1, (256 + half) // (2 * half))
        self.threads = teams * 2 * half + 64
        rows = -(-(-(-inter // self.blocks) + 16) // 4) * 4
        filled = lambda *shape: torch.full(shape, EMPTY, dtype=torch.int32, device="cuda")
        self.scratch = dict(partial=filled(self.blocks, hidden), low=filled(rank), shares=filled(-(-self.blocks // 8) * 4), entries=filled(self.blocks, rows, 2))

    def predictors(self):
        """What modules are compiled for: without a predictor, by low rank, and by a copy in 4 bits."""
        return {"none": dict(FORM=0, RANK=0), "low_rank": dict(FORM=1, RANK=self.rank), "copy4": dict(FORM=3, RANK=0, OUTER=4)}

    def run(self, name, layer, x, y, kept=None, residual=None, score="value", tau=0.0, expected=0, dependent=True):
        arrays = {k: layer[k] for k in "gate up down positive negative inner outer bias norm".split() if k in layer}
        arrays |= self.scratch | dict(x=x, y=y, kept=kept, residual=residual)
        f = Ffn(**{k: v.data_ptr() for k, v in arrays.items() if v is not None}, tau=tau, score=SCORES[score], early=int(EARLY * expected / self.blocks), eps=1e-5)
        predictor = name.removeprefix("ffn_")
        module = self.modules.get(predictor, self.modules["none"])
        name = "ffn_predicted" if predictor in self.modules else name
        module.launch(name, self.blocks, self.threads, int(self.defines["SHARED_BYTES"]), f, dependent)

    def act(self, g):
        if self.gelu:
            return torch.nn.functional.gelu(g, approximate="tanh")
        return torch.nn.functional.silu(g)


def random_layer(s):
    def draw(rows, cols):
        return (torch.randn(rows, cols, device="cuda") * cols**-0.5).to(s.dtype)

    spread = lambda: torch.rand(s.inter, device="cuda") + 0.5
    return dict(gate=draw(s.inter, s.hidden), up=draw(s.inter, s.hidden), down=draw(s.inter, s.hidden), positive=spread(), negative=spread(),
                low_a=draw(s.rank, s.hidden), low_b=draw(s.inter, s.rank), low_bias=torch.randn(s.inter, device="cuda") * 0.1)


def copy4(s, layer):
    """The copy of gate and up in 4 bits, a neuron's rows one behind the other as weights.cu draws them, and the values that it stands for."""
    parts, values = [], []
    for m in (layer["gate"], layer["up"]):
        w = m.float().view(s.inter, -1, 32)
        extreme = w.gather(2, w.abs().argmax(2, keepdim=True))
        d = (extreme / -8).half()
        q = torch.where(d == 0, 8.0, w / d.float() + 8).round().clamp(0, 15)
        values.append((d.double() * (q.double() - 8)).view(s.inter, -1))
        q = q.to(torch.uint8).view(s.inter, -1, 2, 4)
        row = torch.cat([(q[:, :, 0] | q[:, :, 1] << 4).reshape(s.inter, -1), d.view(torch.uint8).reshape(s.inter, -1)], 1)
        parts.append(torch.nn.functional.pad(row, (0, -row.shape[1] % 16)))
    return torch.cat(parts, 1).contiguous(), values


def levels(x):
    """x as blocks of int8 levels see it, in float64."""
    x = x.view(-1, 32)
    largest = x.abs().amax(1, keepdim=True)
    inverse = torch.where(largest > 1e-30, 127 / largest, 0)
    return ((largest / 127).double() * (x * inverse).round().double()).view(-1)


def scores(rule, signal, layer):
    if rule == "value":
        return signal
    if rule == "magnitude":
        return signal.abs()
    return torch.maximum(signal * layer["positive"].double(), -signal * layer["negative"].double())


def threshold(score, keep):
    """A threshold in a wide gap between scores, near the one that keeps `keep` of them."""
    order = score.sort(descending=True).values
    if keep <= 0:
        return float(order[0]) + 1
    if keep >= len(order):
        return float(order[-1]) - 1
    lo, hi = max(1, keep - 40), min(len(order) - 1, keep + 40)
    gaps = order[lo - 1 : hi] - order[lo : hi + 1]
    at = lo + int(gaps.argmax())
    return float((order[at - 1] + order[at]) / 2)


# Matrices whose rows are read for the neurons kept only, where those are not all three.
READ_KEPT = {"ffn_by_up": ("gate", "down"), "ffn_by_gate": ("up", "down")}


U = 2.0**-24


def check_one(s, name, rule, keep):
    layer = random_layer(s)
    x = torch.randn(s.hidden, device="cuda")
    residual = torch.randn(s.hidden, device="cuda")
    xd = x.double()
    gate, up, down = (layer[k].double() for k in ("gate", "up", "down"))
    g, u = gate @ xd, up @ xd
    if name == "ffn_dense":
        kept, tau = torch.ones(s.inter, dtype=torch.bool, device="cuda"), 0.0
    else:
        if name == "ffn_by_up":
            signal = u
        elif name == "ffn_by_gate":
            signal = s.act(g)
        elif name == "ffn_low_rank":
            layer |= dict(inner=layer["low_a"], outer=layer["low_b"], bias=layer["low_bias"])
            signal = layer["low_b"].double() @ (layer["low_a"].double() @ xd) + layer["low_bias"].double()
        else:
            layer["outer"], values = copy4(s, layer)
            z = levels(x)
            signal = s.act(values[0] @ z) * (values[1] @ z)
        score = scores(rule, signal, layer)
        tau = threshold(score, keep)
        kept = score > tau
        read_kept = READ_KEPT.get(name, ("gate", "up", "down"))
        for m in read_kept:
            layer[m][~kept] = float("nan")
    coefficient = torch.where(kept, s.act(g) * u, 0)
    expected = residual.double() + coefficient @ down
    # Depths: 16 products a thread, then a warp and a team; a block's neurons, then blocks.
    dot_error = (8 + 2 + 5 + s.threads // 32 + 2) * U
    g_error, u_error = dot_error * (gate.abs() @ xd.abs()), dot_error * (up.abs() @ xd.abs())
    a = s.act(g)
    coefficient_error = torch.where(kept, 1.2 * g_error * (u.abs() + u_error) + a.abs() * u_error + 16 * U * (a * u).abs(), 0)
    depth = s.inter // s.blocks + 2 + s.blocks + 8
    bound = depth * U * (coefficient.abs() @ down.abs() + residual.abs().double()) + coefficient_error @ down.abs()

    runs = []
    for _ in range(2):
        y = torch.full((s.hidden,), float("nan"), device="cuda")
        count = torch.full((1,), -1, dtype=torch.int32, device="cuda")
        s.run(name, layer, x, y, count, residual, rule, tau, keep)
        torch.cuda.synchronize()
        runs.append(y)
    worst = ((runs[0].double() - expected).abs() / bound).max().item()
    faults = []
    if not worst <= 1:
        faults.append("error")
    if name != "ffn_dense" and count.item() != int(kept.sum()):
        faults.append(f"kept {count.item()}, not {int(kept.sum())}")
    if not torch.equal(runs[0].view(torch.int32), runs[1].view(torch.int32)):
        faults.append("two runs differ")
    faults += [f"{k} not empty" for k, v in s.scratch.items() if not bool((v == EMPTY).all())]
    label = f"{s.hidden}x{s.inter} rank {s.rank} {str(s.dtype)[6:]} blocks {s.blocks} {name} {rule} kept {int(kept.sum())}"
    print(f"{label}: {worst:.3f} of the bound{' ' if faults else ''}{', '.join(faults)}", flush=True)
    return not faults


def check(options):
    torch.manual_seed(options.seed)
    cases = [(896, 4864, 64, "bf16", True, None), (576, 1536, 512, "f16", False, None), (600, 1001, 8, "bf16", False, 7), (4096, 3001, 512, "bf16", False, None),
             (5120, 777, 520, "f16", True, None), (3584, 2000, 256, "bf16", True, None), (64, 50, 16, "bf16", False, 3), (8192, 600, 64, "bf16", False, 100)]
    good = True
    for hidden, inter, rank, dtype, gelu, blocks in cases:
        s = Shape(hidden, inter, rank, dtype, gelu, blocks, options.define)
        good &= check_one(s, "ffn_dense", "value", inter)
        for keep in (0, 1, inter // 10, inter * 3 // 10, inter):
            for name, rule in (("ffn_by_up", "weighted"), ("ffn_by_gate", "magnitude"), ("ffn_low_rank", "value"), ("ffn_copy4", "weighted")):
                if name == "ffn_copy4" and hidden % 32:
                    continue
                good &= check_one(s, name, rule, keep)
    print("all good" if good else "FAULTS")
    return good


READ_THREADS = 512
# Bytes that a launch reads at most, as in read.rs.
READ_PART = 64 << 20


class Read(ctypes.Structure):
    """As in read.cu."""

    _fields_ = [("from", ctypes.c_void_p), ("sum", ctypes.c_void_p), ("count", ctypes.c_ulonglong)]


def graph_time(body, layers, rounds=4, replays=30):
    """Median time in us of body(layer), over a graph of `rounds` times all layers."""
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        for l in range(layers):
            body(l)
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(rounds):
                for l in range(layers):
                    body(l)
        times = []
        for i in range(replays + 5):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            if i >= 5:
                times.append(begin.elapsed_time(end) * 1e3 / (rounds * layers))
    return statistics.median(times)


def read_rate(buffers):
    """GB/s of a plain read over the buffers in turn."""
    source = "".join((SOURCES / f"{f}.cu").read_text() for f in ("types", "flow", "read"))
    module = Module(source, dict(READ_THREADS=READ_THREADS))
    total = torch.zeros(1, dtype=torch.int32, device="cuda")
    size = buffers[0].numel() * buffers[0].element_size()
    best = 0
    for per in (2, 3, 4):
        blocks = torch.cuda.get_device_properties(0).multi_processor_count * per
        def body(l):
            for at in range(0, size, READ_PART):
                part = Read(buffers[l].data_ptr() + at, total.data_ptr(), min(READ_PART, size - at) // 16)
                module.launch("read_memory", blocks, READ_THREADS, 0, part)
        best = max(best, size / graph_time(body, len(buffers)) / 1e3)
    return best


def bench(options):
    torch.manual_seed(options.seed)
    print(torch.cuda.get_device_name(0))
    for shape in options.shape:
        hidden, inter = map(int, shape.split("x"))
        s = Shape(hidden, inter, options.rank, options.dtype, options.gelu, None, options.define)
        x = torch.randn(hidden, device="cuda")
        layers = [random_layer(s) for _ in range(options.layers)]
        for l in layers:
            l["copy"], values = copy4(s, l)
            z = levels(x)
            l["signals"] = {"ffn_by_up": l["up"].double() @ x.double(), "ffn_by_gate": s.act(l["gate"].double() @ x.double()),
                            "ffn_low_rank": l["low_b"].double() @ (l["low_a"].double() @ x.double()) + l["low_bias"].double(),
                            "ffn_copy4": s.act(values[0] @ z) * (values[1] @ z)}
            del values
        matrix = hidden * inter * 2
        rate = read_rate([torch.cat([l["gate"], l["up"], l["down"]]) for l in layers])
        print(f"\n{shape} {options.dtype} rank {options.rank}, {options.layers} layers: plain read {rate:.0f} GB/s")
        y = torch.empty(hidden, device="cuda")
        xs = x.to(s.dtype)
        def plain(l):
            l = layers[l]
            ((torch.nn.functional.silu(l["gate"] @ xs) * (l["up"] @ xs)) @ l["down"])
        print("| kernel | kept | us | MB | GB/s | share of floor |\n|---|---|---|---|---|---|")
        def row(name, label, bytes_read, us):
            print(f"| {name} | {label} | {us:.1f} | {bytes_read / 1e6:.1f} | {bytes_read / us / 1e3:.0f} | {bytes_read / us / 1e3 / rate:.3f} |", flush=True)
        if options.torch:
            row("torch", "all", 3 * matrix, graph_time(plain, options.layers))
        for dependent in ([True, False] if options.apart else [True]):
            mark = "" if dependent else " apart"
            row("ffn_dense" + mark, "all", 3 * matrix, graph_time(lambda l: s.run("ffn_dense", layers[l], x, y, dependent=dependent), options.layers))
            for name, rule, base, each in (("ffn_by_up", "weighted", matrix, 2), ("ffn_by_gate", "weighted", matrix, 2),
                                           ("ffn_low_rank", "value", (hidden + inter) * options.rank * 2, 3), ("ffn_copy4", "weighted", inter * (hidden + hidden // 8), 3)):
                if options.only and name not in options.only:
                    continue
                for rho in options.rho:
                    keep = inter - int(inter * rho)
                    ready, kept = [], []
                    for l in layers:
                        d = {k: l[k] for k in ("gate", "up", "down", "positive", "negative")}
                        if name == "ffn_low_rank":
                            d |= dict(inner=l["low_a"], outer=l["low_b"], bias=l["low_bias"])
                        if name == "ffn_copy4":
                            d["outer"] = l["copy"]
                        score = scores(rule, l["signals"][name], l)
                        tau = threshold(score, keep)
                        ready.append((d, tau))
                        kept.append(int((score > tau).sum()))
                    count = statistics.mean(kept)
                    us = graph_time(lambda l: s.run(name, ready[l][0], x, y, score=rule, tau=ready[l][1], expected=keep, dependent=dependent), options.layers)
                    row(name + mark, f"{count / inter:.3f}", base + each * count * hidden * 2, us)
        del layers


def main():
    pair = lambda t: tuple(t.split("="))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--define", type=pair, action="append", default=[])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check")
    b = commands.add_parser("bench")
    b.add_argument("--shape", nargs="*", default=["4096x14336"])
    b.add_argument("--dtype", choices=DTYPES, default="bf16")
    b.add_argument("--gelu", action="store_true")
    b.add_argument("--rank", type=int, default=512)
    b.add_argument("--layers", type=int, default=8)
    b.add_argument("--rho", type=float, nargs="*", default=[0.0, 0.1, 0.5, 0.7, 0.8, 0.9])
    b.add_argument("--only", nargs="*", help="these sparse kernels")
    b.add_argument("--apart", action="store_true", help="also without programmatic dependent launch")
    b.add_argument("--torch", action="store_true", help="also PyTorch's dense products")
    options = parser.parse_args()
    options.define = dict(options.define)
    if options.command == "check":
        sys.exit(0 if check(options) else 1)
    bench(options)


if __name__ == "__main__":
    main()
