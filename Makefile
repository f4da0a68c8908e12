# make all     set-up, then superpixels -> alignment -> CAMs -> pseudo-masks -> scores and report.html -> model, on a
#              small drawn set
# make setup   installs what the stages need into .venv; EXTRAS=onnx,vector adds what `ssr onnx` and polygons need, ray and mmseg
#              likewise. Other targets install what they need beyond it.
# make test    set-up, then the tests
# make quick   set-up, then the tests that take milliseconds: no kills, no several processes, no documentation's commands
# make coverage  the same tests, and which lines and branches none of them takes
# make faults  set-up, then kills, full disks, damaged files and second writers by the hundred; takes minutes -> build/faults.md
#
# On one's own data: make all DATASET=voc|coco|folder ROOT=/data/VOCdevkit/VOC2012 [SPLIT=train], or make all CONFIG=my.toml;
# WORK=folder, RECIPE=ssr|clip-es|weclip, CLIP=file and DINO=file for local weights, EVAL=no where there is no ground truth,
# ALIGN=no for plain CLIP, TRAIN=no for no segmentation model. That is trained for STEPS=300 (papers: 30000) unless the config has
# [train], and scored on split VAL, if one is given, else on its training images. RETRAIN=yes also trains a standard network on
# mmsegmentation from the masks.
PYTHON  ?= python3
VENV    ?= .venv
# versions that the tests have passed with; CONSTRAINTS= takes the newest
CONSTRAINTS ?= constraints.txt
EXTRAS  ?=
CONFIG  ?=
DATASET ?=
ROOT    ?=
SPLIT   ?=
WORK    ?=
RECIPE  ?=
CLIP    ?=
DINO    ?=
EVAL    ?= $(if $(filter folder,$(DATASET)),no,yes)
ALIGN   ?= $(if $(filter clip-es% weclip,$(RECIPE)),no,yes)
TRAIN   ?= yes
RETRAIN ?= no
STEPS   ?= 300
VAL     ?= $(if $(SAMPLE),val)

# a value as one word of the shell, whatever is in it
q       = '$(subst ','\'',$(1))'

BIN    := $(VENV)/bin
SSR    := $(BIN)/ssr
SAMPLE := $(if $(CONFIG)$(DATASET),,$(or $(WORK),runs/sample))
INPUT   = $(if $(DATASET),$(DATASET) $(if $(ROOT),--root $(call q,$(ROOT))) $(if $(SPLIT),--split $(call q,$(SPLIT))) $(if $(CONFIG),--config $(call q,$(CONFIG))),--config $(call q,$(or $(CONFIG),$(SAMPLE)/sample.toml)))
ARGS    = $(INPUT) $(if $(WORK),--work $(call q,$(WORK))) $(if $(RECIPE),--recipe $(RECIPE))
CLIP_FLAG = $(if $(CLIP),--clip-pretrained $(call q,$(CLIP)))
FLAGS   = $(CLIP_FLAG) $(if $(DINO),--dino-pretrained $(call q,$(DINO)))
# the CRF, or pixel-adaptive refinement where the CRF could not be built; a config of one's own decides for itself
BOUNDARY_FLAG = $(if $(CONFIG),,--boundary auto)
OWN_STEPS = $(or $(SAMPLE),$(if $(CONFIG),$(shell grep -s '^\[train\]' $(call q,$(CONFIG)))))
TRAIN_FLAGS = $(if $(OWN_STEPS),,--iterations $(STEPS)) $(if $(filter yes,$(ALIGN)),--ckpt auto) $(FLAGS)
RETRAIN_FLAGS = $(if $(or $(SAMPLE),$(if $(CONFIG),$(shell grep -s '^\[retrain\]' $(call q,$(CONFIG))))),,--schedule $(STEPS)) $(if $(DINO),--dino-pretrained $(call q,$(DINO)))
VAL_FLAG = $(if $(VAL),--split $(call q,$(VAL)))
PREDICT_FLAGS = $(CLIP_FLAG) $(BOUNDARY_FLAG)
# says the command, runs it; exit code 3: done but for the bad images that --max-failures allows
step    = @set -- $(1) $(ARGS) $(2); echo; printf '%s\n' $(call q,> ssr $(1) $(ARGS) $(2)); $(SSR) "$$@" || [ $$? -eq 3 ]
# the page is there before the ablation and the long trainings, which then add to it
REPORT  = $(call step,report,$(if $(filter yes,$(EVAL)),--gt))
scored  = $(if $(filter yes,$(EVAL)),$(call step,$(1),$(2)))

# a file stays on one worker, in the order of tests/fixtures/lanes.py: the longest first
PYTEST  = $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: help setup dev all test quick coverage faults lint check format docs bench constraints clean

help:
	@sed -n 's/^# \{0,1\}//p;/^PYTHON/q' Makefile
	@echo 'make setup | dev | check | lint | format | docs | bench CONFIG=my.toml | constraints | clean'

comma   := ,
INSTALL = $(BIN)/python -m pip install $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
NO_CRF  = pixel-adaptive refinement (PAR) takes the place of the CRF

setup: $(VENV)/.done $(patsubst %,$(VENV)/.with-%,$(subst $(comma), ,$(EXTRAS)))

$(VENV)/.done: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "ssr needs Python 3.11, 3.12 or 3.13: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(INSTALL) -e '.[crf]' || { echo 'pydensecrf2 was not built (is there a C++ compiler?): $(NO_CRF)'; $(INSTALL) -e .; }
	@$(BIN)/python -c 'import sys; sys.version_info < (3, 13) or print("pydensecrf2 does not build on Python 3.13: $(NO_CRF)")'
	touch $@

# an extra of pyproject.toml, beside what is there
$(VENV)/.with-%: $(VENV)/.done
	$(INSTALL) -e '.[$*]'
	touch $@

dev: $(VENV)/.with-dev

all: setup $(if $(filter yes,$(RETRAIN)),$(VENV)/.with-mmseg)
	$(if $(SAMPLE),$(SSR) sample --work $(call q,$(SAMPLE)))
	$(call step,doctor,$(FLAGS))
	$(call step,superpixels)
	$(if $(filter yes,$(ALIGN)),$(call step,align,$(FLAGS)))
	$(call step,cams,$(if $(filter yes,$(ALIGN)),--ckpt auto) $(CLIP_FLAG))
	$(call step,refine,$(FLAGS) $(BOUNDARY_FLAG))
	$(call scored,eval masks)
	$(call scored,report,--gt)
	$(call scored,ablation,$(FLAGS) $(BOUNDARY_FLAG))
	$(call scored,eval ablation)
	$(REPORT)
	$(if $(filter yes,$(TRAIN)),$(call step,train,$(TRAIN_FLAGS)))
	$(if $(filter yes,$(TRAIN)),$(call step,predict,$(PREDICT_FLAGS) $(VAL_FLAG)))
	$(if $(filter yes,$(TRAIN)),$(call scored,eval predictions,$(VAL_FLAG)))
	$(if $(filter yes,$(RETRAIN)),$(call step,retrain,$(RETRAIN_FLAGS)))
	$(if $(filter yes,$(RETRAIN)),$(call step,predict,--model retrained $(PREDICT_FLAGS) $(VAL_FLAG)))
	$(if $(filter yes,$(RETRAIN)),$(call scored,eval retrained,$(VAL_FLAG)))
	$(if $(filter yes,$(TRAIN) $(RETRAIN)),$(REPORT))
	@echo; $(SSR) $(if $(filter-out runs/%,$(WORK)),status --work $(call q,$(WORK)))

test: dev
	$(PYTEST)

QUICK   = -m 'not slow and not kill and not docs and not processes'

quick: dev
	$(PYTEST) $(QUICK)

coverage: dev
	$(PYTEST) $(QUICK) --cov=pipelines --cov=ssr_cli --cov-branch --cov-report=term-missing:skip-covered

faults: dev
	SSR_FAULTS=full $(BIN)/python -m pytest tests/faults tests/stages/test_kill.py tests/cli/test_interrupted_trainings.py

lint: dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell pipelines ssr_cli tests docs benchmarks scripts README.md CHANGELOG.md CONTRIBUTING.md

check: lint docs test

format: dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.with-docs
	$(BIN)/mkdocs build --strict --site-dir build/site

bench: setup
	@[ -n $(call q,$(CONFIG)) ] || { echo 'make bench needs CONFIG=my.toml' >&2; exit 2; }
	$(BIN)/python benchmarks/speed.py --config $(call q,$(CONFIG))

constraints: dev
	$(BIN)/uv pip compile pyproject.toml --universal --all-extras --upgrade --no-annotate --quiet \
	  --custom-compile-command 'make constraints' --output-file constraints.txt

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
