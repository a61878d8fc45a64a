PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# checkov's dependencies are at odds with ours.
CHECKS := .venv-checks

IMAGE_PREFIX ?=
TAG ?= $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
SOURCE ?= $(shell git config --get remote.origin.url)
# docker where its daemon answers, else buildah
BUILD_IMAGE ?= $(shell docker info >/dev/null 2>&1 && echo docker build || echo buildah bud --layers)

.PHONY: demo test lint format bench bench-gpu bench-s3 calibration retrain saelens clean images locks e2e
.PHONY: chart-checks chart-readme manifests

demo: $(VENV)/.installed  ## the whole pipeline on the built-in model, with nothing but this machine
	$(BIN)/emopfx run -f manifests/experiments/demo.yaml

test: $(VENV)/.installed-dev  ## every test that needs no cluster, by two processes
	$(BIN)/python -m pytest -m "not e2e" -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-dev  ## ruff (with docstring rules) and mypy strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev  ## ratios: throughput with and without capture, probes against scikit-learn; kept in tests/bench/results
	$(BIN)/python -m tests.bench.throughput
	$(BIN)/python -m tests.bench.probes

saelens:  ## SAELens itself reads our autoencoders; in an environment of its own, since it brings much along
	$(PYTHON) -m venv $(VENV)-saelens
	$(VENV)-saelens/bin/python -m pip install --quiet -e ".[dev]" -e server "sae-lens>=6,<7"
	$(VENV)-saelens/bin/python -m pytest -W default tests/saelens/check_saelens.py

retrain: $(VENV)/.installed-dev  ## trains the model `tiny` again from nothing, and compares; some minutes
	$(BIN)/python -m pytest tests/retrain/check_retrain.py

bench-gpu: $(VENV)/.installed-dev  ## on a GPU: the server against other ways of capturing, written to tests/bench/results/gpu.json
	$(BIN)/python -m tests.bench.gpu

calibration: $(VENV)/.installed-dev  ## false alarms, power and coverage of the statistics on made-up data, some minutes
	$(BIN)/python -m tests.bench.calibration

bench-s3: $(VENV)/.installed-dev $(VENV)/awscli/bin/aws  ## push and pull against boto3 and the AWS CLI, and a round trip of 1 GB
	$(BIN)/python -m tests.bench.s3 --aws $(VENV)/awscli/bin/aws
	$(BIN)/python -m tests.bench.s3_round_trip

# Its pins and boto3's clash.
$(VENV)/awscli/bin/aws: | $(BIN)/python
	$(PYTHON) -m venv $(VENV)/awscli
	$(VENV)/awscli/bin/python -m pip install --quiet awscli

images: image-server image-jobs  ## $(IMAGE_PREFIX)emopfx-{server,jobs}:$(TAG), by docker or buildah

image-%:
	$(BUILD_IMAGE) -t $(IMAGE_PREFIX)emopfx-$*:$(TAG) --build-arg VERSION=$(TAG) --build-arg SOURCE=$(SOURCE) \
	  $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) -f images/$*/Dockerfile .

locks: $(VENV)/.installed-dev  ## exact versions of all that is in the images, the newest that both pyproject.toml allow
	$(LOCK) server/pyproject.toml | $(WITHOUT_CUDA) > images/server/requirements.lock
	$(LOCK) --extra analysis --constraint images/server/requirements.lock pyproject.toml | $(WITHOUT_CUDA) > \
	  images/jobs/requirements.lock

LOCK = $(BIN)/uv pip compile --quiet --no-annotate --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
  --custom-compile-command "make locks"
WITHOUT_CUDA = sed -E '/^(cuda-|nvidia-|triton)/d; 2a $(NOTE)'
NOTE = \# The parts of CUDA are left to torch: its default build for Linux asks for them itself, its CPU build has none.

chart-checks: $(VENV)/.installed-dev $(CHECKS)/.installed  ## checkov, and the schemas of Kubernetes 1.24
	$(BIN)/python -m tests.chart.rendering build/chart
	$(CHECKS)/bin/kubernetes-validate --strict --quiet --no-warn -k 1.24 build/chart/1.24.0/*.yaml
	$(CHECKS)/bin/checkov --config-file tests/chart/checkov.yaml --directory build/chart/1.37.0

chart-readme: $(VENV)/.installed-dev  ## the table of values in the chart's README
	$(BIN)/python -m tests.chart.readme

manifests: $(VENV)/.installed-dev  ## the manifests for people without Helm, for Kubernetes KUBE_VERSION and newer
	$(BIN)/python -m tests.chart.plain

e2e: $(VENV)/.installed-dev  ## on a real cluster: the one that KUBECONFIG names
	EMOPFX_E2E=1 $(BIN)/python -m pytest -m e2e tests/e2e

clean:
	rm -rf $(VENV) $(CHECKS) build

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml server/pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e . -e server
	touch $@

$(VENV)/.installed-dev: pyproject.toml server/pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e ".[dev]" -e server
	touch $(VENV)/.installed $@

$(CHECKS)/.installed: tests/chart/checks.txt
	$(PYTHON) -m venv $(CHECKS)
	$(CHECKS)/bin/python -m pip install --quiet -r tests/chart/checks.txt
	touch $@
