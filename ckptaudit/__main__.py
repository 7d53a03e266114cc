"""``python -m ckptaudit``."""

from ckptaudit.cli import run

if __name__ == "__main__":
    run()
