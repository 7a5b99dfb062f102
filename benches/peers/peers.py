"""Times other programs that run Stable Diffusion on a CPU against ours, over the same weights and inputs.

    python peers.py WORK [--only NAME,..] [--parts unet,vae_decoder,picture] [--rounds N] [--json FILE]

WORK is a folder for everything that is made: a virtual environment with the pinned packages of `requirements.txt` (torch's
is 6 GB), a synthetic checkpoint, our model directory, and the peers' models, 13 GB for the full width. What is there already
is used again, so a run that was stopped goes on where it was. Nothing but pip reaches a network.

In every round each contender runs in a process of its own, ours (`sdbench run`, `sdrun txt2img`) first. The table gives the
median and the least time, the median's ratio to ours (above 1: slower than ours), the peak memory of the process, and the
relative L2 error against torch in single precision (pictures: of their 8-bit values, with the peak signal-to-noise ratio).

    unet          one pass of a batch of 1, 4x64x64 latents for 512 pixels
    vae_decoder   one pass
    picture       a process from start to PNG: 20 steps of Euler, guidance 7, one prompt and negative prompt

Ours runs its native graphs: `ours` in single precision, `ours-bf16` and `ours-i16` with products of 16-bit
numbers where the processor has them.
Contenders: onnxruntime (torch's export), openvino-f32, openvino-bf16, openvino-int8 (NNCF: int8 weights, in convolutions
int8 activations, the rest in bfloat16), torch-f32, torch-bf16. For pictures they are openvino_genai's Text2ImagePipeline
and diffusers' StableDiffusionPipeline; ONNX Runtime has none.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONTENDERS = ("onnxruntime", "openvino-f32", "openvino-bf16", "openvino-int8", "torch-f32", "torch-bf16")
OURS = {"ours": "f32", "ours-bf16": "bf16", "ours-i16": "i16", "ours-i8": "i8"}
PARTS = ("unet", "vae_decoder", "picture")
PROMPT, NEGATIVE, SEED = "a lighthouse at dusk, oil painting", "blurry", 7


def enter_environment(args):
    """Makes the virtual environment, if it is not the one of these requirements, and goes on in its Python."""
    venv = args.work / "venv"
    python, mark = venv / "bin/python", venv / "requirements.sha256"
    if Path(sys.prefix).resolve() == venv.resolve():
        return
    requirements = HERE / "requirements.txt"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if not mark.exists() or mark.read_text() != wanted:
        say("installing the peers")
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        if args.packages:
            version = f"python{sys.version_info.major}.{sys.version_info.minor}"
            (venv / "lib" / version / "site-packages/others.pth").write_text(f"{args.packages.resolve()}\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", requirements], check=True)
        mark.write_text(wanted)
    os.execv(python, [str(python), str(HERE / "peers.py"), *sys.argv[1:]])


def say(text):
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def run(command):
    """Runs a command: its output, seconds, and peak memory in bytes."""
    command = [str(word) for word in command]
    environment = dict(os.environ, OMP_NUM_THREADS=str(args.threads), HF_HUB_OFFLINE="1")
    if args.avx2:
        environment |= dict(ONEDNN_MAX_CPU_ISA="AVX2", ATEN_CPU_CAPABILITY="avx2")
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    if status != 0:
        sys.exit(f"failed: {' '.join(command)}")
    return output.decode(), seconds, usage.ru_maxrss * 1024


def made(path, how):
    """`path`, after `how` has made it under another name, if it is not there."""
    if not path.exists():
        say(f"making {path}")
        hidden = path.with_name(f".{path.name}")
        subprocess.run(["rm", "-rf", hidden], check=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        how(hidden)
        hidden.rename(path)
    return path


class Folder:
    """The models of one width, each made when it is first asked for."""

    def __init__(self, path):
        self.path = path
        tiny = ["--tiny"] if args.tiny else []
        synth = [args.bin / "sdconvert", "synth", "--quiet", "--family", "sd15", *tiny, "-o"]
        self.checkpoint = made(path / "checkpoint.safetensors", lambda to: run([*synth, to]))
        build = [args.bin / "sdconvert", "build", "--quiet", self.checkpoint, "-o"]
        self.ours = made(path / "ours", lambda to: run([*build, to]))

    def prepared(self, what, name, *more):
        """What `prepare.py` makes."""
        script = [sys.executable, HERE / "prepare.py", what, "--checkpoint", self.checkpoint, "--ours", self.ours]
        return made(self.path / name, lambda to: run([*script, "--size", args.size, *more, "--out", to]))

    def model(self, contender):
        """The model that a contender reads, if it does not read the checkpoint."""
        if contender == "onnxruntime":
            return self.prepared("onnx", f"onnx-{args.size}")
        if contender.startswith("openvino"):
            plain = self.prepared("openvino", "openvino")
            if contender != "openvino-int8":
                return plain
            return self.prepared("int8", "openvino-int8", "--openvino", plain)
        return self.checkpoint

    def inputs(self):
        """Inputs of the networks as `sdbench` chooses them, with its outputs, and torch's for the same inputs beside them."""
        inputs = self.path / f"inputs-{args.size}.safetensors"
        ours = [args.bin / "sdbench", "run", "-m", self.ours, "--size", args.size, "--runs", 1]
        ours += ["--rounds", 1, "--warm-up", 0, "--parts", "networks", "--dump"]
        made(inputs, lambda to: run([*ours, to]))
        self.prepared("reference", f"reference-{args.size}.safetensors", "--inputs", inputs)
        return inputs


def relative_error(found, expected):
    import numpy as np

    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def time_passes(folder, contenders, parts):
    """One round of single passes: rows of contender, part and figures."""
    from safetensors.numpy import load_file

    inputs = folder.inputs()
    expected = load_file(folder.path / f"reference-{args.size}.safetensors")
    ours_outputs, outputs = (folder.path / f".outputs-{who}.safetensors" for who in ("ours", "peer"))
    passes = ["--runs", args.runs, "--threads", args.threads]
    once = ["--rounds", 1, "--warm-up", 0, "--parts", "networks"]
    for contender in ours():
        say(f"{contender}: {', '.join(parts)}")
        command = [args.bin / "sdbench", "run", "-m", folder.ours, "--size", args.size, *native(contender), *passes, *once]
        report = json.loads(run([*command, "--dump", ours_outputs])[0])
        networks = report["configurations"][0]["measured"]["networks"]
        found = load_file(ours_outputs)
        for part in parts:
            figures, output = networks[part], f"{part}.{output_name(part)}"
            yield contender, part, dict(
                load_s=figures["load_s"]["median"],
                seconds=figures["passes_s"][0],
                peak_bytes=max(figures[f"{when}_memory"]["resident_bytes"] for when in ("load", "pass")),
                error=relative_error(found[output], expected[output]),
            )
    for contender in contenders:
        model = folder.model(contender)
        for part in parts:
            say(f"{contender}: {part}")
            command = [sys.executable, HERE / "measure.py", part, contender, model, "--ours", folder.ours, *passes]
            output, _, peak = run([*command, "--inputs", inputs, "--out", outputs])
            name = f"{part}.{output_name(part)}"
            error = relative_error(load_file(outputs)[name], expected[name])
            yield contender, part, dict(json.loads(output), peak_bytes=peak, error=error)


def ours():
    """Those of ours that this processor runs."""
    flags = {"avx2"} if args.avx2 else set(processor("flags").split())
    has = {
        "f32": True,
        "bf16": {"avx512_bf16", "avx512_vnni"} <= flags,
        "i8": not flags.isdisjoint({"avx_vnni", "avx512_vnni"}),
        "i16": "avx512_vnni" in flags or "avx2" in flags and "avx512f" not in flags,
    }
    return [name for name, compute in OURS.items() if has[compute]]


def native(contender):
    level = ["--instructions", "avx2"] if args.avx2 else []
    return ["--graph", "native", "--compute", OURS[contender], *level]


def output_name(part):
    return {"unet": "out_sample", "vae_decoder": "sample"}[part]


def time_pictures(folder, contenders):
    """One round of whole pictures. The first one that torch-f32 makes is what others are compared with, and it is kept."""
    import numpy as np
    from PIL import Image

    png = folder.path / ".picture.png"
    picture = lambda path: np.array(Image.open(path).convert("RGB"))
    told = ["--size", args.size, "--steps", args.steps, "--threads", args.threads]
    told += ["--prompt", PROMPT, "--negative", NEGATIVE, "--seed", SEED]
    measure = [sys.executable, HERE / "measure.py", "picture"]
    reference = ["torch-f32", folder.checkpoint, "--ours", folder.ours, *told, "--out"]
    name = f"reference-{args.size}-{args.steps}.png"
    expected = picture(made(folder.path / name, lambda to: run([*measure, *reference, to])))

    def compared(found, seconds, peak, generate_s):
        error = np.mean((found.astype(np.float64) - expected) ** 2)
        psnr = round(float(10 * np.log10(255**2 / error)), 1) if error > 0 else None
        return dict(
            seconds=[seconds],
            generate_s=generate_s,
            peak_bytes=peak,
            error=relative_error(found, expected),
            psnr_db=psnr,
        )

    for contender in (*ours(), *contenders):
        if contender == "onnxruntime":
            continue
        model = folder.ours if contender in OURS else folder.model(contender)
        say(f"{contender}: picture")
        if contender in OURS:
            command = [args.bin / "sdrun", "txt2img", "-m", model, "-p", PROMPT, "-n", NEGATIVE, "--seed", SEED, "--json"]
            command += native(contender)
            command += ["-W", args.size, "-H", args.size, "--steps", args.steps, "--cfg", 7, "--threads", args.threads]
            command += ["--profile", "diffusers", "--sampler", "Euler", "-q", "-o", png]
        else:
            command = [*measure, contender, model, "--ours", folder.ours, *told, "--out", png]
        output, seconds, peak = run(command)
        figures = json.loads(output)
        if contender in OURS:
            figures = figures["seconds"]
            generate_s = sum(figures[name] for name in ("encode", "denoise", "decode"))
        else:
            generate_s = figures["generate_s"]
        yield contender, "picture", compared(picture(png), seconds, peak, generate_s)


def summary(rows):
    """A row per part and contender, over all rounds."""
    result = []
    for part in PARTS:
        median = {}
        for contender in (*OURS, *CONTENDERS):
            found = [figures for who, what, figures in rows if (who, what) == (contender, part)]
            if not found:
                continue
            seconds = [s for figures in found for s in figures["seconds"]]
            median[contender] = statistics.median(seconds)
            line = dict(
                part=part,
                contender=contender,
                median_s=median[contender],
                least_s=min(seconds),
                runs=len(seconds),
                ratio_to_ours=median[contender] / median["ours"],
                peak_bytes=max(figures["peak_bytes"] for figures in found),
                relative_l2=max(figures["error"] for figures in found),
            )
            for name, fold in (("load_s", statistics.median), ("generate_s", statistics.median), ("psnr_db", min)):
                values = [figures[name] for figures in found if figures.get(name) is not None]
                if values:
                    line[name] = fold(values)
            result.append(line)
    return result


def table(lines):
    text = [f"{'part':12} {'contender':14} {'median s':>9} {'least s':>9} {'ratio':>6} {'peak MB':>8} {'rel. L2':>8}"]
    for line in lines:
        more = "".join(f"  {name} {line[name]:.1f}" for name in ("load_s", "generate_s", "psnr_db") if name in line)
        text.append(
            f"{line['part']:12} {line['contender']:14} {line['median_s']:9.3f} {line['least_s']:9.3f}"
            f" {line['ratio_to_ours']:6.2f} {line['peak_bytes'] / 1e6:8.0f} {line['relative_l2']:8.1e}{more}"
        )
    return "\n".join(text)


def processor(what="model name"):
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(what):
            return line.split(":", 1)[1].strip()
    return "unknown"


def main():
    work = args.work
    work.mkdir(parents=True, exist_ok=True)
    enter_environment(args)
    folder = Folder(work / ("tiny" if args.tiny else "full"))
    networks = [part for part in ("unet", "vae_decoder") if part in args.parts]
    for contender in args.only:  # before anything is timed
        folder.model(contender)
    if args.prepare:
        folder.inputs()
        return
    rows = []
    for number in range(1, args.rounds + 1):
        say(f"round {number} of {args.rounds}")
        if networks:
            rows += time_passes(folder, args.only, networks)
        if "picture" in args.parts:
            rows += time_pictures(folder, args.only)
    lines = summary(rows)
    machine = dict(processor=processor(), threads=args.threads, load=os.getloadavg()[0])
    settings = dict(size=args.size, steps=args.steps, rounds=args.rounds, tiny=args.tiny, avx2=args.avx2)
    if args.json:
        result = dict(schema=1, machine=machine, settings=settings, results=lines)
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{machine['processor']}, {args.threads} threads, {args.size} pixels, load {machine['load']:.1f}")
    print(table(lines))


def names(known):
    def parse(text):
        found = text.split(",")
        wrong = [name for name in found if name not in known]
        if wrong:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(wrong)}; there are {', '.join(known)}")
        return found

    return parse


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for packages and models")
    parser.add_argument("--bin", type=Path, default=HERE.parents[1] / "target/release", help="folder of our programs")
    parser.add_argument("--only", type=names(CONTENDERS), default=list(CONTENDERS), metavar="NAME,..")
    parser.add_argument("--parts", type=names(PARTS), default=list(PARTS), metavar="NAME,..")
    parser.add_argument("--rounds", type=int, default=2, help="turns of every contender (2)")
    parser.add_argument("--runs", type=int, default=3, help="timed passes in a turn, after one that is not (3)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=512, help="side of the picture in pixels")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--avx2", action="store_true", help="all but onnxruntime use AVX2 only, as on older processors")
    parser.add_argument("--tiny", action="store_true", help="narrow models, to try the scripts")
    parser.add_argument("--prepare", action="store_true", help="install and make the models only, time nothing")
    parser.add_argument("--packages", type=Path, help="site-packages folder whose torch is used instead of another copy")
    parser.add_argument("--json", type=Path, help="write the results to this file, too")
    args = parser.parse_args()
    main()
