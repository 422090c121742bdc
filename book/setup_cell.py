# @title Setup: does nothing at home; on Colab it installs the package beside Colab's own torch.
import os

PROFILE = os.environ.get("SE_PROFILE", "tiny")  # the one switch of sizes: tiny, small or paper
DEVICE = "cpu"
BOOK = ".."
if os.environ.get("COLAB_RELEASE_TAG"):
    import subprocess
    import sys

    import torch

    REPOSITORY = ""
    clone = os.path.abspath("smooth-encoders")
    if not os.path.exists(clone):
        if not REPOSITORY:
            raise RuntimeError("This notebook does not know its repository: clone it into ./smooth-encoders first.")
        subprocess.run(["git", "clone", "--quiet", "--depth=1", REPOSITORY, clone], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--editable", clone], check=True)
    sys.path.insert(0, clone)  # an editable install is seen by new processes only
    DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    BOOK = os.path.join(clone, "book")
    print(f"installed from {clone}; torch {torch.__version__}, device {DEVICE}, profile {PROFILE}")
