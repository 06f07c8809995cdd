"""Raw observations of LIBERO, and openpi's conversion of them, written a second time.

The reference follows openpi's `examples/libero/main.py` (its client), `libero_policy.py`,
`transforms.py` and `models/tokenizer.py`, and shares no code with the package.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def raw_observation(seed: int, size: int = 256) -> dict[str, np.ndarray]:
    """Return an observation as LIBERO's environments give it, of random numbers."""
    rng = np.random.default_rng(seed)
    quaternion = rng.normal(size=4)
    smooth = rng.integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    pictures = [
        np.asarray(Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC))
        for small in smooth
    ]
    return {
        "agentview_image": pictures[0],
        "robot0_eye_in_hand_image": pictures[1],
        "robot0_eef_pos": rng.normal(size=3),
        "robot0_eef_quat": quaternion / np.linalg.norm(quaternion),
        "robot0_gripper_qpos": rng.uniform(-0.04, 0.04, 2),
    }


def element_of(raw: dict[str, np.ndarray], prompt: str) -> dict[str, Any]:
    """Return the element that openpi's client sends for a raw observation."""
    pictures = {
        "observation/image": _resized(raw["agentview_image"][::-1, ::-1]),
        "observation/wrist_image": _resized(raw["robot0_eye_in_hand_image"][::-1, ::-1]),
    }
    x, y, z, w = raw["robot0_eef_quat"].tolist()
    w = max(-1.0, min(1.0, w))
    sine = math.sqrt(1 - w * w)
    angle = 2 * math.acos(w)
    rotation = [0.0] * 3 if math.isclose(sine, 0.0) else [v * angle / sine for v in (x, y, z)]
    parts = [*raw["robot0_eef_pos"], *rotation, *raw["robot0_gripper_qpos"]]
    return {**pictures, "observation/state": np.array(parts), "prompt": prompt}


def model_input_of(
    element: dict[str, Any], checkpoint: Path, tokenizer: Path, *, quantiles: bool, length: int
) -> dict[str, np.ndarray]:
    """Return the input of openpi's network for an element, before scaling of the pictures.

    Args:
        element: As sent by the client.
        checkpoint: Folder with `assets/`.
        tokenizer: Sentencepiece model.
        quantiles: Whether quantiles normalize.
        length: `max_token_len`.
    """
    import sentencepiece

    # norm stats, then padding to 32
    file = checkpoint / "assets/physical-intelligence/libero/norm_stats.json"
    stats = {k: np.array(v) for k, v in json.loads(file.read_text())["norm_stats"]["state"].items()}
    state = element["observation/state"]
    if quantiles:
        low, high = stats["q01"][:8], stats["q99"][:8]
        state = (state - low) / (high - low + 1e-6) * 2 - 1
    else:
        state = (state - stats["mean"][:8]) / (stats["std"][:8] + 1e-6)
    padded = np.zeros(32)
    padded[:8] = state

    # neither pi0_libero nor pi05_libero has the state in its prompt
    model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    words = element["prompt"].strip().replace("_", " ").replace("\n", " ")
    tokens = [model.bos_id(), *model.encode(words), *model.encode("\n")]
    row = np.zeros(length, np.int64)
    row[: len(tokens)] = tokens
    pictures = [element["observation/image"], element["observation/wrist_image"]]
    return {
        "state": padded,
        "tokens": row,
        "token_mask": np.arange(length) < len(tokens),
        "images": np.stack(pictures).transpose(0, 3, 1, 2),
    }


def _resized(picture: np.ndarray, size: int = 224) -> np.ndarray:
    """Return a picture (Y, X, 3) at a size, with black bars where it is not square."""
    height, width = picture.shape[:2]
    ratio = max(width / size, height / size)
    inner = (int(width / ratio), int(height / ratio))
    small = Image.fromarray(np.ascontiguousarray(picture)).resize(inner, Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", (size, size), 0)
    canvas.paste(small, ((size - inner[0]) // 2, (size - inner[1]) // 2))
    return np.asarray(canvas)
