"""Where the real data and weights lie, beside the checkout; what needs them skips where they are absent."""

from pathlib import Path

SHARED = Path(__file__).parents[2] / "shared"
PACS = SHARED / "data" / "PACS"
SQUEEZENET = SHARED / "weights" / "squeezenet1_1_imagenet.safetensors"
