"""Command line of every stage: `python train.py fit|validate|test|predict -c configs/STAGE.yaml`."""

from visa.cli import run

if __name__ == "__main__":
    run()
