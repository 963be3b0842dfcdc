# Each target works on a fresh Debian with git and make; `setup` fetches the rest.

.DEFAULT_GOAL := help
bin := .venv/bin

.PHONY: help setup demo lint test bench clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## */\1 /p' $(MAKEFILE_LIST) | while read -r target text; do \
		printf '  make %-8s %s\n' "$$target" "$$text"; done

setup: ## install missing packages, make .venv with the tools and this project in it
	@scripts/setup

demo: setup ## prove the backends on this kernel, with real packets in throwaway network namespaces
	$(bin)/flanneld-masq selftest

lint: setup ## ruff and mypy --strict
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy

test: lint ## lint, then all tests
	$(bin)/python -m pytest tests

bench: setup ## measure how fast and small it is, beside flannel's way: 25 minutes, QUICK=1 for three, PUBLISH=1 for docs/bench
	$(bin)/python -m tests.bench $(if $(QUICK),--quick) $(if $(PUBLISH),--publish)

clean: ## remove all that was made here, .venv too
	rm -rf .venv build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name .git -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
