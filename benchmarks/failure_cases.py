"""The table of benchmarks/failures.py: a line for each thing that goes wrong.

Case(situation, command, what the message must name, exit code, how it is set up). Commands run in a folder with a
finished run (run/), one that was killed in its third block (killed/), exports (onnx/ static, multi/ one file),
pictures/ in class folders, cat.png and images.npy.
"""

# ruff: noqa: E501  (a line is a row of the table)
from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from benchmarks import failure_setups as setups
from benchmarks.failure_setups import (
    EVIL,
    SMOKE,
    Setup,
    busy,
    checkpoint,
    cut,
    first,
    flip,
    folder,
    forge,
    huge_png,
    interrupt,
    limit,
    no_space,
    occupied,
    pipe,
    read_only,
    rehash,
    remove,
    tensor,
    thin_png,
    write,
)


@dataclass(frozen=True)
class Case:
    situation: str
    command: list[str]
    named: str
    code: int
    setup: tuple[Setup, ...] = ()


def train(situation: str, arguments: str, named: str, code: int, *setup: Setup) -> Case:
    """A smoke run in the folder of the finished one, unless the arguments say otherwise."""
    given = shlex.split(arguments)
    place = [] if any(part.startswith("hydra.run.dir=") for part in given) else ["hydra.run.dir=run"]
    flags = [part for part in given if part.startswith("--")]
    rest = [part for part in given if not part.startswith("--")]
    return Case(situation, ["train", *flags, *SMOKE, *rest, *place], named, code, setup)


def ptmq(situation: str, arguments: str, named: str, code: int, *setup: Setup) -> Case:
    return Case(situation, ["ptmq", *shlex.split(arguments)], named, code, setup)


def report(situation: str, arguments: str, named: str, code: int, *setup: Setup) -> Case:
    return Case(situation, ["report", *shlex.split(arguments)], named, code, setup)


def info(**changed: Any) -> Setup:
    return forge(MANIFEST, lambda m: m["info"].update(changed))


def pictures(**changed: Any) -> Setup:
    return forge(MANIFEST, lambda m: m["info"]["preprocessing"].update(changed))


def node(target: str, *args: Any, op: str = "call_function") -> Setup:
    added = {"name": "bomb", "op": op, "target": target, "args": list(args), "kwargs": {}}
    return forge(MANIFEST, lambda m: m["blocks"][0]["nodes"].insert(-1, added))


def quantizer(**changed: Any) -> Setup:
    def change(manifest: dict[str, Any]) -> None:
        modules = [module for block in manifest["blocks"] for module in block["modules"].values()]
        next(m for m in modules if m["type"] == "ActivationQuantizer")["spec"].update(changed)

    return forge(MANIFEST, change)


def weight(**changed: Any) -> Setup:
    def change(manifest: dict[str, Any]) -> None:
        next(m for m in manifest["blocks"][0]["modules"].values() if "weight" in m)["weight"].update(changed)

    return forge(MANIFEST, change)


def export(**changed: Any) -> Setup:
    return forge("onnx/export.json", lambda m: m.update(changed))


MANIFEST, TENSORS = "run/model/manifest.json", "run/model/model.safetensors"
LAYER = {"name": "a", "block": 0, "kind": "linear", "weight_shape": [2, 3], "pin_w": None, "pin_a": None}
RESUME = "resume=true hydra.run.dir=killed"
BENCH = "bench run/model --rounds 1 --export onnx"
EXPORT = "export run/model --images images.npy --bits w8a8"
ALLOCATE = "allocate run/model --images images.npy"
WEB = tuple(
    write(f"web/{name}") for name in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
)
PRICED = f"{ALLOCATE} --prices prices.csv --price-limit 5"

TYPED = [
    train("a key with a slip of the pen", "recon.itres=5", "recon.iters", 2),
    train("a group that is none", "mixr=case1", "mixer", 2),
    train("an option that is none", "mixer=casse3", "case3", 2),
    train("a model that is none", "model=digits_resent", "digits_resnet", 2),
    train("a file in place of a model", "model=net.py:Net", "model.name=FILE.py:NAME", 2),
    train("a folder in place of a data set", "data=./photos", "data.root=DIR", 2),
    train("a number where an option belongs", "bits=4", "any pair", 2),
    train("nothing where an option belongs", "export=null", "export=", 2),
    train("several values without -m", "mixer=none,case3", "-m mixer=none,case3", 2),
    train("a setting written as a flag", "--seed=3", "seed=3", 2),
    train("a method that is none", "method=qdorp", "qdrop", 2),
    train("an experiment that is none", "experiment=nothing", "experiment", 2),
    train("a word where a number belongs", "recon.iters=many", "iters", 2),
    train("no iterations", "recon.iters=0", "recon.iters", 2),
    train("negative iterations", "recon.iters=-3", "recon.iters", 2),
    train("half an iteration", "recon.iters=1.5", "iters", 2),
    train("an empty batch", "recon.batch=0", "recon.batch", 2),
    train("a negative rate", "recon.lr_rounding=-1", "lr_rounding", 2),
    train("a rate that is no number", "recon.lr_rounding=nan", "lr_rounding", 2),
    train("a negative seed", "seed=-1", "seed", 2),
    train("a huge seed", "seed=99999999999999999999", "seed", 2),
    train("half a seed", "seed=1.5", "seed", 2),
    train("a width of 9 bits", "bits.groups=[[w9a9]]", "w9a9", 2),
    train("no widths", "bits.groups=[]", "groups", 2),
    train("a width twice", "bits.groups=[[w4a4],[w4a4]]", "w4a4", 2),
    train("evaluation at 1 bit", "bits.evaluate=[w1a1]", "w1a1", 2),
    train("widths that are no pairs", "bits.groups=4", "bits.groups", 2),
    train("an average of 99 bits", "allocate=greedy allocate.averages=[99]", "averages", 2),
    train("no calibration images", "data.calibration_images=0", "calibration_images", 2),
    train("a word without =", "mixer", "KEY=VALUE", 2),
    train("an open bracket", "bits.groups=[", "[", 2),
    train("a new key", "+nonsense.key=1", "nonsense", 2),
    train("a configuration that is none", "--config-name=nothing", "nothing", 2),
    train("an unknown flag", "--nonsense", "--nonsense", 2),
    train("no threads", "trainer.threads=0", "trainer.threads", 2),
    train("a trainer that is none", "trainer=tpu", "trainer", 2),
    train("a logger that is none", "logger=paper", "logger", 2),
    train("a deviation of zero in the preprocessing", "+model.preprocessing.std=[0,0,0]", "std", 1),
    train("negative classes", "model.num_classes=-1", "num_classes", 2),
    train("an argument that the network has not", "+model.kwargs.nonsense=1", "nonsense", 1),
    train("a placement for a layer that is none", "placement.overrides=[{pattern:nothing}]", "overrides", 2),
    train("an export of a method that leaves no artifact", "export=onnx method=multiquant", "artifact", 2),
    Case("an export of what is no artifact", ["train", "export=onnx", "artifact=nothing"], "nothing", 1),
    ptmq("no command", "", "COMMAND", 2),
    ptmq("a command that is none", "predikt run/model cat.png", "predikt", 2),
    ptmq("no picture", "predict run/model", "IMAGE", 2),
    ptmq("a width that the model has not", "predict run/model cat.png --bits w1a1", "w1a1", 2),
    ptmq("a width that is none", "predict run/model cat.png --bits mixed_9", "mixed_9", 2),
    ptmq("no best classes", "predict run/model cat.png --top 0", "--top", 2),
    ptmq("an export at a width that is none", "export run/model --images images.npy --bits w1a1", "w1a1", 2),
    ptmq("an export form that is none", f"{EXPORT} --form flexible", "flexible", 2),
    ptmq("OpenVINO with one graph for all widths", f"{EXPORT} --backend openvino --form switchable", "static", 2),
    ptmq("a target that is none", f"{EXPORT} --backend tensorflow", "tensorflow", 2),
    ptmq("one file for all widths for a target without it", f"{EXPORT} --backend litert --form multi", "static", 2),
    ptmq("a processor for a target that has none", f"{EXPORT} --device ethos-u55-128", "device", 2),
    ptmq("an allocation that asks for nothing", ALLOCATE, "--size-mb", 2),
    ptmq("a negative size", f"{ALLOCATE} --size-mb -1", "--size-mb", 2),
    ptmq("a size that no assignment has", f"{ALLOCATE} --size-mb 0.000001", "size", 2),
    ptmq("an average below the narrowest width", f"{ALLOCATE} --avg-w 1", "2", 2),
    ptmq("a search that is none", f"{ALLOCATE} --avg-w 4 --search magic", "magic", 2),
    ptmq("a sensitivity that is none", f"{ALLOCATE} --avg-w 4 --sensitivity guess", "guess", 2),
    ptmq("a limit of prices without prices", f"{ALLOCATE} --price-limit 5", "--prices", 2),
    ptmq("a port that is none", "demo multi --runtime web --port 99999", "--port", 2, *WEB),
    ptmq("a page of an export that has one width a file", "demo onnx --runtime web", "--form multi", 2, *WEB),
    ptmq("a page without onnxruntime-web", "demo multi", "npm install", 2),
    report("a table of nothing", "nothing", "nothing", 2),
    report("a table by a key that is none", "run --by mixr", "mixr", 2),
    report("a table of a width that was not measured", "run --rows w3a3", "w3a3", 2),
    report("a table of a figure that is none", "run --values accuracy", "accuracy", 2),
    report("one figure that is none", "run --pivot accuracy", "accuracy", 2),
    report("a mean over a key that is none", "run --over sed", "sed", 2),
    report("a form that is none", "run --form xml", "xml", 2),
    report("a figure of a kind that is none", "run --plot figure.gif", "figure.gif", 2),
]

GIVEN = [
    train("a data set that is missing", "data=imagefolder data.root=nothing", "nothing", 1),
    train("a data set without a folder", "data=imagenet data.root=null", "data.root", 1),
    train("an empty folder of images", "data=imagefolder data.root=empty", "empty", 1, folder("empty")),
    train("a file in the place of a data set", "data=imagefolder data.root=cat.png", "cat.png", 1),
    train("text files instead of images", "data=imagefolder data.root=texts", "texts", 1, write("texts/a/b.txt", "x")),
    train("a folder of images for calibration alone", "data=imagefolder data.train=pictures data.val=nothing", "nothing", 1),
    train("a class map that is missing", "data=imagefolder data.train=pictures data.val=pictures data.class_map=nothing", "nothing", 1),
    train("more calibration images than there are", "data.calibration_images=100000", "calibration_images", 1),
    train("a damaged image among others", "data=imagefolder data.train=pictures data.val=pictures data.calibration_images=20",
          "pictures", 1, write("pictures/0/0.png", "no picture")),
    train("a checkpoint that is missing", "model.checkpoint=nothing.pt", "nothing.pt", 1),
    train("an empty checkpoint", "model.checkpoint=empty.pt", "empty.pt", 1, write("empty.pt")),
    train("a text as a checkpoint", "model.checkpoint=text.pt", "text.pt", 1, write("text.pt", "weights")),
    train("a folder as a checkpoint", "model.checkpoint=pictures", "pictures", 1),
    train("a pickle with code", "model.checkpoint=evil.pt", "evil.pt", 1, write("evil.pt", EVIL)),
    train("cut weights", "model.checkpoint=w.safetensors", "w.safetensors", 1, checkpoint("w.safetensors", dict.copy),
          cut("w.safetensors")),
    train("weights that are not finite", "model.checkpoint=w.safetensors", "finite", 1,
          checkpoint("w.safetensors", lambda w: first(w, "conv1.weight").view(-1)[0].fill_(float("nan")))),
    train("a negative variance", "model.checkpoint=w.safetensors", "running_var", 1,
          checkpoint("w.safetensors", lambda w: first(w, "running_var")[0].fill_(-1))),
    train("weights of another network", "model.checkpoint=run/model/model.safetensors", "model.safetensors", 1),
    train("weights of other shapes", "model.checkpoint=w.safetensors", "another shape", 1,
          checkpoint("w.safetensors", lambda w: w.update({"fc.weight": w["fc.weight"][:, :5].clone()}))),
    train("a network that timm has not", "model=timm model.name=resnot18 model.pretrained=false", "resnot18", 1),
    train("a network without a name", "model=timm", "model.name", 2),
    train("images of more classes than the network has", "model.pretrained=false model.num_classes=7", "classes", 1),
    ptmq("a picture that is missing", "predict run/model nothing.png", "nothing.png", 1),
    ptmq("an empty picture", "predict run/model empty.png", "empty.png", 1, write("empty.png")),
    ptmq("a text as a picture", "predict run/model text.png", "text.png", 1, write("text.png", "cat")),
    ptmq("a folder without pictures", "predict run/model empty", "empty", 1, folder("empty")),
    ptmq("a cut picture", "predict run/model cat.png", "cat.png", 1, cut("cat.png")),
    ptmq("a picture that unfolds to ten billion pixels", "predict run/model bomb.png", "bomb.png", 1,
         write("bomb.png", huge_png(100_000, 100_000))),
    ptmq("a picture one pixel wide", "predict run/model thin.png", "pixels", 1, write("thin.png", thin_png(1_000_000))),
    ptmq("images that are missing", "export run/model --images nothing --bits w8a8", "nothing", 2),
    ptmq("an array with code", f"{EXPORT} --images evil.npy", "evil.npy", 2, write("evil.npy", EVIL)),
    ptmq("a cut array", EXPORT, "images.npy", 2, cut("images.npy")),
    ptmq("an array of other images", f"{EXPORT} --images flat.npy", "flat.npy", 1,
         lambda at: setups.np.save(at / "flat.npy", setups.np.zeros((4, 3, 8, 8), setups.np.float32))),
    ptmq("an export over other files", f"{EXPORT} --out pictures", "pictures", 1),
    ptmq("an export over a file", f"{EXPORT} --out cat.png", "cat.png", 1),
    ptmq("images for an allocation that are missing", "allocate run/model --images nothing --avg-w 4", "nothing", 2),
    ptmq("prices that are missing", PRICED, "prices.csv", 2),
    ptmq("prices of other layers", PRICED, "layer", 2, write("prices.csv", "layer,pair,cycles\nnothing,w8a8,5\n")),
    ptmq("prices without columns", PRICED, "prices.csv", 2, write("prices.csv", "1,2,3\n")),
    ptmq("tables of an allocation in the place of a file", f"{ALLOCATE} --avg-w 4 --out cat.png", "cat.png", 1),
    ptmq("a page over a file", "demo multi --runtime web --out cat.png", "cat.png", 2, *WEB),
    ptmq("a page over other files", "demo multi --runtime web --out pictures", "pictures", 2, *WEB),
    ptmq("a page with pictures that are missing", "demo multi --runtime web --images nothing", "nothing", 1, *WEB),
    report("a figure in a folder that is a file", "run --plot cat.png/figure.png", "cat.png", 1),
]  # fmt: skip

DAMAGED = [
    ptmq("an artifact that is missing", "info nothing", "nothing", 1),
    ptmq("a run's folder instead of its model", "info run", "manifest.json", 1),
    ptmq("a cut manifest", "info run/model", "manifest.json", 1, cut(MANIFEST)),
    ptmq("an empty manifest", "verify run/model", "manifest.json", 1, write(MANIFEST)),
    ptmq("a manifest of bytes", "info run/model", "manifest.json", 1, write(MANIFEST, bytes(range(256)))),
    ptmq("a list as a manifest", "info run/model", "list", 1, write(MANIFEST, "[]")),
    ptmq("a manifest nested without end", "info run/model", "nested", 1, write(MANIFEST, "[" * 100_000)),
    ptmq(
        "a manifest of another version", "info run/model", "version", 1, forge(MANIFEST, lambda m: m.update(version=9))
    ),
    ptmq("a folder as a manifest", "info run/model", "manifest.json", 1, folder(MANIFEST)),
    ptmq("a pipe as a manifest", "info run/model", "manifest.json", 1, pipe(MANIFEST)),
    ptmq("missing tensors", "predict run/model cat.png", "model.safetensors", 1, remove(TENSORS)),
    ptmq("cut tensors", "predict run/model cat.png", "model.safetensors", 1, cut(TENSORS)),
    ptmq("empty tensors", "bench run/model", "model.safetensors", 1, write(TENSORS)),
    ptmq("a flipped bit", "predict run/model cat.png", "sha256", 1, flip(TENSORS)),
    ptmq("a pipe as tensors", "verify run/model", "model.safetensors", 1, pipe(TENSORS)),
    ptmq(
        "an artifact without a preprocessing", "predict run/model cat.png", "preprocessing", 1, info(preprocessing=None)
    ),
    ptmq("an export of a damaged artifact", EXPORT, "sha256", 1, flip(TENSORS)),
    ptmq("an export with a missing file", BENCH, "w8a8.onnx", 1, remove("onnx/w8a8.onnx")),
    ptmq("an export with a cut file", BENCH, "w8a8.onnx", 1, cut("onnx/w8a8.onnx")),
    ptmq("an export with a pipe", BENCH, "w8a8.onnx", 1, pipe("onnx/w8a8.onnx")),
    ptmq("an export without a manifest", BENCH, "export.json", 1, remove("onnx/export.json")),
    ptmq("a page of an artifact instead of an export", "demo run/model --runtime web", "--form multi", 2, *WEB),
    ptmq(
        "a page of a cut file for all widths",
        "demo multi --runtime web --no-serve",
        "model.onnx",
        1,
        *WEB,
        cut("multi/model.onnx"),
    ),
    ptmq("an allocation of a damaged artifact", f"{ALLOCATE} --avg-w 4", "sha256", 1, flip(TENSORS)),
    report("a cut record of a run in a table", "run", "results.json", 2, cut("run/results.json")),
    report("a run's configuration that is no YAML", "run", "config.yaml", 2, write("run/config.yaml", "a: [")),
]

HOSTILE = [
    ptmq("images of 200,000 pixels an edge", "info run/model", "input_size", 1, info(input_size=[3, 200_000, 200_000])),
    ptmq("pictures of 200,000 pixels an edge", "predict run/model cat.png", "input_size", 1,
         pictures(input_size=[3, 200_000, 200_000])),
    ptmq("a crop of a millionth", "predict run/model cat.png", "crop_pct", 1, pictures(crop_pct=1e-6)),
    ptmq("a deviation of zero", "predict run/model cat.png", "std", 1, pictures(std=[0.0, 0.5, 0.5])),
    ptmq("a mean that is no number", "predict run/model cat.png", "nan", 1, pictures(mean=[float("nan")] * 3)),
    ptmq("9 to the power of a billion", "predict run/model cat.png", "operator.pow", 1, node("operator.pow", 9, 10**9)),
    ptmq("a list a billion times", "verify run/model", "operator.mul", 1, node("operator.mul", [0], 10**9)),
    ptmq("a text a billion wide", "verify run/model", "operator.mod", 1, node("operator.mod", "%999999999d", 1)),
    ptmq("a margin of a billion", "verify run/model", "pad", 1, node("F.pad", {"node": "x"}, [0, 10**9])),
    ptmq("a function outside of the table", "verify run/model", "os.system", 1, node("os.system", "touch evil")),
    ptmq("a method outside of the table", "verify run/model", "backward", 1, node("backward", {"node": "x"}, op="call_method")),
    ptmq("three million widths", "info run/model", "", 1, quantizer(widths=[8] * 3_000_000)),
    ptmq("a thousand widths", "info run/model", "widths", 1, quantizer(widths=[8] * 1000)),
    ptmq("a million layers", "info run/model", "bytes", 1, forge(MANIFEST, lambda m: m.update(layers=[LAYER] * 10**6))),
    ptmq("20,000 layers", "info run/model", "layers", 1, forge(MANIFEST, lambda m: m.update(layers=[LAYER] * 20_000))),
    ptmq("a weight of a million times a million", "info run/model", "shape", 1, weight(shape=[10**6, 10**6])),
    ptmq("a billion planes", "verify run/model", "planes", 1, weight(planes=10**9)),
    ptmq("a number of a hundred bits", "info run/model", "whole number", 1, info(input_size=[3, 2**100, 8])),
    ptmq("a name of a million letters", "info run/model", "characters", 1, info(name="x" * 10**6)),
    ptmq("a step size of zero", "predict run/model cat.png", "step size", 1, tensor(".weight.steps", 0.0)),
    ptmq("a negative step size", "predict run/model cat.png", "step size", 1, tensor(".weight.steps", -1.0)),
    ptmq("a step size that is no number", "export run/model --images images.npy", "step size", 1,
         tensor(".weight.steps", float("nan"))),
    ptmq("a zero point of a half", "predict run/model cat.png", "zero point", 1, tensor("_conv1.zero_points", 0.5)),
    ptmq("a weight's zero point outside its levels", "predict run/model cat.png", "zero point", 1,
         tensor("conv1.weight.zero_points", 100)),
    ptmq("a bias that is infinite", "predict run/model cat.png", "finite", 1, tensor(".biases", float("inf"))),
    ptmq("an export whose hashes name a file outside", BENCH, "hashes", 1,
         forge("onnx/export.json", lambda m: m["hashes"].update({"../cat.png": "0"}))),
    ptmq("an export that reads a file without a hash", BENCH, "hashes", 1,
         export(files={"w8a8": "../cat.png"})),
    ptmq("an export for images of 200,000 pixels", BENCH, "image_shape", 1, export(image_shape=[3, 200_000, 200_000])),
    ptmq("an export without parts", BENCH, "table", 1, export(table=None)),
    ptmq("an export that is no graph", BENCH, "graph", 1, rehash("w8a8.onnx", b"no graph")),
]  # fmt: skip

RESUMED = [
    train("resume with another key", f"{RESUME} recon.batch=8", "recon.batch", 2),
    train("resume with another seed", f"{RESUME} seed=1", "seed", 2),
    train("resume with other weights", RESUME, "weights", 2,
          lambda at: checkpoint(next((at / "outputs/digits").glob("*")).relative_to(at.folder).as_posix(),
                                lambda w: first(w, "conv1.weight").mul_(1.01))(at)),
    train("resume with a broken configuration", RESUME, "config.yaml", 2, write("killed/unfinished/config.yaml", "a: [")),
    train("resume with an empty configuration", RESUME, "config.yaml", 2, write("killed/unfinished/config.yaml")),
    train("resume with broken notes on the inputs", RESUME, "inputs.json", 2, write("killed/unfinished/inputs.json", "{")),
    train("resume with a cut record of a block", RESUME, "block", 0, cut("killed/unfinished/resume/block_001.json")),
    train("resume with an empty record of a block", RESUME, "block", 0, write("killed/unfinished/resume/block_001.json")),
    train("resume with cut tensors of a block", RESUME, "block", 0, cut("killed/unfinished/resume/block_001.safetensors")),
    train("resume with empty tensors of a block", RESUME, "block", 0, write("killed/unfinished/resume/block_000.safetensors")),
    train("resume without the tensors of a block", RESUME, "block", 0, remove("killed/unfinished/resume/block_002.safetensors")),
    train("resume of a finished run with a cut record", "resume=true", "results.json", 2, cut("run/results.json")),
    train("resume of a finished run with another key", "resume=true recon.batch=8", "recon.batch", 2),
]  # fmt: skip

MACHINE = [
    train("a file in the place of the run's folder", "hydra.run.dir=cat.png", "cat.png", 1),
    train("a file in the place of unfinished/", "", "unfinished", 1, write("run/unfinished", "mine")),
    train("a folder with a configuration of somebody else", "hydra.run.dir=other", "other", 2,
          write("other/config.yaml", "a: 1")),
    train("a read-only folder", "hydra.run.dir=fixed/run", "fixed", 1, read_only("fixed")),
    train("a full disk", "hydra.run.dir=small/run", "space", 1, no_space("small", 0.02)),
    train("a full disk at the end of the run", "hydra.run.dir=small/run", "space", 1, no_space("small", 0.16)),
    train("a limit on the size of files", "", "large", 1, limit(20_000)),
    train("another process in the same folder", "", "another process", 2, occupied("run")),
    train("another process in the same folder, with resume", "resume=true", "another process", 2, occupied("run")),
    train("Ctrl-C while the data is opened", "", "interrupted", 130, interrupt("build:")),
    train("Ctrl-C in the fit", "recon.iters=200", "interrupted", 130, interrupt("block 2/5")),
    train("Ctrl-C in the evaluation", "", "interrupted", 130, interrupt("reconstruct:")),
    train("a rate that makes losses infinite", "recon.lr_activation=1e30 recon.lr_rounding=1e30", "block", 1),
    train("no GPU", "trainer=gpu", "GPU", 2),
    ptmq("an export to a full disk", f"{EXPORT} --out small/out", "space", 1, no_space("small", 0.01)),
    ptmq("a page at a port that another program has", "demo multi --runtime web --port 28765", "28765", 2, *WEB, busy(28765)),
    ptmq("an export to a read-only folder", f"{EXPORT} --out fixed/out", "fixed", 1, read_only("fixed")),
]  # fmt: skip

CASES = [*TYPED, *GIVEN, *DAMAGED, *HOSTILE, *RESUMED, *MACHINE]
assert len({case.situation for case in CASES}) == len(CASES), "a situation stands twice"
