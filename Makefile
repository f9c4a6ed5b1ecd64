# One environment in .venv, made from the lock file by whichever target needs it first.
PYTHON ?= python3
# Tests spend much of their time waiting for programs: more processes than processors.
TEST_PROCESSES ?= 4
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help

help:  ## what can be made
	@grep -hE '^[a-z.-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z.-]+):.*## /\1\t/' | expand -t 16

$(VENV): $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "diskcast needs Python 3.11 or later: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(STAMP)

demo: $(STAMP)  ## a whole cast on this machine: pack, send, four agents, verify (no root)
	$(BIN)/diskcast demo

test: $(STAMP)  ## the test suite (tests that need root are skipped without it, and say so)
	$(BIN)/pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

lint: $(STAMP)  ## ruff, mypy, import contracts, style, fresh generated docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m tests.tidy.style
	$(BIN)/python docs/generate.py --check

format: $(STAMP)  ## let ruff fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## generated pages: reference, example configuration, Grafana dashboards
	$(BIN)/python docs/generate.py

site: $(STAMP)  ## the documentation as a searchable offline site, in build/site
	$(BIN)/python -m docs.site.build build/site

docs-plots: $(STAMP)  ## traces and tables of docs/explanation/rate-control.md, simulated anew: minutes (NAMES=… for some)
	$(BIN)/python -m docs.rate_plots $(NAMES)

ablation: $(STAMP)  ## rate control without each of its constants, simulated (ARGS=all, or names of switches)
	$(BIN)/python -m tests.simulation.ablation $(ARGS)

bench: $(STAMP)  ## measured against udpcast and UFTP in namespaces (root)
	$(BIN)/python -m tests.bench

bench-rates: $(STAMP)  ## automatic rate and stragglers, held to their bounds (root; NAMES=… for some of them)
	$(BIN)/python -m tests.bench.rates $(NAMES)

bench-report: $(STAMP)  ## both, written to docs/benchmarks.md
	$(BIN)/python -m tests.bench --rates --report docs/benchmarks.md

bench-scale: $(STAMP)  ## a room of 1000 receivers: simulated casts, the sender's feedback path, joins (no root)
	$(BIN)/python -m tests.bench.scale

bench-capture: $(STAMP)  ## a capture over a shaped gigabit link, beside pack of the same disk (root)
	$(BIN)/python -m tests.bench.capture $(ARGS)

bench-disk: $(STAMP)  ## writing 4 GiB to a disk, verified, beside dd (root; ARGS=--help for its options)
	$(BIN)/python -m tests.bench.disk_write $(ARGS)

bench-faults: $(STAMP)  ## what one bad disk costs the others of its room (root)
	$(BIN)/python -m tests.bench.faulty_neighbour

bench-room: $(STAMP)  ## a daemon with 500 simulated machines and 20 browsers, held to its bounds (no root)
	$(BIN)/python -m tests.load.room $(ARGS)

bench-idle: $(STAMP)  ## a daemon with 1000 idle machines that check in over TLS (no root)
	$(BIN)/python -m tests.load.idle $(ARGS)

bench-preflight: $(STAMP)  ## the preflight of a room of 500 machines (no root)
	$(BIN)/python -m tests.load.preflight $(ARGS)

deploy-booted: $(STAMP)  ## deploy/ on a Debian of its own, run by systemd: stop, hang, upgrade, reboot (root, mmdebstrap, systemd-container)
	$(BIN)/python -m tests.deploy.booted $(ARGS)

netboot-vm: $(STAMP)  ## virtual machines boot from the network in every way, and fail in every way (root; NAMES=… for some): an hour
	DISKCAST_NETBOOT_VM=1 DISKCAST_REQUIRE_PRIVILEGED_TESTS=1 nice -n 10 $(BIN)/pytest $(if $(NAMES),-k '$(NAMES)') tests/netboot/long

generalise-vm: $(STAMP)  ## virt-sysprep finds nothing left in a generalised image (guestfs-tools, a kernel): minutes
	DISKCAST_GENERALISE_VM=1 nice -n 10 $(BIN)/pytest tests/generalise_vm

export-vm: $(STAMP)  ## exported images, and images in `diskcast vm`, boot to their login (root, QEMU): minutes
	DISKCAST_EXPORT_VM=1 DISKCAST_REQUIRE_PRIVILEGED_TESTS=1 nice -n 10 $(BIN)/pytest $(if $(NAMES),-k '$(NAMES)') tests/export/long

patches-vm: $(STAMP)  ## virtual machines whose Debian configures itself from a machine patch (root, QEMU): a quarter of an hour
	DISKCAST_PATCHES_VM=1 DISKCAST_REQUIRE_PRIVILEGED_TESTS=1 nice -n 10 $(BIN)/pytest $(if $(NAMES),-k '$(NAMES)') tests/patches_vm

fuzz: $(STAMP)  ## ten million mutated inputs for every decoder of unauthenticated bytes (ARGS=--help)
	$(BIN)/python -m tests.fuzz $(ARGS)

sbom: $(STAMP)  ## software bill of materials (CycloneDX), in build/sbom.cdx.json
	$(BIN)/python deploy/sbom.py build/sbom.cdx.json

AUDIT := build/audit
audit:  ## known vulnerabilities of the locked dependencies, from PyPI's advisories (network)
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/pip install --quiet --disable-pip-version-check 'pip-audit>=2.9,<3'
	$(AUDIT)/bin/pip-audit --strict --disable-pip --no-deps -r requirements.lock || \
		{ echo 'audit: vulnerable, or the advisories are unreachable: see the line above and SECURITY.md'; exit 1; }

fuzz-api: $(STAMP)  ## schemathesis over the whole API, for minutes
	$(BIN)/python -m tests.api.fuzz $(ARGS)

screenshots: $(STAMP)  ## docs/screenshots, made anew from a real daemon (needs chromium)
	$(BIN)/python -m tests.web.screenshots

soak: $(STAMP)  ## power cut everywhere, agents killed at 100 random moments, races for a disk, 6000 simulated casts (root): half an hour
	$(BIN)/python -m tests.soak.power_cut
	$(BIN)/python -m tests.soak.kill
	$(BIN)/python -m tests.soak.two_agents
	$(BIN)/python -m tests.soak.two_agents --device
	DISKCAST_CAPTURE_KILLS=20 $(BIN)/pytest tests/server/test_captures.py
	DISKCAST_SEED_COUNT=6000 $(BIN)/pytest -q --numprocesses $(TEST_PROCESSES) tests/simulation/test_cast.py

coverage: $(STAMP)  ## the test suite with branch coverage of the three packages
	$(BIN)/pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder \
	  --cov=protocol --cov=receiver --cov=sender --cov-branch --cov-report=term:skip-covered

lock: $(STAMP)  ## refresh requirements.lock with hashes (needs uv on the PATH)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
	  --extra dev --quiet pyproject.toml --no-emit-package diskcast --output-file requirements.lock

clean:  ## remove what was built
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: help demo test coverage lint format docs site docs-plots ablation bench bench-rates bench-report bench-scale bench-capture bench-disk bench-faults bench-room bench-idle bench-preflight sbom audit deploy-booted netboot-vm export-vm generalise-vm patches-vm fuzz fuzz-api screenshots soak lock clean
