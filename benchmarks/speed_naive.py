"""The pipeline as people write it today, for comparison: features of files, one after the other.

    python benchmarks/speed_naive.py --out FOLDER FILES …

Every picture is read at full size as with `cv2.VideoCapture`, one a second goes through PIL and
torchvision's transforms and alone through torchvision's ResNet-50; the sound goes through a wav
file. Threads are left as the libraries set them. The weights are vtag's, so rows can be compared.
Prints `ready` when it begins, then what each stage took as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import wave
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision import transforms
from torchvision.models import resnet50

from vtag.extractors.log_mel import log_mel_segments
from vtag.extractors.vggish_small import VGGishSmallNet
from vtag.weights import find_weights

preprocess = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    ]
)


def cpu_seconds():
    """Of this process, and of ffmpeg where it was called."""
    return sum(os.times()[:4])


def load_resnet():
    model = resnet50()
    weights = load_file(find_weights("resnet50"))
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=False)
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:  # the weights of 2015 have the stride in the first convolution
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    model.fc = torch.nn.Identity()
    return model.eval()


def load_sound_network():
    model = VGGishSmallNet()
    weights = load_file(find_weights("vggish_small"))
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=False)
    return model.eval()


def extract_wav(path, wav_path):
    """16 kHz mono: by ffmpeg where it is installed, else decoded with PyAV."""
    if shutil.which("ffmpeg"):
        command = ["ffmpeg", "-y", "-i", path, "-vn", "-ac", "1", "-ar", "16000", wav_path]
        subprocess.run(command, check=True, capture_output=True)
        return
    resampler = av.AudioResampler(format="s16", layout="mono", rate=16000)
    with av.open(str(path)) as container, wave.open(str(wav_path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16000)
        for frame in container.decode(audio=0):
            for resampled in resampler.resample(frame):
                out.writeframes(resampled.to_ndarray().tobytes())
        for resampled in resampler.resample(None):
            out.writeframes(resampled.to_ndarray().tobytes())


def extract(path, resnet, sound_network, spent):
    features = []
    started = cpu_seconds()
    with av.open(str(path)) as container:
        fps = round(container.streams.video[0].average_rate)
        for index, frame in enumerate(container.decode(video=0)):
            converted = cpu_seconds()
            rgb = frame.to_ndarray(format="rgb24")
            if index % fps != 0:
                spent["unused"] += cpu_seconds() - converted
                continue
            spent["decode"] += cpu_seconds() - started
            started = cpu_seconds()
            with torch.no_grad():
                image = preprocess(Image.fromarray(rgb)).unsqueeze(0)
                features.append(resnet(image)[0].numpy())
            spent["network"] += cpu_seconds() - started
            started = cpu_seconds()
    spent["decode"] += cpu_seconds() - started

    started = cpu_seconds()
    sound = np.zeros((0, 128), np.float32)
    with av.open(str(path)) as container:
        has_sound = bool(container.streams.audio)
    if has_sound:
        with tempfile.TemporaryDirectory() as folder:
            wav_path = Path(folder) / "sound.wav"
            extract_wav(path, wav_path)
            with wave.open(str(wav_path)) as file:
                samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        with torch.no_grad():
            segments = log_mel_segments(torch.from_numpy(samples / np.float32(32768)))
            sound = sound_network(segments).numpy()
    spent["sound"] += cpu_seconds() - started
    return np.stack(features), sound


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    resnet, sound_network = load_resnet(), load_sound_network()
    spent = {"decode": 0.0, "unused": 0.0, "network": 0.0, "sound": 0.0}
    begun = cpu_seconds()
    print("ready", flush=True)
    for path in args.files:
        visual, audio = extract(path, resnet, sound_network, spent)
        np.savez(args.out / f"{path.name}.npz", visual=visual, audio=audio)
    stages = [spent["decode"], spent["network"], spent["sound"]]
    spent["rest"] = cpu_seconds() - begun - sum(stages)
    print(json.dumps(spent))


if __name__ == "__main__":
    main()
