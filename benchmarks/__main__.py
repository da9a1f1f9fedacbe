"""`python -m benchmarks`: what can be run; `record NAME` refreshes what the site shows."""

from experiments.harness.command import main

if __name__ == "__main__":
    raise SystemExit(main("benchmarks"))
