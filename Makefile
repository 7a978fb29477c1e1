# In the language of GNU make 3.81, which is the one on macOS. What the targets do is in deploy/make.py.
# ARGS is passed on: make demo ARGS=--once, make test ARGS="-k broker", make lock ARGS=--upgrade

PYTHON ?= $(shell command -v python3 || { command -v uv >/dev/null && echo uv run --no-project --quiet python; })

.PHONY: help demo test check bench chaos mutants lock clean

help demo test check bench chaos mutants lock clean:
	$(if $(PYTHON),,$(error python3 is missing: sudo apt-get install python3 python3-venv, sudo dnf install python3.12, brew install python@3.13; or install uv))
	@$(PYTHON) deploy/make.py $@ $(ARGS)
