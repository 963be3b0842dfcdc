# Each target works on a fresh Debian with git and make; `setup` fetches the rest.

.DEFAULT_GOAL := help
bin := .venv/bin

.PHONY: help setup demo lint test bench man deb rpm clean

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
	@scripts/setup-packaging deb rpm check
	$(bin)/python -m pytest tests

bench: setup ## measure how fast and small it is, beside flannel's way: 15 minutes, QUICK=1 for three, PUBLISH=1 for docs/bench
	$(bin)/python -m tests.bench $(if $(QUICK),--quick) $(if $(PUBLISH),--publish)

# rst2man of docutils makes the manual pages. The packages call this too, without setup.
man: build/man/flanneld-masq.8 build/man/flanneld-masq.toml.5

build/man/%: docs/man/%.rst flanneld_masq/__init__.py
	@mkdir -p build/man
	sed "s/@VERSION@/$$(sed -n 's/^__version__ = "\(.*\)"$$/\1/p' flanneld_masq/__init__.py)/" $< | rst2man - $@

deb: ## build dist/flanneld-masq_VERSION-1_all.deb
	@scripts/setup-packaging deb
	packaging/build-deb build/deb
	@mkdir -p dist
	cp build/deb/*.deb dist/

rpm: ## build dist/flanneld-masq-VERSION-1.noarch.rpm
	@scripts/setup-packaging rpm
	packaging/build-rpm build/rpm
	@mkdir -p dist
	cp build/rpm/*.noarch.rpm dist/

clean: ## remove all that was made here, .venv too
	rm -rf .venv build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name .git -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
