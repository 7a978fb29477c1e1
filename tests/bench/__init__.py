"""Measures: what the receiver costs beside a bare handler, and the whole path beside the tutorial. Proves no behaviour.

`python -m tests.bench` starts everything that it needs and leaves nothing behind. Each figure that has a target is a
ratio within one run, because the machines that it runs on differ.
"""
