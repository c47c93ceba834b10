"""``python -m monai_ext`` is the command ``monai-ext``."""

from monai_ext.cli.main import run

if __name__ == "__main__":
    run()
