"""Where the compiled files of edgekit-native lie. Importing this loads nothing."""

from pathlib import Path

ROOT = Path(__file__).parent
LIBRARY = ROOT / "libedgekit.so"
EK_DCCRN = ROOT / "ek_dccrn"
INCLUDE = ROOT / "include"
