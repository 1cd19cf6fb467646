# Every target installs what it needs: packages with apt or dnf (as root, from
# the machine's own mirrors), Python packages into .venv.
#
#   make demo             the main job in a VM: hotplug, crash, a complete vmcore
#   make test             lint, types, unit and property tests, then the VM tests
#   make lint             its first part; installs no system packages
#   make test-unit        its second part
#   make test-vm          its third part
#   make test-vm-matrix   every kernel and firmware that we support
#   make test-real-kdump KDUMP_UTILS=DIR   the RPM beside real kdump scripts, in VMs
#   make test-selinux     the service confined by an enforcing policy
#   make test-pythons     the unit tests with Python 3.9 to 3.14, old and new libraries
#   make bench            speed, as ratios measured side by side in one run
#   make rpm              build/rpm/*.rpm

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
LINT := build/lint

.PHONY: help demo test lint test-unit test-vm test-vm-matrix test-selinux test-real-kdump test-pythons bench rpm wheel packages clean

help:
	@sed -n 's/^#   make/make/p' Makefile

demo: wheel
	$(RUN)/python -m tests.vm.demo

test: lint test-unit test-vm

lint: $(LINT)/installed
	$(LINT)/bin/ruff check
	$(LINT)/bin/ruff format --check
	$(LINT)/bin/mypy
	$(LINT)/bin/codespell

test-unit: $(VENV)/installed
	$(RUN)/pytest tests/unit

# What takes long and rarely breaks is left to the matrix: the service killed twenty times,
# and the sizes at which an image just fits.
KILLS := tests/vm/test_host_ends.py::test_killed_again_and_again
FITS := tests/vm/test_placement.py

test-vm: wheel
	KDUMPHPD_WHEEL=$$(echo build/dist/*.whl) $(RUN)/pytest tests/vm \
		--ignore=tests/vm/test_selinux.py --ignore=$(FITS) --deselect=$(KILLS)

test-vm-matrix: wheel
	KDUMPHPD_WHEEL=$$(echo build/dist/*.whl) $(RUN)/python -m tests.vm.matrix
	KDUMPHPD_WHEEL=$$(echo build/dist/*.whl) $(RUN)/pytest $(KILLS) $(FITS)

# KDUMP_UTILS: a checkout of kdump-utils, or the SOURCES directory of EL's kexec-tools.
test-real-kdump: rpm wheel
	@test -e "$(KDUMP_UTILS)/kdumpctl" || \
		{ echo "make $@ KDUMP_UTILS=DIR: name a directory with kdumpctl" >&2; exit 2; }
	KDUMPHPD_WHEEL=$$(echo build/dist/*.whl) KDUMPHPD_RPM=$$(echo build/rpm/kdumphpd-[0-9]*.rpm) \
		KDUMPHPD_KDUMP_UTILS=$(abspath $(KDUMP_UTILS)) \
		$(RUN)/pytest tests/vm/test_host_*.py tests/vm/test_real_initrd.py

test-selinux: $(VENV)/installed
	$(RUN)/pytest tests/vm/test_selinux.py

test-pythons: $(VENV)/installed
	$(RUN)/python -m tests.pythons

bench: wheel
	$(RUN)/python -m tests.bench

# The wheel is what the VM tests install in their guests.
wheel: $(VENV)/installed
	rm -rf build/dist
	$(RUN)/pip wheel --quiet --no-deps --wheel-dir build/dist .

rpm: $(VENV)/installed
	PYTHON=$(CURDIR)/$(RUN)/python packaging/rpm/build-rpm

packages:
	tests/install-packages

$(VENV)/installed: pyproject.toml tests/install-packages
	tests/install-packages
	$(PYTHON) -m venv --clear $(VENV)
	$(RUN)/pip install --quiet --upgrade pip
	$(RUN)/pip install --quiet '.[test]'
	touch $@

# With the two libraries whose types mypy looks at.
$(LINT)/installed: pyproject.toml
	$(PYTHON) -m venv --clear $(LINT)
	$(LINT)/bin/pip install --quiet ruff mypy codespell 'pydantic>=2' structlog tomli
	touch $@

clean:
	rm -rf build $(VENV)
